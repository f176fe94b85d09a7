"""Turns the config that Hydra composed into typed values."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from seven_exp.config.errors import ConfigError
from seven_exp.config.faults import faults_in
from seven_exp.config.schema import RunConfig

DIGITS = 15
"""Significant digits of a number: as many as every float can represent, to remove rounding noise.

A range such as ``range(0.1,0.5,0.1)`` gives 0.30000000000000004 where 0.3 is meant.
"""


def parse(values: Mapping[str, Any]) -> RunConfig:
    """The composed config, resolved, as typed values.

    Raises:
        ConfigError: Keys or values are not valid; the message names each one and the nearest valid
            choice.
    """
    values = {key: _plain(value, key) for key, value in values.items()}
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*faults_in(error, RunConfig)) from None
    if faults := list(_truths_as_numbers(values, config.model_dump())):
        raise ConfigError(*faults)
    return config


def _plain(value: Any, key: str) -> Any:
    """A value without the rounding noise of its numbers.

    Raises:
        ConfigError: An integer does not fit into 64 bits.
    """
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, key) for v in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key} is too large an integer: choose one that fits into 64 bits")
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _truths_as_numbers(
    written: Mapping[str, Any], read: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Find values of true or false where a number is expected: pydantic reads them as 1 and 0."""
    for key, value in written.items():
        if isinstance(value, Mapping):
            yield from _truths_as_numbers(value, read[key], f"{prefix}{key}.")
        elif isinstance(value, bool) and not isinstance(read[key], bool):
            yield f"{prefix}{key} is {value}: it should be a number, not true or false"
