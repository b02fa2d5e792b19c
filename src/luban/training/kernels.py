"""Whether a run trains by luban's own kernels: chosen before step 1 and kept, for the last bits depend on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from luban.errors import RecipeError
from luban.kernels import Library, NoKernelsError, find
from luban.recipe import TrainRecipe


def choose_kernels(settings: TrainRecipe, model: nn.Module) -> tuple[Library | None, str]:
    """Return the kernels a new run uses, or None, and why, in a few words.

    Raises:
        RecipeError: the recipe asks for them, and they cannot be had.
    """
    why = _why_not(settings, model)
    if why is None:
        try:
            return find(), "asked for" if settings.kernels == "on" else "this network takes them"
        except NoKernelsError as error:
            why = str(error)
    if settings.kernels == "on":
        raise _cannot(why)
    return None, why


def kernels_expected(settings: TrainRecipe) -> bool:
    """Return whether a network that takes kernels would train by them here, before there is a network."""
    if settings.kernels == "off" or settings.compile == "on" or torch.cuda.is_available():
        return False
    try:
        find()
    except NoKernelsError:
        return False
    return True


def kernels_again(settings: TrainRecipe, tell: Callable[[str], None]) -> Library | None:
    """Return the kernels for a run that began with them, or None, and say so, where they are gone.

    Raises:
        RecipeError: the recipe asks for them.
    """
    try:
        return find()
    except NoKernelsError as error:
        if settings.kernels == "on":
            raise _cannot(str(error)) from error
        tell(f"the run began with kernels, and now {error}: results may differ in the last bits")
        return None


def _cannot(why: str) -> RecipeError:
    mend = "install gcc, or set" if "gcc" in why else "set"
    return RecipeError(f"train.kernels: {why}", received="on", fix=f"{mend} train.kernels to auto")


def _why_not(settings: TrainRecipe, model: nn.Module) -> str | None:
    if settings.kernels == "off":
        return "asked for"
    if settings.kernels == "auto" and settings.compile == "on":
        return "it is compiled instead"
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return "they are for a CPU"
    if not any(getattr(module, "takes_kernels", False) for module in model.modules()):
        return "no part of this network takes them"
    return None
