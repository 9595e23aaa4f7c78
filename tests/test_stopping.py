"""The first Ctrl-C is a wish, the second is not."""

import os
import signal
import threading

import pytest

from runtime.cli.stopping import finishing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_a_wish_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    told = []
    with finishing(lambda: told.append("finishing")) as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping()
        assert told == ["finishing"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with finishing(lambda: None) as stopping:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stopping()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_beside_the_main_thread_nothing_is_touched() -> None:
    found = []

    def work() -> None:
        with finishing(lambda: None) as stopping:
            found.append((signal.getsignal(signal.SIGINT), stopping()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGINT), False)]
