"""Weights & Biases: one W&B run per run, offline without a login; its files as artifacts."""

import logging
import netrc
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from seven_exp.config import Tracker as TrackerConfig
from seven_exp.messages import one_line
from seven_exp.tracking.interface import Histogram, RunInfo, Value

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

PROJECT = "seven_exp"

PACKAGE = Path(__file__).parent.parent
"""The code that W&B saves if its setting ``save_code`` asks for it."""

INIT_SECONDS = 30
"""Seconds that an unreachable server may delay a run's start."""

FINISH_SECONDS = 60
"""Seconds that a slow or missing server may delay a run's end; W&B's own limit is a week.

``WANDB_FINISH_TIMEOUT`` in the environment overrides it.
"""


ALERTED = 63
"""Most characters of an alert's title."""


class WandbTracker:
    """Logs a run's config, curves, final metrics and files.

    The x axis of curves is ``step``; final metrics are in the summary under ``final/`` and
    ``best/``. The config has one level, with the keys of the command line: ``pruner``,
    ``sparsity``, ``optimizer.lr``; so it agrees with a W&B sweep over the same keys. It holds what
    the run reads, with the values that nulls stand for.

    A finished run uses an artifact that identifies its dense start, and logs one with its files.
    A run that fails causes an alert.

    For values that are None, W&B's own settings decide: its environment variables, and the file
    that ``wandb init`` writes; then "seven_exp" as the project, and `RunInfo`.

    Args:
        mode: "online" or "offline".
        config: The section ``tracker`` of the config.
    """

    def __init__(self, mode: str, config: TrackerConfig) -> None:
        self.mode, self.config = mode, config
        self._run: wandb.Run | None = None

    @property
    def offline(self) -> bool:
        """Whether the run is only on disk."""
        return self._run is None or self._run.offline

    def start(self, run: RunInfo) -> None:
        """Open the W&B run, or an offline one without an account or a server."""
        os.environ.setdefault("WANDB_SILENT", "true")  # read when W&B is first used
        # W&B's usage statistics print errors when they can't be delivered.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

        # An agent passes its run id to a process, which may execute other runs after this one.
        self._id = os.environ.pop("WANDB_RUN_ID", run.id)
        self._folder = run.folder
        mode = self.mode
        if mode == "online" and not logged_in():
            mode = "offline"
        try:
            self._run = self._open(run, mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B can't be reached (%s)", one_line(error))
            leave(INIT_SECONDS)
            mode = "offline"
            self._run = self._open(run, mode)
        if mode == "offline":
            folder = shlex.quote(self._run.settings.sync_dir)
            log.info("W&B is offline; to upload this run: wandb login && wandb sync %s", folder)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        summary = "min,last" if run.lower_is_better else "max,last"
        self._run.define_metric(f"validation/{run.metric}", step_metric="step", summary=summary)
        self._run.define_metric("validation/loss", step_metric="step", summary="min,last")

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """One row of history, numbered by its step, unless the server has it from before."""
        import numpy as np
        import wandb

        assert self._run is not None
        if step < self._run.starting_step:
            return
        row = {
            key: wandb.Histogram(np_histogram=(np.array(value.counts), np.array(value.edges)))
            if isinstance(value, Histogram)
            else value
            for key, value in values.items()
        }
        self._run.log({"step": step, **row}, step=step, commit=True)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write summary and exit code, and wait until the server has everything.

        Raises:
            TimeoutError: The wait timed out; the message says how to upload the rest.
        """
        assert self._run is not None
        if record["status"] == "failed":
            title = f"failed: {self._run.name}"[:ALERTED]
            self._run.alert(title, str(record.get("error")), level="ERROR")
        files = None
        if record["status"] == "finished" and self.config.artifacts != "none":
            with _files_are_dispensable():
                files = self._log_files(record)
        summary = {
            "status": record["status"],
            "run_hash": record["run_hash"],
            **{f"final/{name}": value for name, value in record["metrics"].items()},
            # Older records have none.
            **{f"final/validation/{k}": v for k, v in record.get("validation", {}).items()},
            **{f"best/{name}": value for name, value in record["best"].items()},
            "final/sparsity": record["sparsity"],
            "final/kept_weights": record["params_nonzero"],
            "final/flops_dense": record["flops_dense"],
            "final/flops_sparse": record["flops_sparse"],
            "final/seconds": record["seconds"],
            "final/seconds_pruning": record["seconds_pruning"],
        }
        self._run.summary.update({key: v for key, v in summary.items() if v is not None})
        if record["status"] == "interrupted":
            self._run.mark_preempting()
        folder = shlex.quote(self._run.settings.sync_dir)
        try:
            self._run.finish(exit_code=0 if record["status"] == "finished" else 1)
        except TimeoutError as error:
            raise TimeoutError(
                f"the server did not receive everything; to upload the rest: wandb sync {folder}"
            ) from error
        if files is not None and not self.offline:
            with _files_are_dispensable():
                files.wait(1)  # it has arrived, or was refused

    def _log_files(self, record: Mapping[str, Any]) -> "wandb.Artifact":
        """The dense start as an artifact that the run uses, and the run's files as its own.

        W&B uploads files from where they are: it makes no copies, and an offline run writes only
        their names and checksums.
        """
        import wandb

        assert self._run is not None
        if (start := record.get("sha256", {}).get("start")) is not None:
            about = {key: record[key] for key in ("model", "dataset")}
            dense = wandb.Artifact(
                f"dense-{start[:12]}", "dense-start", metadata={**about, "sha256": start}
            )
            # `use_artifact` waits for the server, and refuses to work offline.
            self._run._log_artifact(dense, aliases=[], is_user_created=True, use_after_commit=True)
        figures = {"sparsity": record["sparsity"], **record["metrics"]}
        own = wandb.Artifact(artifact_name(record), "run", metadata=figures)
        for name, path in self._files(record):
            own.add_file(str(path), name, policy="immutable", skip_cache=True)
        return self._run.log_artifact(own)

    def _files(self, record: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
        """Names and places of the files that the run's artifact holds."""
        names = ["results.json", *record.get("sha256", {})]
        if self.config.artifacts == "model":
            # The record has no checksums of a language model's configs and tokenizer.
            names += [f"model/{path.name}" for path in sorted(self._folder.glob("model/*"))]
        else:
            names = [name for name in names if "/" not in name]
        plugins = map(Path, record["config"].get("plugins", ()))
        places = {name: self._folder / name for name in names}
        places |= {f"plugins/{path.name}": path for path in plugins}
        yield from ((name, path) for name, path in places.items() if path.is_file())

    def _open(self, run: RunInfo, mode: str) -> "wandb.Run":
        import wandb

        own, config = wandb.setup().settings, self.config
        tags = own.run_tags or () if config.tags is None else config.tags
        opened = wandb.init(
            mode="offline" if mode == "offline" else "online",
            project=config.project or own.project or PROJECT,
            entity=config.entity,
            id=self._id,
            resume="allow" if run.resumed else None,
            name=own.run_name or run.name,
            group=config.group or own.run_group or run.group,
            notes=config.notes or own.run_notes,
            tags=[*run.tags, *tags],
            job_type=own.run_job_type or run.job,
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=run.settings,
            # Each job of a sweep in one process is a separate run.
            reinit="finish_previous",
            settings=limits(),
        )
        assert opened is not None
        if opened.settings.save_code:
            opened.log_code(str(PACKAGE), f"source-{PACKAGE.name}")
        return opened


def leave(seconds: float) -> None:
    """End W&B's service for this process; it starts again with the next run.

    W&B waits for its end without a limit. One that hangs is left behind and ends with this process.

    Args:
        seconds: How long to wait.
    """
    import wandb

    ending = Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(seconds)


@contextmanager
def _files_are_dispensable() -> Iterator[None]:
    """Turns W&B's exceptions, which share no base class, into a warning."""
    try:
        yield
    except Exception as error:
        log.warning("W&B has not got the run's files (%s)", one_line(error))


def limits() -> "wandb.Settings":
    """Settings of every W&B run: nothing on the terminal, and no long wait for a server.

    The commit and the diff are those of this package's checkout, or else of the present folder.
    """
    import wandb

    checkout = PACKAGE.parent if (PACKAGE.parent / ".git").exists() else Path.cwd()
    return wandb.Settings(
        git_root=str(checkout),
        console="off",
        silent=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=wandb.setup().settings.finish_timeout or FINISH_SECONDS,
        finish_timeout_raises=True,
    )


def artifact_name(record: Mapping[str, Any]) -> str:
    """Name of the artifact with a run's files."""
    return f"run-{record['run_hash']}"


def mode_of(config: TrackerConfig) -> str:
    """Online, offline or disabled, as the config says, or else ``WANDB_MODE``."""
    environment = os.environ.get("WANDB_MODE")
    if "disabled" in (config.mode, environment):
        return "disabled"
    if config.mode is None:
        return "offline" if environment in ("offline", "dryrun") else "online"
    return config.mode


def place_of(entity: str | None, project: str | None) -> tuple[str, str]:
    """Entity and project of runs whose config says this; None: as W&B's settings say.

    Raises:
        ConnectionError: The account's default entity is needed, and W&B does not tell it.
    """
    import wandb

    own = wandb.setup().settings
    try:
        entity = entity or own.entity or wandb.Api().default_entity
    except Exception as error:
        raise ConnectionError(one_line(error)) from error
    if entity is None:
        raise ConnectionError("the account has no default entity: tracker.entity names one")
    return entity, project or own.project or PROJECT


def logged_in() -> bool:
    """Whether W&B has a key or token: in its settings, or stored by ``wandb login``."""
    os.environ.setdefault("WANDB_SILENT", "true")  # read when W&B is first used
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    # The cloud's address has changed; keys stored for the old one still work.
    hosts = (urlsplit(settings.base_url).netloc, "api.wandb.ai")
    for place in places:
        try:
            stored = netrc.netrc(Path(place).expanduser())
        except (OSError, netrc.NetrcParseError):
            continue
        if any(stored.authenticators(host) for host in hosts):
            return True
    return False
