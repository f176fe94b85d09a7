"""Turns pydantic's errors into messages: key, value, and what would be valid."""

from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from seven_exp.messages import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def faults_in(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line for each key with a fault, in the order of the schema."""
    found: dict[str, str] = {}
    for fault in error.errors():
        path = [part for part in fault["loc"] if isinstance(part, str) and _is_key(part)]
        # A union has an error for each of its branches; the first one stands for all.
        found.setdefault(".".join(path), _explain(fault, path, schema))
    return list(found.values())


def _explain(fault: "ErrorDetails", path: Sequence[str], schema: type[BaseModel]) -> str:
    key, value = ".".join(path), fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such key: {nearest(path[-1], _keys(schema, path[:-1]))}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    limits = fault.get("ctx", {})
    words = fault["msg"].replace("Input should be", "it should be").partition(", unable")[0]
    if fault["type"] == "literal_error" and isinstance(value, str):
        choices = [c.strip("'") for c in limits["expected"].replace(" or ", ", ").split(", ")]
        words = nearest(value, choices)
    elif key == "sparsity":
        words = "choose a fraction of zeros from 0 up to, not including, 1, such as 0.9"
    elif key == "device":
        words = "choose auto, cpu, mps, cuda or cuda:N"
    elif "ge" in limits:
        words += f"; the nearest valid choice is {limits['ge']}"
    elif "constrained-int" in fault["loc"]:  # a branch of `Steps`
        words = "give an integer for steps, or a decimal up to 1 for a fraction of the training"
    return f"{key} is {value!r}: {words[0].lower() + words[1:]}"


def _is_key(part: str) -> bool:
    """Whether a part of pydantic's location is a key, not the name of a union's branch."""
    return part.isidentifier() and part not in {"int", "float", "constrained"}


def _keys(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        annotation = schema.model_fields[part].annotation
        # A section that may be null is a union.
        (section,) = (c for c in get_args(annotation) or (annotation,) if c is not NoneType)
        assert isinstance(section, type)
        schema = section
    return list(schema.model_fields)
