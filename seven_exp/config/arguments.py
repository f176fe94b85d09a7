"""Checks keyword arguments of a named function or class against its signature.

A group holds its own keys and the keyword arguments of what it names (a criterion, a model, a data
set, an optimizer). So a new one defines its own schema.
"""

import functools
import inspect
import json
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from seven_exp.config.errors import ConfigError
from seven_exp.config.faults import faults_in
from seven_exp.config.schema import RULES
from seven_exp.messages import nearest


def check_arguments(
    group: str,
    name: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
) -> None:
    """Check keyword arguments against a signature's names and annotations.

    Args:
        group: Group of the config.
        name: Registered name of the function.
        function: Takes the group's keys as keyword-only arguments.
        arguments: The group's keys.
        given: Keyword-only arguments that the caller provides.

    Raises:
        ConfigError: Arguments are unknown, missing or of the wrong type.
    """
    schema = _schema(name, function, frozenset(given))
    known = schema.model_fields
    faults = []
    for key in arguments:
        if key not in known:
            hint = nearest(key, known) if known else "it takes none"
            faults.append(f"{group}.{key}: {name} has no such key: {hint}")
    try:
        # As JSON, because a list may stand for a tuple. Strict: the function gets the written
        # value.
        schema.model_validate_json(json.dumps(arguments), strict=True)
    except ValidationError as error:
        faults += [f"{group}.{fault}" for fault in faults_in(error, schema)]
    if faults:
        raise ConfigError(*faults)


@functools.cache
def _schema(name: str, function: Callable[..., Any], given: frozenset[str]) -> type[BaseModel]:
    """The keyword-only arguments of a function as a pydantic model."""
    typed = function.__init__ if inspect.isclass(function) else function
    hints = typing.get_type_hints(typed, include_extras=True)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in given
    }
    return create_model(name, __config__=RULES, **fields)
