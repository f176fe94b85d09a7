"""Compares a run that was repeated with its record: software, machine, and every figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seven_exp.runs import provenance
from seven_exp.runs.artifacts import FINAL, MASKS


@dataclass(frozen=True)
class Figure:
    """A number of a record, and of its repetition; None where one has none."""

    name: str
    then: float | None
    now: float | None

    @property
    def difference(self) -> float | None:
        """Now minus then."""
        return None if self.then is None or self.now is None else self.now - self.then


def changes(record: Mapping[str, Any], device: str) -> list[str]:
    """What differs between the record's software and machine and the present ones, in words.

    Args:
        record: As in ``results.json``.
        device: Name of the computing device of a repetition.
    """
    now = provenance.provenance(device)
    then = {**record, **{f"version of {k}": v for k, v in (record.get("versions") or {}).items()}}
    now |= {f"version of {k}": v for k, v in now["versions"].items()}
    keys = [key for key in then if key.startswith("version of ")]
    for key in keys:
        # What a run imports later is installed.
        now.setdefault(key, provenance.installed(key.removeprefix("version of ")))
    found = []
    for key in [*keys, "device", "processor", "git"]:
        old, new = then.get(key), now.get(key)
        if old is not None and old != new:
            found.append(f"{key}: {old} then, {new or 'none'} now")
    if str(record.get("git")).endswith("+dirty"):
        found.append("git: files differed from the commit, and the record does not hold them")
    return found


def figures(record: Mapping[str, Any], again: Mapping[str, Any]) -> list[Figure]:
    """The final metrics, the sparsity and the number of kept weights of both."""
    then, now = record["metrics"], again["metrics"]
    names = [*then, *(name for name in now if name not in then)]
    keys = ("sparsity", "params_nonzero")
    return [
        *(Figure(name, then.get(name), now.get(name)) for name in names),
        *(Figure(key, record.get(key), again.get(key)) for key in keys),
    ]


def same_tensors(then: Path, now: Path) -> dict[str, bool]:
    """Whether masks and weights in two folders agree to the bit; without files that one lacks.

    The files themselves may differ: safetensors stores its metadata in no fixed order.
    """
    pairs = {"masks": MASKS, "weights": FINAL}
    return {
        what: _contents(then / name) == _contents(now / name)
        for what, name in pairs.items()
        if (then / name).is_file() and (now / name).is_file()
    }


def verdict(found: Sequence[Figure], same: Mapping[str, bool]) -> str:
    """Whether a repetition agrees with its record, in a sentence.

    Args:
        found: Of `figures`.
        same: Of `same_tensors`.
    """
    words = ", ".join(f"{what} {'identical' if one else 'different'}" for what, one in same.items())
    words = words or "no masks or weights to compare"
    unequal = [figure.name for figure in found if figure.then != figure.now]
    if unequal:
        return f"not reproduced to the bit: {', '.join(unequal)} differ ({words})"
    if not all(same.values()):
        return f"not reproduced to the bit: the same figures, but {words}"
    return f"reproduced: every figure is the same ({words})"


def _contents(path: Path) -> dict[str, tuple[str, bytes]]:
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {
        name: (f"{t.dtype} {tuple(t.shape)}", t.flatten().view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }
