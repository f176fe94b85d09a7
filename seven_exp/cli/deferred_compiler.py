"""Defers torch's compiler until something is compiled: most runs never compile.

torch's optimizers, its operation counter and torchvision import ``torch._dynamo``, which takes
longer than torch itself, only to exempt their functions from compilation. Until something is
compiled, these functions need no exemption.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COMPILER, PARTS = "torch._dynamo", "torch._dynamo.utils"

_exempt: list[Callable[..., Any]] = []


def defer_compiler() -> None:
    """Put placeholders in ``sys.modules``, unless the compiler is imported already.

    Whatever else is asked of a placeholder imports the compiler and is answered by it.
    """
    if COMPILER in sys.modules:
        return
    whole, utils = _Placeholder(COMPILER), _Placeholder(PARTS)
    vars(whole).update(disable=_disable, graph_break=lambda *_, **__: None)
    vars(utils).update(
        is_compile_supported=lambda device: _real(PARTS).is_compile_supported(device)
    )
    sys.modules |= {COMPILER: whole, PARTS: utils}


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # Tools that list modules ask for their files; an import of a part asks for the path.
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _disable(fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    _exempt.append(fn)
    return fn


def _real(name: str) -> Any:
    if isinstance(sys.modules.get(COMPILER), _Placeholder):
        del sys.modules[COMPILER], sys.modules[PARTS]
        sys.meta_path.insert(0, _Imported())
        importlib.import_module(COMPILER)
        for function in _exempt:
            # torch stores the answer there, and asks again.
            with suppress(AttributeError):
                delattr(function, "__dynamo_disable")
        _exempt.clear()
    return importlib.import_module(name)


class _Imported:
    """Finds parts that the compiler has imported while a part of it was being looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = target is None and name.startswith(COMPILER) and name in sys.modules
        return ModuleSpec(name, self) if found else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """It has run."""
