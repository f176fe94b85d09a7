"""Registries of named things: pruners, models, data sets, schedules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from seven_exp.messages import nearest

T = TypeVar("T")

ADDED_BY: dict[tuple[str, str], str] = {}
"""(kind, name) -> plugin that registered the thing; the package's own things are not listed."""

_PLUGIN: ContextVar[str | None] = ContextVar("plugin", default=None)


@contextmanager
def adding(plugin: str) -> Iterator[None]:
    """Attribute everything that is registered inside the context to this plugin."""
    before = _PLUGIN.set(plugin)
    try:
        yield
    finally:
        _PLUGIN.reset(before)


def _origin(entry: object) -> list[tuple[str, str]]:
    """Module and name of a function or class, or of those inside a record."""
    things = (entry, *vars(entry).values())
    return [(x.__module__, x.__qualname__) for x in things if hasattr(x, "__qualname__")]


class Registry(Generic[T]):
    """A mapping from names to things of one kind, with errors for people."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a thing under ``name`` and returns it unchanged.

        Raises:
            ValueError: The name is taken by something else.
        """

        def add(entry: T) -> T:
            self.add(name, entry)
            return entry

        return add

    def add(self, name: str, entry: T) -> None:
        """Register ``entry`` under ``name``; it replaces an entry from the same source lines.

        This allows a notebook cell to run again after every change.

        Raises:
            ValueError: Something else has this name.
        """
        old = self._entries.get(name, entry)
        if old is not entry and _origin(old) != _origin(entry):
            raise ValueError(f"{self.kind} '{name}' is registered already")
        if name not in self._entries and (plugin := _PLUGIN.get()) is not None:
            ADDED_BY[self.kind, name] = plugin
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        """The thing registered under ``name``.

        Raises:
            ValueError: There is none; the message names the nearest valid choice.
        """
        if not isinstance(name, str):
            kind = type(name).__name__
            raise ValueError(f"the {self.kind} is a {kind}: give a name, {nearest('', self)}")
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} '{name}': {nearest(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
