"""A quick start: torch's compiler, as large as torch itself, is imported when something is compiled and not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

DYNAMO, SYMBOLIC_SHAPES = "torch._dynamo", "torch.fx.experimental.symbolic_shapes"


class LazyModule(ModuleType):
    """Stands in sys.modules for a module that is not imported yet. Any attribute except its stubs imports the module.

    Every optimizer and every torch.func.grad calls a few functions of torch._dynamo, and every vjp a few of
    symbolic_shapes, which do nothing outside compiled code. The stubs answer these calls; without them each would
    import all of both modules (1.5 s after torch's 1.7).
    """

    __path__: list[str]  # it has no value, so that the search for a submodule reaches __getattr__

    def __init__(self, name: str, stubs: Mapping[str, object]) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)  # every import statement reads it
        self.__dict__.update(stubs)

    def __getattr__(self, name: str) -> object:
        # `inspect` asks all modules for __file__ and the like. Of the two modules only the package has a __path__.
        if name.startswith("__") and (name != "__path__" or self.__name__ != DYNAMO):
            raise AttributeError(name)
        return getattr(self.real(), name)

    def __setattr__(self, name: str, value: object) -> None:
        """Sets it on the imported module too: an import system that found us first puts a submodule here."""
        super().__setattr__(name, value)
        imported = sys.modules.get(self.__name__)
        if imported is not None and imported is not self:
            setattr(imported, name, value)

    def real(self) -> ModuleType:
        """The module itself, imported now if it was not."""
        if sys.modules.get(self.__name__) is self:
            sys.modules.pop(self.__name__, None)
        return importlib.import_module(self.__name__)


def load_torch() -> None:
    """Imports torch without its compiler."""
    import torch.fx.experimental  # before the stubs: torch may need the compiler itself while it is imported

    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = LazyModule(DYNAMO, _dynamo_stubs())
    if SYMBOLIC_SHAPES not in sys.modules:
        shapes = LazyModule(SYMBOLIC_SHAPES, {})
        shapes.__dict__.update(_symbolic_shapes_stubs(shapes))
        sys.modules[SYMBOLIC_SHAPES] = shapes
        torch.fx.experimental.symbolic_shapes = shapes


def load_compiler() -> None:
    """Imports the compiler. Call it before an import of a part of it, which would otherwise be imported twice."""
    for name in (DYNAMO, SYMBOLIC_SHAPES):
        module = sys.modules.get(name)
        if isinstance(module, LazyModule):
            module.real()


def _dynamo_stubs() -> dict[str, object]:
    def graph_break() -> None:
        """Where compiled code would be cut: there is none."""

    def disable(function: Callable[..., object], *_: object, **__: object) -> Callable[..., object]:
        """`function`, which is not compiled anyway."""
        return function

    return {"graph_break": graph_break, "disable": disable, "compiled_autograd": SimpleNamespace(_disable=nullcontext)}


def _symbolic_shapes_stubs(shapes: LazyModule) -> dict[str, object]:
    """For sizes that are numbers; symbolic ones import the module."""

    def sym_eq(x: object, y: object) -> object:
        same_type = type(x) is type(y)
        if same_type and isinstance(x, tuple) and isinstance(y, tuple) and all(type(n) is int for n in (*x, *y)):
            return x == y
        return shapes.real().sym_eq(x, y)

    def expect_true(fact: object, skip: int = 0) -> object:
        return fact if isinstance(fact, bool) else shapes.real().expect_true(fact, skip + 1)

    return {"sym_eq": sym_eq, "expect_true": expect_true}
