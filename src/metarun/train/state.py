"""All that changes while a run trains, and what of it goes into a checkpoint: every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from metarun.types import BUFFERS, Meta

OuterMemory = dict[str, list[Tensor]]
"""What one transform of the outer step remembers from step to step."""


@dataclass
class State:
    """All that changes while a run trains. A new field is saved and restored without further code."""

    meta: Meta
    optimizer: Optimizer
    outer: list[OuterMemory] = field(default_factory=list)  # one for each transform of train.outer
    step: int = 0
    validated: int = -1  # the step last validated, so that a resumed run does not validate it again
    best: tuple[float, int] | None = None  # score and step
    total_s: float = 0.0
    train_s: float = 0.0  # without validation, saving and start-up

    def saved(self) -> dict[str, object]:
        """The fields as a checkpoint holds them."""
        return {name: v.state_dict() if isinstance(v, Optimizer) else v for name, v in vars(self).items()}

    def restore(self, content: Mapping[str, object]) -> None:
        """Fills this state from `saved` fields. Tensors are filled in place, so the optimizer keeps pointing at them.

        The settings of the optimizer stay as they are: they follow from the configuration and from the device.
        A field that the checkpoint does not have yet keeps its value.
        """
        for name, value in vars(self).items():
            if name not in content:
                continue
            if isinstance(value, Optimizer):
                before = content[name]
                assert isinstance(before, dict), f"{name} is a {type(before)}"
                value.load_state_dict({**before, "param_groups": value.state_dict()["param_groups"]})
            elif isinstance(value, dict | list):
                _fill(value, content[name])
            else:
                setattr(self, name, content[name])


def _fill(places: object, values: object) -> None:
    """Copies a tree of tensors into the tensors of another one."""
    if isinstance(places, Tensor):
        assert isinstance(values, Tensor), f"a {type(values)} for a tensor"
        places.copy_(values)
    elif isinstance(places, dict):
        assert isinstance(values, dict), f"a {type(values)} for a dict"
        for name, place in places.items():
            _fill(place, values[name])
    else:
        assert isinstance(places, list), f"a {type(places)} in a state"
        assert isinstance(values, list), f"a {type(values)} for a list"
        for place, value in zip(places, values, strict=True):
            _fill(place, value)


def learned(meta: Meta) -> list[Tensor]:
    """All tensors that are learned by gradient, in one fixed order."""
    return [value for group, params in meta.items() if group != BUFFERS for value in params.values()]
