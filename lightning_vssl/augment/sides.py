"""Mirrored clips and classes that tell left from right do not go together."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class HasSides(Protocol):
    """A data module that says whether its classes tell left from right."""

    handed: bool


@runtime_checkable
class Mirrors(Protocol):
    """Makes views, and mirrors a clip with this probability."""

    flip: float


def check_sides(augment: nn.Module | None, data: object) -> None:
    """Refuses to learn classes that tell left from right from mirrored clips.

    Whatever learns from labels asks this before it trains. Learning without them may mirror.

    Args:
        augment: Makes the views of training; what does not mirror passes.
        data: The data module; one that says nothing of sides passes.

    Raises:
        ValueError: If clips are mirrored and the classes tell left from right.
    """
    if not isinstance(data, HasSides) or not data.handed:
        return
    for part in augment.modules() if augment is not None else ():
        if isinstance(part, Mirrors) and part.flip > 0:
            raise ValueError(
                f"flip={part.flip:g}: {type(part).__name__} mirrors clips, and the classes of "
                f"{type(data).__name__} tell left from right; set flip to 0 (augment's init_args "
                "in a recipe, --model.augment.flip 0)"
            )
