"""Ray as a Hydra launcher: each job of a sweep is a Ray task.

The public plugin, hydra-ray-launcher 1.2, requires boto3, Ray's dashboard and an old cloudpickle,
and one process that dies ends its whole sweep. Here only that job fails.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from seven_exp.config import ConfigError

STORE_BYTES = 100_000_000
"""Size of Ray's shared memory; jobs exchange only a config and a number."""

ATTEMPTS = 3
"""Attempts to start Ray, which allows itself 30 seconds; a busy machine may need longer."""


class RayLauncher(Launcher):
    """Runs jobs as Ray tasks, in the folder where the sweep was started.

    Args:
        address: Address of a running cluster, or "auto"; None starts Ray on this machine.
        num_cpus: CPUs for a Ray started here; None for all.
        cpus_per_job: CPUs reserved for a job, and its number of threads.
        gpus_per_job: GPUs reserved for a job; a fraction shares a GPU.
        max_retries: How often to restart a job whose process died.
    """

    def __init__(
        self,
        address: str | None,
        num_cpus: int | None,
        cpus_per_job: float,
        gpus_per_job: float,
        max_retries: int,
    ) -> None:
        self.address, self.num_cpus = address, num_cpus
        self.options = {
            "num_cpus": cpus_per_job,
            "num_gpus": gpus_per_job,
            "max_retries": max_retries,
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs and wait for them; a job whose process died for good counts as failed."""
        ray = self._ray()
        setup_globals()
        run = ray.remote(**self.options)(_run)
        # Once for all jobs: the sweep's folder has the time of day in its name.
        shared = ray.put((self.context, self.config, self.task, Singleton.get_state(), Path.cwd()))
        jobs = [
            run.remote(shared, list(overrides), number)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        returns = []
        for job, overrides in zip(jobs, job_overrides, strict=True):
            try:
                returns.append(ray.get(job))
            except ray.exceptions.RayError as error:
                lost = JobReturn(overrides=overrides, status=JobStatus.FAILED)
                lost.return_value = error
                returns.append(lost)
        return returns

    def _ray(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError("hydra/launcher=ray needs Ray: uv sync --extra ray") from error
        if ray.is_initialized():
            return ray
        if self.address is not None:
            ray.init(address=self.address, logging_level=logging.ERROR)
            return ray
        for attempt in range(ATTEMPTS):
            try:
                ray.init(
                    num_cpus=self.num_cpus,
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    logging_level=logging.ERROR,
                )
                break
            except Exception as error:
                if "timed out" not in str(error) or attempt == ATTEMPTS - 1:
                    raise
                ray.shutdown()
        return ray


def _run(shared: tuple[Any, ...], overrides: list[str], number: int) -> JobReturn:
    """Run one job in a Ray process."""
    context, config, task, singletons, folder = shared
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(singletons)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = f"{job.hydra.job.name}_{number}"
        job.hydra.job.num = number
    HydraConfig.instance().set_config(job)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
