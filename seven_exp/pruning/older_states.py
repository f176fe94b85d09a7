"""Converts the states that older versions saved."""

from collections.abc import Mapping
from typing import Any

from seven_exp.pruning.schedules import Gradual


def translated(state: Mapping[str, Any], window: Gradual | None) -> dict[str, Any]:
    """A pruner's state with the present names of its score's tensors and numbers.

    RigL's score was called "gradient", and soft movement kept "rise", a function of the progress.

    Args:
        state: Returned by `Pruner.state_dict` of this or an older version.
        window: The pruner's window in this state.
    """
    tensors, numbers = dict(state["state"]), dict(state["numbers"])
    if state["name"] == "rigl" and "gradient" in tensors:
        tensors["score"] = tensors.pop("gradient")
    if numbers.pop("rise", None) is not None and window is not None:
        latest = next(t for t in reversed(range(state["step"])) if window.updates(t))
        numbers |= {"progress": window.progress(latest)}
    return {**state, "state": tensors, "numbers": numbers}
