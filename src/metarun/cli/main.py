"""The command line: the first bare word is a verb, all else goes to it. Heavy imports wait until they are needed."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout

from metarun import __version__
from metarun.config.places import groups
from metarun.errors import ConfigError, RunError, nearest
from metarun.torch_setup.lazy_compiler import load_torch
from metarun.torch_setup.torchrun import speaks_for_all

VERBS = {
    "run": "make one run; the default",
    "show": "print the composed, checked configuration and where each value comes from; run nothing",
    "data": "list | fetch NAME | check NAME: the data sets there are; get one; read all of one and count",
    "test": "RUN_DIR: meta-test the run's best checkpoint again, with other episodes, tasks or data",
}
HELP_WIDTH = 100  # columns

USAGE = """\
metarun: meta-learning experiments. Composes data, N-way/K-shot task, algorithm, model and optimizer
out of YAML; meta-trains, meta-validates, meta-tests; tracks everything; goes on where it was stopped.

  metarun [VERB] [KEY=VALUE ...]          a single run
  metarun -m KEY=V1,V2 ...                a sweep: every combination, one run directory each

Verbs
{verbs}

Groups: choose a file with GROUP=NAME, set a value inside with GROUP.KEY=VALUE
{groups}
  other keys    seed=0  device=auto  devices=auto  allocator=auto  tf32=false  execution_from=null  out=outputs

Examples
  metarun                                 MAML on the built-in characters
  metarun algo=protonet task=20w5s        another algorithm, another task
  metarun data=sine algo=metasgd          regression
  metarun show algo=anil train.steps=2000
  metarun data list                       what there is, and what is on this machine
  metarun test outputs/glyphs-5w1s/maml-xxxxxxxx/seed0 eval.test_episodes=5000

Flags: -m --multirun | --version | -h --help | -sc install=bash (shell completion: eval "$(metarun -sc install=bash)")
"""
HIDDEN = ("tuned", "experiment")  # shown when there is something in them


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help") for word in words):
        print(usage(), end="")
        return 0
    if "--version" in words:
        print(f"metarun {__version__}")
        return 0
    try:
        with nullcontext() if speaks_for_all() else _silenced():
            return _run_verb(words)
    except (ConfigError, RunError) as error:
        if speaks_for_all():
            print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("metarun: stopped before anything was started", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and error.strerror is None:
            raise
        print(f"metarun: {error.filename or 'system'}: {error.strerror}", file=sys.stderr)
        return 1


@contextmanager
def _silenced() -> Iterator[None]:
    """Context manager: what is printed inside goes nowhere."""
    with open(os.devnull, "w") as void, redirect_stdout(void):
        yield


def console() -> None:
    """The installed command."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # An orderly exit takes torch half a second, after Ctrl-C too, and never ends if a thread of W&B hangs. All files
    # are closed by now, so the process may end at once, unless W&B still has something to send.
    if LOST or code > 128 or "wandb" not in sys.modules:
        os._exit(code)
    sys.exit(code)


LOST: list[str] = []  # run directories whose W&B thread hangs


def _run_verb(words: list[str]) -> int:
    if words and words[0] in ("-sc", "--shell-completion"):
        from metarun.config.compose import complete_shell

        complete_shell(words[1:])
        return 0
    verb = words.pop(0) if words and _is_verb(words[0]) else "run"
    if verb not in VERBS:
        raise ConfigError(
            f"{verb}: no such verb{nearest(verb, VERBS)} ({', '.join(VERBS)}); values are set as KEY=VALUE"
        )
    many = [word for word in words if word in ("-m", "--multirun")]
    words = [word for word in words if word not in many]
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: no such flag; metarun --help lists them")
    if many and verb != "run":
        raise ConfigError(f"{many[0]}: a sweep is of runs, not of {verb}")
    if verb == "data":
        from metarun.cli.data import data

        return data(words)
    if sys.stdout.isatty():
        print("loading torch ...", end="\r", flush=True)  # seconds; the next line covers it
    load_torch()
    if verb == "show":
        from metarun.cli.show import show

        return show(words)
    if verb == "test":
        from metarun.cli.test import test

        return test(words)
    from metarun.cli.run import run, run_many

    return run_many(words, LOST) if many else run(words, LOST)


def _is_verb(word: str) -> bool:
    return word.replace("-", "").replace("_", "").isalnum() and not word.startswith("-")


def usage() -> str:
    verbs = "\n".join(f"  {name:<13} {text}" for name, text in VERBS.items())
    shown = {group: names for group, names in groups().items() if "/" not in group and group not in HIDDEN}
    shown |= {group: names for group, names in groups().items() if "/" in group}
    lines = [_wrapped_names(f"  {group:<13} ", names) for group, names in shown.items()]
    return USAGE.format(verbs=verbs, groups="\n".join(lines))


def _wrapped_names(head: str, names: list[str]) -> str:
    return textwrap.fill(
        "  ".join(names), HELP_WIDTH, break_on_hyphens=False, initial_indent=head, subsequent_indent=" " * len(head)
    )
