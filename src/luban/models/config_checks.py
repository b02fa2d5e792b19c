"""What the configurations of networks check: sizes, shares, and words out of a few."""

from __future__ import annotations

from collections.abc import Sequence

from luban.errors import InputError, nearest


def check_sizes(config: object, *names: str) -> None:
    """Refuse a field of `config` that is below 1.

    Raises:
        InputError: naming the first such field.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise InputError(f"{name} must be at least 1", received=getattr(config, name))


def check_shares(config: object, *names: str) -> None:
    """Refuse a field of `config`, a share of units to drop, that is not in [0, 1).

    Raises:
        InputError: naming the first such field.
    """
    for name in names:
        if not 0.0 <= getattr(config, name) < 1.0:
            raise InputError(f"{name} must be at least 0 and below 1", received=getattr(config, name))


def check_choice(config: object, name: str, allowed: Sequence[str]) -> None:
    """Refuse a field of `config` that is none of the `allowed` words.

    Raises:
        InputError: with the word that comes closest.

    Example:
        >>> from types import SimpleNamespace
        >>> check_choice(SimpleNamespace(cell="ltsm"), "cell", ("rnn", "lstm", "gru"))
        Traceback (most recent call last):
        luban.errors.InputError: cell is not one there is
          received: 'ltsm'
          fix:      did you mean lstm? There are rnn, lstm, gru
    """
    value = getattr(config, name)
    if value not in allowed:
        close = nearest(str(value), allowed)
        fix = (f"did you mean {close}? " if close else "") + f"There are {', '.join(allowed)}"
        raise InputError(f"{name} is not one there is", received=value, fix=fix)


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that does not divide into heads.

    Raises:
        InputError: naming both.
    """
    if width % heads:
        raise InputError(
            f"width is not a multiple of heads ({heads})", received=width, fix="change one of them"
        )
