"""What a person sees: plain lines in a file, a live line on a terminal, always the text as it is."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.console import PLAIN_SECONDS, Show, duration, short
from luban.wrapping import wrapped

SIZES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def train(show: Show, clock: Clock, steps: int, seconds_per_step: float, **fixed: float) -> None:
    """Steps of 100 tokens and 1000 FLOPs each on a machine whose peak is 2000 FLOP/s."""
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        show.step(
            step=step,
            tokens=100 * step,
            seconds=seconds_per_step * step,
            flops=1000 * step,
            loss=2.5,
            fraction=fixed.get("fraction", step / steps),
            peak_flops=fixed.get("peak_flops", 2000.0),
        )


@given(st.floats(1.0, 1e20) | st.integers(1, 10**20).map(float))
def test_a_short_number_reads_back_to_three_digits(value: float) -> None:
    match = re.fullmatch(r"([\d.]+)([kMGTPE]?)", short(value)) or re.fullmatch(r"([\d.e+]+)(E)", short(value))
    assert match
    assert abs(float(match[1]) * SIZES[match[2]] - value) <= 0.0051 * value
    assert float(match[1]) < 1000 or match[2] == "E"


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_to_its_smallest_unit(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    parts = re.findall(r"(\d+) (s|min|h)", duration(seconds))
    read = sum(int(number) * units[unit] for number, unit in parts)
    smallest = units[parts[-1][1]]
    assert abs(read - seconds) <= (smallest if smallest > 1 else 0.5)
    assert all(int(number) < 60 for number, unit in parts if unit != "h")


def test_a_duration_that_is_none() -> None:
    assert duration(float("inf")) == duration(float("nan")) == "unknown time"
    assert duration(-3.0) == "0 s"


def test_text_is_shown_as_it_is() -> None:
    for stream in (io.StringIO(), Terminal()):
        show = Show(stream)
        for text in ("[bold]x[/bold]", "[/nope]", ":heart:", "runs/[1]/春", "C:\\", "x" * 300):
            show.line(text)
            assert text + "\n" in stream.getvalue()
        show.stage("packing [red]", 0.5)
        show.clear()
        assert "packing [red]" in stream.getvalue()


def test_in_a_file_training_shows_a_line_now_and_then_and_the_last_one() -> None:
    stream, clock = io.StringIO(), Clock()
    train(Show(stream, clock=clock), clock, steps=100, seconds_per_step=0.5)
    lines = stream.getvalue().splitlines()
    assert 50 / PLAIN_SECONDS <= len(lines) <= 50 / PLAIN_SECONDS + 2
    # 100 tokens and 1000 FLOPs in half a second are 200 tokens/s and 2000 FLOP/s: all of the peak.
    for line in lines[1:]:
        assert re.search(r"step \d+  loss 2\.500  200 tokens/s  100% of peak  \d+ s left$", line), line
    assert lines[-1].startswith("100%")
    assert lines[-1].endswith(" 0 s left")
    assert "\x1b" not in stream.getvalue()


def test_the_time_left_is_in_proportion_and_never_negative() -> None:
    stream, clock = io.StringIO(), Clock()
    train(Show(stream, clock=clock), clock, steps=1, seconds_per_step=30.0, fraction=0.25, peak_flops=0.0)
    assert stream.getvalue().endswith("0% of peak  1 min 30 s left\n")
    train(Show(stream, clock=clock), clock, steps=1, seconds_per_step=30.0, fraction=1.2)
    assert stream.getvalue().endswith(" 0 s left\n")


def test_a_stage_shows_once_in_a_file_and_moves_on_a_terminal() -> None:
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        show = Show(stream)
        for share in (0.0, 0.5, 1.0):
            show.stage("cleaning", share)
        show.stage("packing", 0.0)
        show.clear()
    assert plain.getvalue() == "cleaning ...\npacking ...\n"
    for shown in ("cleaning", " 50%", "100%", "packing"):
        assert shown in terminal.getvalue()


def test_on_a_terminal_training_is_one_line_that_goes_away() -> None:
    stream, clock = Terminal(), Clock()
    show = Show(stream, clock=clock)
    train(show, clock, steps=40, seconds_per_step=0.1)
    show.line("done")
    show.clear()
    assert 15 <= stream.getvalue().count("tokens/s") <= 25
    assert "done" in stream.getvalue()


@pytest.mark.parametrize("columns", [50, 60, 70, 80, 120])
def test_a_narrow_terminal_keeps_share_loss_and_time_left(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, clock = Terminal(), Clock()
    train(Show(stream, clock=clock), clock, steps=40, seconds_per_step=25.0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    line = next(line for line in re.split(r"[\r\n]+", plain) if "step 20 " in line)
    assert re.search(r" 50% step 20  loss 2\.500 .*8 min 20 s left$", line.rstrip()), line
    assert len(line) <= columns
    assert ("of peak" in line) == (columns >= 80)


def test_a_long_line_is_broken_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    words = " ".join(["number"] * 30)
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        Show(stream).line(words)
    assert plain.getvalue() == words + "\n"
    lines = terminal.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(terminal.getvalue().split()) == words
    assert all(line.startswith("  number") for line in lines[1:])


@given(st.lists(st.text("abc/=.", min_size=1, max_size=30), min_size=1), st.integers(1, 100))
def test_breaking_a_message_changes_only_white_space(words: list[str], width: int) -> None:
    message = "  fix:      " + " ".join(words)
    lines = wrapped(message, width).splitlines()
    assert " ".join(lines).split() == message.split()
    assert all(len(line) <= width or len(line.split()) == 1 or width < 40 for line in lines[1:])


def test_quiet_shows_nothing() -> None:
    for stream in (io.StringIO(), Terminal()):
        clock = Clock()
        show = Show(stream, quiet=True, clock=clock)
        show.line("x")
        show.stage("cleaning", 0.5)
        train(show, clock, steps=3, seconds_per_step=60.0)
        show.clear()
        assert stream.getvalue() == ""
