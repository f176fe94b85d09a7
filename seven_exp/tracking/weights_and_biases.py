"""Weights & Biases: one W&B run per run, offline without a login."""

import logging
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from seven_exp.tracking.interface import Histogram, RunInfo, Value

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

PROJECT = "seven_exp"

INIT_SECONDS = 30
"""Seconds that an unreachable server may delay a run's start."""

FINISH_SECONDS = 60
"""Seconds that a slow or missing server may delay a run's end; W&B's own limit is a week.

``WANDB_FINISH_TIMEOUT`` in the environment overrides it.
"""


class WandbTracker:
    """Logs a run's config, curves and final metrics; a group is a model, a data set and a pruner.

    The x axis of curves is ``step``; final metrics are in the summary under ``final/`` and
    ``best/``. The config has one level, with the keys of the command line: ``pruner``,
    ``sparsity``, ``optimizer.lr``; so it agrees with a W&B sweep over the same keys.

    For arguments that are None, W&B's own settings decide: its environment variables, and the file
    that ``wandb init`` writes; then the defaults given here.

    Args:
        mode: "online" or "offline".
        project: W&B project; None: "seven_exp".
        entity: User or team; None: the account's default.
        group: Runs that belong together; None: as `RunInfo` says.
        tags: Besides those of `RunInfo`; None: none.
    """

    def __init__(
        self,
        mode: str,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        self.mode, self.project, self.entity = mode, project, entity
        self.group, self.tags = group, tags
        self._run: wandb.Run | None = None

    @property
    def offline(self) -> bool:
        """Whether the run is only on disk."""
        return self._run is None or self._run.offline

    def start(self, run: RunInfo) -> None:
        """Open the W&B run, or an offline one without an account or a server."""
        os.environ.setdefault("WANDB_SILENT", "true")
        # W&B's usage statistics print errors when they can't be delivered.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        import wandb

        # An agent passes its run id to a process, which may execute other runs after this one.
        self._id = os.environ.pop("WANDB_RUN_ID", run.id)
        mode = self.mode
        if mode == "online" and not logged_in():
            mode = "offline"
        try:
            self._run = self._open(run, mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("W&B can't be reached (%s)", " ".join(str(error).split()))
            wandb.teardown()
            mode = "offline"
            self._run = self._open(run, mode)
        if mode == "offline":
            folder = self._run.settings.sync_dir
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
        summary = {
            "status": record["status"],
            "run_hash": record["run_hash"],
            **{f"final/{name}": value for name, value in record["metrics"].items()},
            **{f"final/validation/{name}": value for name, value in record["validation"].items()},
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
        folder = self._run.settings.sync_dir
        try:
            self._run.finish(exit_code=0 if record["status"] == "finished" else 1)
        except TimeoutError as error:
            raise TimeoutError(
                f"the server did not receive everything; to upload the rest: wandb sync {folder}"
            ) from error

    def _open(self, run: RunInfo, mode: str) -> "wandb.Run":
        import wandb

        own = wandb.setup().settings
        tags = own.run_tags or () if self.tags is None else self.tags
        opened = wandb.init(
            mode="offline" if mode == "offline" else "online",
            project=self.project or own.project or PROJECT,
            entity=self.entity,
            id=self._id,
            resume="allow" if run.resumed else None,
            name=own.run_name or run.name,
            group=self.group or own.run_group or run.group,
            tags=[*run.tags, *tags],
            job_type="train",
            dir=os.environ.get("WANDB_DIR", run.folder),
            config=command_line_keys(run.config),
            # Each job of a sweep in one process is a separate run.
            reinit="finish_previous",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=own.finish_timeout or FINISH_SECONDS,
                finish_timeout_raises=True,
                disable_git=True,
            ),
        )
        assert opened is not None
        return opened


def command_line_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config with the keys of the command line: ``group`` for its name, ``group.key``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = command_line_keys(value)
            flat |= {key if k == "name" else f"{key}.{k}": v for k, v in inner.items()}
        else:
            flat[key] = value
    return flat


def logged_in() -> bool:
    """Whether W&B has a key or token: in its settings, or stored by ``wandb login``."""
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
