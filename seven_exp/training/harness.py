"""Zero-shot accuracies of a language model in memory, measured by lm-evaluation-harness.

No other file imports the harness. A task is looked up by its YAML file, without importing it.
"""

import importlib.util
import io
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from seven_exp.config import Evaluation
from seven_exp.datasets.tokens import load_tokenizer
from seven_exp.messages import nearest, one_line
from seven_exp.pruning.inputs import evaluating
from seven_exp.training.compute import Compute

KINDS = {"accuracy": "acc", "accuracy_norm": "acc_norm"}
"""Our name -> the harness's. ``acc_norm`` divides log-likelihoods by the answers' lengths."""

_NAME = re.compile(
    rb"^['\"]?task['\"]?:[ \t]*['\"]?([^\s'\"#]+)['\"]?[ \t]*(?:#.*)?\r?$", re.MULTILINE
)


def task_files(section: Evaluation) -> dict[str, Path]:
    """Name of each task -> its YAML file; the user's own tasks replace the harness's.

    Raises:
        ValueError: The harness is not installed, or a task is unknown; the message names the
            nearest one.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise ValueError("tasks need lm-evaluation-harness: uv sync --extra lm-eval")
    known = dict(_tasks_of_the_harness(Path(found.submodule_search_locations[0], "tasks")))
    if section.include_path is not None:
        own = Path(section.include_path).expanduser()
        if not own.is_dir():
            raise ValueError(f"tasks: no folder '{section.include_path}' with YAML files")
        known |= _tasks_below(own)
    for name in section.tasks:
        if name not in known:
            members = sorted(task for task in known if task.startswith(f"{name}_"))
            hint = f"name single tasks, such as {members[0]}" if members else nearest(name, known)
            raise ValueError(f"unknown task '{name}': {hint}")
    return {name: known[name] for name in section.tasks}


def _tasks_below(folder: Path) -> dict[str, Path]:
    """Name of each task in a folder -> its YAML file.

    The harness's own index parses all 14,000 files, which takes half a minute.
    """
    found: dict[str, Path] = {}
    for parent, _, files in sorted(os.walk(folder)):
        for file in sorted(files):
            if file.endswith(".yaml"):
                with open(f"{parent}/{file}", "rb") as opened:  # noqa: PTH123
                    names = _NAME.findall(opened.read())
                for name in names:
                    found.setdefault(name.decode(), Path(parent, file))
    return found


_tasks_of_the_harness = cache(_tasks_below)


@dataclass(frozen=True)
class Harness:
    """Tasks with their data.

    Attributes:
        tasks: The harness's objects, by name.
        limit: Number of examples of each; None: all.
        batch_size: Sequences per forward pass.
        departures: How the tasks depart from the published ones.
    """

    tasks: Mapping[str, Any]
    limit: int | None
    batch_size: int
    departures: Sequence[str]

    @classmethod
    def of(cls, section: Evaluation) -> "Harness":
        """The tasks of a config with their data, downloaded if need be.

        Raises:
            ValueError: A task is unknown, has no accuracy, or its data can't be loaded.
        """
        files = task_files(section) if section.tasks else {}
        departures = []
        if folder := section.include_path:
            place = Path(folder).expanduser()
            own = [name for name, path in files.items() if path.is_relative_to(place)]
            departures += [f"tasks: one's own ({', '.join(own)})"] if own else []
        if files and section.limit is not None:
            departures.append(f"tasks: at most {section.limit:,} examples of each")
        tasks = {name: _loaded(name, path) for name, path in files.items()}
        return cls(tasks, section.limit, section.batch_size, departures)

    def evaluate(
        self,
        model: nn.Module,
        tokenizer: str,
        compute: Compute,
        between: Callable[[], object] = lambda: None,
    ) -> dict[str, Any]:
        """Accuracies of a model of transformers, as it is in memory.

        Args:
            model: All of its weights are on the device.
            tokenizer: Name of the model whose tokenizer belongs to it.
            compute: Precision.
            between: Called before each forward pass; an exception ends the evaluation.

        Returns:
            ``version`` of the harness, and ``tasks``: name -> its ``version``, number of
            ``examples``, ``accuracy`` and where the task has it ``accuracy_norm``, each with
            ``_stderr``, its standard error over the examples (None for a single one).

        Raises:
            ValueError: The tokenizer can't be loaded.
        """
        with _quiet(), evaluating(model):
            from lm_eval.evaluator import evaluate
            from lm_eval.models.huggingface import HFLM

            lm = HFLM(
                pretrained=model,
                backend="causal",
                tokenizer=load_tokenizer(tokenizer),
                batch_size=self.batch_size,
                mixed_precision_dtype=compute.half,
            )
            call = lm._model_call

            def call_next(*args: Any, **kwargs: Any) -> Any:
                between()
                return call(*args, **kwargs)

            lm._model_call = call_next
            found = evaluate(lm, {"tasks": dict(self.tasks)}, limit=self.limit, log_samples=False)
        return {
            "version": version("lm_eval"),
            "tasks": {
                name: {
                    "version": found["versions"][name],
                    "examples": found["n-samples"][name]["effective"],
                    **_accuracies(found["results"][name]),
                }
                for name in self.tasks
            },
        }


def metrics_of(found: Mapping[str, Any]) -> dict[str, float]:
    """The result of `Harness.evaluate` as metrics, and their mean over several tasks."""
    tasks: Mapping[str, Mapping[str, float]] = found["tasks"]
    metrics = {
        f"{kind}_{name}": values[kind]
        for name, values in tasks.items()
        for kind in KINDS
        if kind in values
    }
    if len(tasks) > 1:
        metrics["accuracy_mean"] = fmean(values["accuracy"] for values in tasks.values())
    return metrics


def _loaded(name: str, path: Path) -> Any:
    """A task with its data, without examples in its prompts.

    Raises:
        ValueError: It can't be loaded, or has no accuracy.
    """
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager

            task = TaskManager(include_defaults=False).load([str(path)])["tasks"][name]
    except Exception as error:
        reason = one_line(error)
        raise ValueError(
            f"task '{name}' can't be loaded ({type(error).__name__}: {reason:.150}): without a "
            "network give evaluation.include_path=FOLDER with its YAML file and data_files"
        ) from error
    measured = task.aggregation()
    if KINDS["accuracy"] not in measured:
        raise ValueError(f"task '{name}' has no accuracy but {', '.join(measured)}: leave it out")
    task.set_config(key="num_fewshot", value=0)
    return task


def _accuracies(values: Mapping[str, Any]) -> dict[str, float | None]:
    """What the harness calls "acc,FILTER" and "acc_stderr,FILTER", of the first filter."""
    named = {key.partition(",")[0]: value for key, value in reversed(list(values.items()))}
    found: dict[str, float | None] = {}
    for kind, theirs in KINDS.items():
        if theirs in named:
            found[kind] = float(named[theirs])
            error = named.get(f"{theirs}_stderr")
            known = isinstance(error, float) and math.isfinite(error)
            found[f"{kind}_stderr"] = error if known else None
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context the harness prints its progress on a terminal, and nothing else."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        if sys.stderr.isatty():
            yield
        else:
            with redirect_stderr(io.StringIO()):
                yield
    finally:
        logger.setLevel(before)
