"""A quick start: torch's compiler, as large as torch itself, is loaded when something is compiled and not before."""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER, SHAPES = "torch._dynamo", "torch.fx.experimental.symbolic_shapes"


class Postponed(ModuleType):
    """In place of a module until more is asked of it than what does nothing outside compiled code.

    Every optimizer and every torch.func.grad asks a little of the compiler, every vjp a little of its shapes, and so
    would import all of both (1.5 s after torch's 1.7); anything else, a submodule or torch.compile, loads the module.
    """

    __path__: Any  # no value, so that looking for a submodule comes to __getattr__

    def __init__(self, name: str, known: dict[str, Any]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # every import statement looks here
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (name != "__path__" or self.__name__ != COMPILER):  # of the two, the package
            raise AttributeError(name)  # inspect looks through all modules for their files
        return getattr(self.real(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A submodule is put into the package by way of what was found before it was loaded."""
        super().__setattr__(name, value)
        there = sys.modules.get(self.__name__)
        if there is not None and there is not self:
            setattr(there, name, value)

    def real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)
        return importlib.import_module(self.__name__)


def load_torch() -> None:
    import torch.fx.experimental  # torch first, for what it may want of its compiler while it is loaded itself

    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = Postponed(COMPILER, of_compiler())
    if SHAPES not in sys.modules:
        shapes = Postponed(SHAPES, {})
        shapes.__dict__.update(of_shapes(shapes))
        sys.modules[SHAPES] = shapes
        torch.fx.experimental.symbolic_shapes = shapes


def load_compiler() -> None:
    """For good, before a part of it is asked for by name, which would be loaded a second time."""
    for name in (COMPILER, SHAPES):
        module = sys.modules.get(name)
        if isinstance(module, Postponed):
            module.real()


def of_compiler() -> dict[str, Any]:
    def graph_break() -> None:
        """Where a compiled function would be cut."""

    def disable(function: Any, *_: Any, **__: Any) -> Any:
        """Nothing compiled calls an optimizer here."""
        return function

    return {"graph_break": graph_break, "disable": disable, "compiled_autograd": SimpleNamespace(_disable=nullcontext)}


def of_shapes(shapes: Postponed) -> dict[str, Any]:
    """Of sizes that are numbers; symbols are for the module itself."""

    def sym_eq(x: Any, y: Any) -> Any:
        plain = type(x) is type(y) and isinstance(x, tuple) and all(type(size) is int for size in (*x, *y))
        return x == y if plain else shapes.real().sym_eq(x, y)

    def expect_true(fact: Any, skip: int = 0) -> Any:
        return fact if isinstance(fact, bool) else shapes.real().expect_true(fact, skip + 1)

    return {"sym_eq": sym_eq, "expect_true": expect_true}
