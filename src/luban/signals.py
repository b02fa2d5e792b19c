"""Stopping well: a signal asks, the work saves at its next safe point and stops; a second stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from luban.errors import Stopped

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Start processes within the block that never see the signals that ask for a stop.

    A terminal sends Ctrl-C to every process of the command, and a scheduler SIGTERM; the process that started
    the others decides what it means. A mask is inherited, so there is no moment at which they would die of one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequest:
    """Whether somebody asked this process to stop, and how.

    Example:
        >>> request = StopRequest()
        >>> request.requested
        False
        >>> request.ask("a test")
        >>> request.requested, request.reason
        (True, 'a test')
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._at_once = False

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """Ask for a stop."""
        self.reason = reason

    def check(self) -> None:
        """Raise `Stopped` when a stop was asked for; called between pieces of work that save nothing."""
        if self.reason is not None:
            raise Stopped(f"stopped by {self.reason}")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the first signal raise `Stopped` within the block: work that is long and has nothing to save."""
        self.check()
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Answer SIGINT, SIGTERM, SIGHUP and SIGUSR1 within the block. Only the main thread can.

        A SIGHUP that is ignored stays so: the run was started with nohup, to outlive its terminal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def asked(number: int, frame: FrameType | None) -> None:
            del frame
            name = signal.Signals(number).name
            if self.reason is not None:
                # A person who asks twice means now; checkpoints are atomic, so nothing is torn.
                raise Stopped(f"stopped at once by a second {name}")
            self.ask(name)
            if self._at_once:
                self.check()

        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        answered = [number for number in ASKING if not (ignored and number is signal.SIGHUP)]
        before = {number: signal.signal(number, asked) for number in answered}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
