"""Keyword arguments of what a group names, checked against its signature.

Groups hold their own keys plus the keyword arguments of what they name (a criterion, a model, a
data set, an optimizer): a new one brings its own schema.
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
from seven_exp.registry import nearest


def check_arguments(
    group: str,
    name: str,
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    given: Collection[str] = (),
) -> None:
    """Check keyword arguments against a signature's names and annotations.

    Args:
        group: Of the config.
        name: What the function is registered as.
        function: It takes the group's keys as keyword-only arguments.
        arguments: The group's keys.
        given: Keyword-only arguments that come from elsewhere.

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
        # As JSON, since a list may stand for a tuple. Strict: the function gets what is written.
        schema.model_validate_json(json.dumps(arguments), strict=True)
    except ValidationError as error:
        faults += [f"{group}.{fault}" for fault in faults_in(error, schema)]
    if faults:
        raise ConfigError(*faults)


@functools.cache
def _schema(name: str, function: Callable[..., Any], given: frozenset[str]) -> type[BaseModel]:
    """The keyword-only arguments of a function as a model of pydantic's."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in given
    }
    return create_model(name, __config__=RULES, **fields)
