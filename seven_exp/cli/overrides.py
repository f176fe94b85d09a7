"""Overrides as Hydra's grammar takes them, and presets of our own before those of plugins."""

import re
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

NO_NAME = re.compile(r"(?i:true|false|nan|[-+]?(inf|\.?\d[\d_]*(\.[\d_]*)?(e[-+]?\d+)?))")
"""What Hydra's grammar takes for a number or a truth value."""


def for_hydra(argument: str, config_dir: Path) -> str:
    """An argument of the command line in Hydra's grammar."""
    return _named(_expanded(argument), config_dir)


def prefer_own_presets(config_dir: Path) -> None:
    """Let a file below ``conf/hydra`` take the place of what a plugin has under the same name.

    Hydra would mix the two, with a warning, or refuse to.
    """
    Plugins.instance()  # imports them all
    for path in (config_dir / "hydra").glob("*/*.yaml"):
        group = ConfigStore.instance().repo["hydra"].get(path.parent.name, {})
        group.pop(path.name, None)


def _expanded(argument: str) -> str:
    """``key=~/path`` as some shells would have passed it: Hydra's grammar has no ``~``."""
    match = re.fullmatch(r"([^-=][^=]*)=~(/[^,']*)?", argument)
    return f"{match[1]}='{Path.home()}{match[2] or ''}'" if match else argument


def _named(argument: str, config_dir: Path) -> str:
    """A group's value as a name: ``tracker=null`` is ``tracker=none``, ``pruner=0`` no number.

    Hydra ends in a traceback where a group's value is no string.
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
