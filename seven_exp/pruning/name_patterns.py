"""Name patterns: a plain name means one module or parameter, a pattern all that it matches."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from seven_exp.messages import nearest


def matches(name: str, pattern: str) -> bool:
    """Whether a name pattern matches a parameter, or a module that holds it.

    Args:
        name: A parameter's full name, such as "layer1.0.conv1.weight".
        pattern: Matched against that name and the full name of each module that contains it.
            Without ``*``, ``?`` and ``[`` it must equal such a name: "conv1" does not match
            "layer1.0.conv1.weight", "*.conv1" does.
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def check_patterns(key: str, patterns: Iterable[str], names: Sequence[str], what: str) -> None:
    """Raise ValueError, with what to type instead, if a pattern matches none of the names.

    Args:
        key: The keyword that the patterns were given for, such as "exclude".
        patterns: Name patterns.
        names: Full names of parameters.
        what: What the names stand for, such as "parameter of the model".
    """
    for pattern in patterns:
        if any(matches(name, pattern) for name in names):
            continue
        deeper = f"*.{pattern}"
        places = {name for name in names if matches(name, deeper)}
        if places:
            hint = f"'{deeper}' matches {len(places)}, such as {min(places)}"
        else:
            every = _modules(names)
            close = get_close_matches(pattern, every, n=1, cutoff=0.5)
            hint = nearest(pattern, close or {name.split(".")[0] for name in every})
        raise ValueError(f"{key} pattern '{pattern}' matches no {what}: {hint}")


def _modules(names: Iterable[str]) -> list[str]:
    """Full names of parameters and of all modules that contain them, in order, each once."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[:end]): None for end in range(1, len(parts) + 1)}
    return list(found)
