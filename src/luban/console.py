"""What a person sees while a verb works: a live line on a terminal, plain lines elsewhere; always on stderr.

Results go to stdout, so that `--json` leaves there nothing but JSON.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from luban.wrapping import wrapped

PLAIN_SECONDS = 10.0
_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """Write a count with a unit prefix and three digits.

    Example:
        >>> short(1_536_000), short(812), short(93.4e9)
        ('1.54M', '812', '93.4G')
    """
    for size, unit in _UNITS:
        # What rounds up to the unit belongs to it: 999.9 thousand is 1M.
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def switches(plan: Mapping[str, Any]) -> str:
    """Say what a run is computed by, from its plan.json.

    Example:
        >>> switches({"kernels": False, "compile": True, "compile_why": "asked for"})
        'compile on (asked for)'
        >>> switches({"kernels": True, "compile": False, "compile_why": "kernels are as fast"})
        'kernels on, compile off'
    """
    if plan.get("kernels"):  # runs from before there were any say nothing of them
        return f"kernels on, compile {'on' if plan['compile'] else 'off'}"
    return f"compile {'on' if plan['compile'] else 'off'} ({plan['compile_why']})"


def duration(seconds: float) -> str:
    """Write a time as people say it.

    Example:
        >>> duration(8.2), duration(75), duration(7260)
        ('8 s', '1 min 15 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return "unknown time"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Show:
    """Shows work in progress.

    Arguments:
        stream: where to; stderr when left out.
        quiet: show nothing, for other ranks than the first and for use from Python.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Text of data and paths is shown as it is: "[b]" and ":heart:" mean nothing here.
        self._console = Console(
            file=stream or sys.stderr,
            quiet=quiet,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=True,
        )
        self._quiet, self._clock = quiet, clock
        self._live: Live | None = None
        self._last, self._stage = -PLAIN_SECONDS, ""
        self._rate, self._seen = 0.0, (0, 0.0)
        self.unit = "tokens"
        """What is counted of the data: `tokens` or `rows`."""

    def line(self, text: str) -> None:
        """Say something that stays; on a terminal, broken between words."""
        self._console.print(wrapped(text, self._console.width) if self._console.is_terminal else text)

    def stage(self, name: str, fraction: float) -> None:
        """Show how far a stage of the preparation is; a stage that ends within a blink shows once."""
        if self._quiet:
            return
        if name != self._stage:
            self._stage = name
            self.clear()
            if not self._console.is_terminal:
                self.line(f"{name} ...")
        if self._console.is_terminal:
            self._draw(name, fraction, "")

    def step(
        self,
        *,
        step: int,
        tokens: int,
        seconds: float,
        flops: int,
        loss: float,
        fraction: float,
        peak_flops: float,
    ) -> None:
        """Show where training stands: loss, speed, share of the machine's measured peak, time left."""
        if self._quiet:
            return
        tokens_before, seconds_before = self._seen
        if step == 1 or tokens_before > tokens or seconds - seconds_before >= 1.0:
            if seconds > seconds_before:
                rate = (tokens - tokens_before) / (seconds - seconds_before)
                self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
            self._seen = (tokens, seconds)
        now = self._clock()
        if now - self._last < (0.2 if self._console.is_terminal else PLAIN_SECONDS) and fraction < 1.0:
            return
        self._last, self._stage = now, "training"
        share = flops / tokens * self._rate / peak_flops if tokens and peak_flops else 0.0
        left = seconds * (1 - fraction) / fraction if fraction > 0 else 0.0
        speed = f"{self._rate:,.0f} {self.unit}/s  {share:.0%} of peak"
        start, end = f"step {step:,}  loss {loss:.3f}", f"{duration(left)} left"
        facts = [f"{start}  {speed}  {end}", f"{start}  {speed.partition('  ')[0]}  {end}", f"{start}  {end}"]
        if self._console.is_terminal:
            self._draw("training", fraction, *facts)
        else:
            self.line(f"{fraction:4.0%}  {facts[0]}")

    def clear(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self, name: str, fraction: float, *facts: str) -> None:
        """Draw the live line, with the first of `facts` (the same, ever shorter) that leaves room for a bar."""
        room = self._console.width - 8
        shown = next((text for text in facts if len(text) + 4 <= room), facts[-1])
        free = room - len(shown)
        label = name if free - len(name) >= 6 else ""
        bar = ProgressBar(total=1.0, completed=min(1.0, fraction), width=max(4, min(24, free - len(label))))
        row = Table.grid(padding=(0, 1))
        for _ in range(4):
            row.add_column(no_wrap=True)
        row.add_row(label, bar, f"{fraction:4.0%}", shown)
        if self._live is None:
            self._live = Live(row, console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(row, refresh=True)
