"""What is imported for what: nothing heavy that is not used."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest

from support.runs import TINY

HEAVY = [
    "torch",
    "hydra",
    "rich",
    "numpy",
    "torchvision",
    "learn2learn",
    "wandb",
    "matplotlib",
    "scipy",
    "sympy",
    "PIL",
]
HEAVY += ["pyarrow", "pandas", "triton", "torch._inductor", "torch._dynamo.convert_frame", "torch.distributed.tensor"]
LOADED = "print('loaded:', *[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"


def imported(*lines: str) -> set[str]:
    """The heavy modules that are there after these lines."""
    code = "\n".join(["import sys", *lines, LOADED.format(heavy=HEAVY)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])


@functools.cache
def of_torch() -> set[str]:
    """What torch brings by itself."""
    return imported("import torch")


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_imports_nothing(word: str) -> None:
    assert imported("from metarun.cli.main import main", f"assert main([{word!r}]) == 0") == set()


def test_data_sets_are_listed_without_torch() -> None:
    assert imported("from metarun.cli.main import main", "assert main(['data', 'list']) == 0") <= {
        "hydra",
        "rich",
        "numpy",
    }


def test_show_has_torch_and_nothing_else() -> None:
    found = imported("from metarun.cli.main import main", "assert main(['show']) == 0")
    assert found <= of_torch() | {"hydra", "rich", "numpy"}


FIRST_STEP = """
from metarun.train.outer import OuterStep
from metarun.cli.main import main
class Seen(Exception): pass
step = OuterStep.__call__
def first_step(*values):
    step(*values)
    raise Seen
OuterStep.__call__ = first_step
try: main({words!r})
except Seen: pass
else: sys.exit("no step was made")
"""


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_a_run_comes_to_its_first_step_with_torch_and_nothing_else(engine: str) -> None:
    words = [*TINY, "algo=maml", f"engine={engine}"]
    assert imported(FIRST_STEP.format(words=words)) <= of_torch() | {"hydra", "rich", "numpy"}


POSTPONED = """
from metarun.torch_setup.lazy_compiler import load_torch
load_torch()
import torch
from torch.func import grad, vjp, vmap
weight = torch.ones(3, requires_grad=True)
optimizer = torch.optim.Adam([weight])
def f(x): return (x.sin() * x).sum()
weight.grad = vmap(grad(f))(torch.ones(2, 3)).sum(0)
vjp(f, weight)[1](torch.tensor(2.0))
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
import inspect, warnings
inspect.getmodule(f), [hasattr(module, "__warningregistry__") for module in list(sys.modules.values())]
assert "torch._dynamo.convert_frame" not in sys.modules
"""


def test_the_compiler_comes_late() -> None:
    assert imported(POSTPONED) <= of_torch() | {"numpy"}


@pytest.mark.parametrize(
    "use",
    [
        "compiled = torch.compile(grad(f), backend='eager', fullgraph=True)",
        *(
            pytest.param(use, marks=pytest.mark.slow)
            for use in (
                "import torch._dynamo.config\ncompiled = torch.compile(grad(f), backend='eager')",
                "import torch._inductor.config\ncompiled = torch._dynamo.optimize('eager')(grad(f))",
                "from metarun.torch_setup.lazy_compiler import load_compiler\nload_compiler()\n"
                "from torch._dynamo.utils import counters\ncompiled = torch.compile(grad(f), backend='eager')",
                "from torch.fx.experimental.symbolic_shapes import ShapeEnv\n"
                "compiled = torch.compile(f, backend='eager')",
            )
        ),
    ],
)
def test_the_compiler_comes_when_it_is_asked(use: str) -> None:
    lines = [POSTPONED, use, "x = torch.ones(2, 3)", "assert compiled(x).sum() in (grad(f)(x).sum(), f(x))"]
    lines += ["assert torch._dynamo is sys.modules['torch._dynamo']", "assert torch._dynamo.__file__"]
    lines += ["assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 1"]
    lines += ["weight.grad = grad(f)(weight)", "optimizer.step()", "torch.optim.SGD([weight], lr=1).zero_grad()"]
    assert "torch._dynamo.convert_frame" in imported(*lines)


@pytest.mark.slow
def test_the_compiler_that_is_there_already_stays() -> None:
    imported(
        "import torch._dynamo as before",
        "from metarun.torch_setup.lazy_compiler import load_torch",
        "load_torch()",
        "assert sys.modules['torch._dynamo'] is before",
    )
