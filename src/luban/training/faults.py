"""Points of a run at which a test can make it fail, addressed by name, step and rank."""

from __future__ import annotations

from collections.abc import Callable

POINTS = ("step", "gradients", "before-optimizer", "evaluate", "before-save", "after-save")


class Faults:
    """A plan of what goes wrong where; the empty plan costs one call per point.

    Example:
        >>> seen = []
        >>> faults = Faults({("step", 3, 0): lambda: seen.append("died")})
        >>> faults.reach("step", 2, 0); faults.reach("step", 3, 0); seen
        ['died']
    """

    def __init__(self, plan: dict[tuple[str, int, int], Callable[[], object]] | None = None) -> None:
        self._plan = plan or {}

    def reach(self, point: str, step: int, rank: int) -> None:
        """Say that the run is at `point`; carries out what the plan has for it."""
        if self._plan and (action := self._plan.get((point, step, rank))):
            action()


NO_FAULTS = Faults()
