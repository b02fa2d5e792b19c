"""torch.compile where it pays for itself, eager everywhere else.

The choice is made before step 1 from counted work and measured rates, and is kept in the run: compiled and
eager code round differently, so a resumed run must make the same choice to end with the same bytes.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from luban.errors import Stopped

_SECONDS_TO_COMPILE = 20.0
"""What compiling a decoder may take on two cores; 14 s were measured, 3 the second time (benchmarks/LOG.md)."""
SHARE_SAVED = 0.2
"""Share of the eager time that compiling saves: 0.03 to 0.47 were measured, by processor (benchmarks/README.md)."""


def seconds_to_compile(short_steps: int = 0) -> float:
    """Return what compiling may take: steps of two sizes are compiled one after the other.

    Example:
        >>> seconds_to_compile(), seconds_to_compile(short_steps=300)
        (20.0, 40.0)
    """
    return _SECONDS_TO_COMPILE * (2 if short_steps else 1)


def pays(expected_seconds: float, short_steps: int = 0) -> bool:
    """Whether compiling saves at least twice what it costs in a run expected to take so long when eager.

    Example:
        >>> pays(180.0), pays(300.0), pays(300.0, short_steps=99)
        (False, True, False)
    """
    return expected_seconds * SHARE_SAVED > 2 * seconds_to_compile(short_steps)


class Compiling:
    """Whether the model runs compiled.

    Repeated blocks (the members of each `nn.ModuleList`) are compiled, not the whole: the code of one serves
    all, so the cost does not grow with depth. They are compiled in place and keep their parameters' names.

    Arguments:
        model: what runs.
        wanted: the choice made before step 1.
        tell: told in one line when compiling fails and the run goes on in eager mode.
    """

    def __init__(self, model: nn.Module, *, wanted: bool, tell: Callable[[str], None]) -> None:
        self._regions = regions(model)
        self._on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        self._wanted, self._tell = wanted, tell

    def prepare(self, trial: Callable[[], object], agree: Callable[[bool], bool] = bool) -> None:
        """Compile, and run `trial` (forward and backward of a step of each size) to see that it works.

        A compiler that is missing or fails costs one line, not the run.

        Arguments:
            trial: talks to no other rank.
            agree: told whether this rank failed, says whether any did; all ranks compile, or none.
        """
        if not self._wanted:
            return
        why, stopped = None, None
        try:
            why = self._try(trial)
        except Stopped as error:
            stopped = error
        # The others wait for this rank's word, whatever became of it.
        failed = agree(why is not None or stopped is not None)
        if stopped is not None:
            raise stopped
        if failed:
            self._give_up(why or "it failed on another rank")

    def _try(self, trial: Callable[[], object]) -> str | None:
        """Return why compiling failed, or None."""
        if self._on_cpu and not (shutil.which("g++") or shutil.which("clang++")):
            return "there is no C++ compiler"
        try:
            for region in self._regions:
                region.compile()
            with (
                _each_size_by_itself(),
                _without_trial_builds() if self._on_cpu else contextlib.nullcontext(),
            ):
                trial()
        except Exception as error:
            if stopped := _stop_behind(error):
                raise stopped from None
            # Whatever a compiler raises, the run can go on without it; an error of the model comes again.
            return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return None

    def _give_up(self, why: str) -> None:
        self._wanted = False
        for region in self._regions:
            region._compiled_call_impl = None
        self._tell(f"compile is off: {why}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Run in eager mode within the block: other shapes would compile again."""
        compiled = [region._compiled_call_impl for region in self._regions]
        for region in self._regions:
            region._compiled_call_impl = None
        try:
            yield
        finally:
            for region, call in zip(self._regions, compiled, strict=True):
                region._compiled_call_impl = call

    def state(self) -> dict[str, Any]:
        """Return the choice, for a checkpoint."""
        return {"on": self._wanted}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over the choice of the run that goes on."""
        self._wanted = bool(state["on"])


def _each_size_by_itself() -> contextlib.AbstractContextManager[object]:
    """Let torch's compiler make code for a second size as it did for the first, not one slower code for any size."""
    from torch._dynamo import config

    patched: contextlib.AbstractContextManager[object] = config.patch({"automatic_dynamic_shapes": False})
    return patched


def _without_trial_builds() -> contextlib.AbstractContextManager[object]:
    """Let torch's compiler believe the processor, where nobody told it otherwise (TORCHINDUCTOR_VEC_ISA_OK).

    Left to itself it first builds and loads a library with its own headers for each set of vector instructions that
    the processor names: a third of a first compile. What it checks besides (bfloat16, VNNI, AMX) it still does.
    """
    from torch._inductor import config

    own = config.cpp.vec_isa_ok
    patched: contextlib.AbstractContextManager[object] = config.patch(
        {"cpp.vec_isa_ok": True if own is None else own}
    )
    return patched


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """Return the `Stopped` that a signal raised within the compiler, which wraps whatever it meets."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def regions(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model, or the model itself when it repeats nothing.

    Example:
        >>> blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> len(regions(nn.Sequential(nn.Linear(1, 2), blocks)))
        2
    """
    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    return blocks or [model]
