"""Zero-shot accuracies of a finished run's or an export's model."""

from pathlib import Path
from typing import Any

from seven_exp.config import ConfigError, Evaluation, faults_of_the_user
from seven_exp.export.exporting import is_export, load
from seven_exp.runs.restore import restore
from seven_exp.tasks import LanguageModelling
from seven_exp.tracking import write_json
from seven_exp.training.compute import Compute
from seven_exp.training.harness import Harness, metrics_of
from seven_exp.training.world import device_of

SCHEMA = 1
"""Version of the schema of harness.json."""


def evaluate_tasks(
    folder: Path, section: Evaluation, device: str, *, trust_plugins: bool = False
) -> tuple[dict[str, Any], Path]:
    """Accuracies of a language model, in ``harness.json``.

    Args:
        folder: Folder of a run or an export.
        section: The tasks.
        device: As in the config.
        trust_plugins: Whether to run the plugins that the folder's record names.

    Returns:
        The content of the file, and its path.

    Raises:
        ConfigError: A task or the folder can't be used, or there is no such device.
        OSError: The file can't be written.
    """
    place = device_of(device)
    with faults_of_the_user():
        harness = Harness.of(section)
        source = (load if is_export(folder) else restore)(folder, trust_plugins=trust_plugins)
        if not isinstance(source.data.task, LanguageModelling):
            raise ConfigError(f"'{folder}' holds no language model: tasks are for these")
        compute = Compute(place, source.config.trainer.precision, source.data.task)
        tokenizer = source.config.dataset.arguments["tokenizer"]
        found = harness.evaluate(source.model.to(place), tokenizer, compute)
    facts = {
        "schema": SCHEMA,
        "source": str(folder),
        "metrics": metrics_of(found),
        "harness": found,
        "departures": list(harness.departures),
    }
    path = folder / "harness.json"
    write_json(path, facts)
    return facts, path
