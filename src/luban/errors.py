"""One family of errors. Each says what was received, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LubanError(Exception):
    """Base of every error luban raises on purpose.

    Arguments:
        message: what is wrong, in one sentence.
        received: the offending value, shown as it came.
        where: file, line, key or step.
        fix: what the user can do about it.

    Example:
        >>> print(LubanError("not a number", received="ten", where="a.yaml:3", fix="write 10"))
        not a number
          where:    a.yaml:3
          received: 'ten'
          fix:      write 10
    """

    exit_code = 1

    def __init__(
        self, message: str, *, received: object = None, where: object = None, fix: str | None = None
    ) -> None:
        self.message, self.received, self.where, self.fix = message, received, where, fix
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        if self.where is not None:
            lines.append(f"  where:    {self.where}")
        if self.received is not None:
            shown = _shown(self.received)
            lines.append(f"  received: {shown if len(shown) <= 300 else shown[:300] + '...'}")
        if self.fix is not None:
            lines.append(f"  fix:      {self.fix}")
        return "\n".join(lines)


class InputError(LubanError):
    """What the user gave is wrong: a path, an option, a file. The command ends with exit code 2."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe, or an override of it, says something it may not say."""


class DataError(InputError):
    """A row or a file of the user's data cannot be used, and the policy is to stop."""


class MissingExtra(InputError):  # noqa: N818  (what is missing, not an error of code)
    """An optional dependency is needed and absent; the message names the extra to install.

    Example:
        >>> print(MissingExtra("pyarrow", extra="data", purpose="read .parquet files"))
        pyarrow is needed to read .parquet files
          fix:      pip install 'luban[data]'
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{package} is needed to {purpose}", fix=f"pip install 'luban[{extra}]'")


class CheckpointError(LubanError):
    """A checkpoint is absent, torn or altered."""


class StorageError(LubanError):
    """A durable write failed: disk full, no permission, device error. What was there before is intact."""


class NonFiniteError(LubanError):
    """A loss or a gradient is NaN or infinite; the step was not applied."""


class OutOfMemory(LubanError):  # noqa: N818  (what happened, as torch names it)
    """There was not enough memory for what was to be done; the step was not applied."""


class Stopped(LubanError):  # noqa: N818  (asked for, not an error)
    """A signal asked the run to stop; a checkpoint was written and the run can go on."""

    exit_code = 75


def _shown(value: object) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes, lists without end
        return f"a {type(value).__name__} too long to show"


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word most like `word`, or None when nothing is close.

    Example:
        >>> nearest("lerning_rate", ["batch", "learning_rate"])
        'learning_rate'
        >>> nearest("zzz", ["batch"]) is None
        True
    """
    return next(iter(difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)), None)
