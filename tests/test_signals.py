"""Signals: the first asks, the second stops at once, and nothing of it stays behind."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from luban.errors import Stopped
from luban.signals import ASKING, StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def hangups_arrive() -> Iterator[None]:
    """The tests themselves may run under nohup, which luban respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_asks_and_the_second_stops_at_once(number: signal.Signals) -> None:
    before = {asking: signal.getsignal(asking) for asking in ASKING}
    with StopRequest().listening() as request:
        request.check()
        send(number)
        assert request.requested
        assert request.reason == number.name
        with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught:
            request.check()
        assert caught.value.exit_code == 75
        with pytest.raises(Stopped, match=f"at once by a second {signal.SIGTERM.name}"):
            send(signal.SIGTERM)
    assert {asking: signal.getsignal(asking) for asking in ASKING} == before


def test_the_handlers_of_before_come_back_after_an_error_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), StopRequest().listening():
        assert signal.getsignal(signal.SIGTERM) != before
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_was_started_with_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().listening() as request:
            send(signal.SIGHUP)
            assert not request.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_that_has_nothing_to_save_is_stopped_by_the_first_signal() -> None:
    with StopRequest().listening() as request:
        with pytest.raises(Stopped, match="stopped by SIGUSR1") as caught, request.at_once():
            send(signal.SIGUSR1)
        assert caught.value.exit_code == 75
        with pytest.raises(Stopped), request.at_once():  # it was asked before
            pytest.fail("the work began")
    with StopRequest().listening() as request:
        with request.at_once():
            pass
        send(signal.SIGUSR1)  # outside it only asks
        assert request.requested


def test_in_another_thread_signals_stay_with_the_main_one() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with StopRequest().listening() as request:
            seen.append(signal.getsignal(signal.SIGTERM))
            request.ask("a test")
            seen.append(request.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, "a test"]
