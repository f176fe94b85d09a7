"""Converts arguments to Hydra's order and grammar; prefers own presets to those of plugins."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

NO_NAME = re.compile(r"(?i:true|false|nan|[-+]?(inf|\.?\d[\d_]*(\.[\d_]*)?(e[-+]?\d+)?))")
"""What Hydra's grammar parses as a number or a truth value."""

VALUED = {
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
}
"""Hydra's options that are followed by a value."""


def options_first(arguments: Sequence[str]) -> list[str]:
    """The options before the overrides: Hydra's parser takes overrides in one piece only."""
    options, overrides = [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            overrides.append(argument)
            continue
        options.append(argument)
        if argument in VALUED:
            options += islice(rest, 1)
    return [*options, *overrides]


def for_hydra(argument: str, config_dir: Path) -> str:
    """Convert a command-line argument to Hydra's grammar."""
    return _named(_expanded(argument), config_dir)


def prefer_own_presets(config_dir: Path) -> None:
    """Let a file below ``conf/hydra`` replace a plugin's file of the same name.

    Hydra would merge the two, with a warning, or raise an error.
    """
    Plugins.instance()  # imports them all
    for path in (config_dir / "hydra").glob("*/*.yaml"):
        group = ConfigStore.instance().repo["hydra"].get(path.parent.name, {})
        group.pop(path.name, None)


def _expanded(argument: str) -> str:
    """``key=~/path`` as some shells would expand it: Hydra's grammar has no ``~``."""
    match = re.fullmatch(r"([^-=][^=]*)=~(/[^,']*)?", argument)
    return f"{match[1]}='{Path.home()}{match[2] or ''}'" if match else argument


def _named(argument: str, config_dir: Path) -> str:
    """A group's value as a name: ``tracker=null`` is ``tracker=none``, ``pruner=0`` no number.

    Hydra ends with a traceback if a group's value is not a string.
    """
    group, equals, value = argument.partition("=")
    folder = config_dir / group.lstrip("+").partition("@")[0]
    if not folder.is_dir() and not group.lstrip("+").startswith("hydra/"):
        return argument
    none = "none" if (folder / "none.yaml").exists() else "'null'"
    words = (
        none if word == "null" else f"'{word}'" if NO_NAME.fullmatch(word) else word
        for word in re.split(r"([][(), ])", value)
    )
    return group + equals + "".join(words)
