"""Told to stop: between two steps instead of in the middle of one, and not silently."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Of Ctrl-C; of schedulers, containers and `kill`; of a terminal that was closed.
STOPS = [
    getattr(signal, s) for s in ("SIGINT", "SIGTERM", "SIGHUP") if s in dir(signal)
]


class Ended(KeyboardInterrupt):
    """What `raising_ends` makes of SIGTERM and SIGHUP; `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def exit_code(stop: KeyboardInterrupt) -> int:
    """What shells report for a program that a signal ended: 130 for Ctrl-C."""
    return 128 + getattr(stop, "number", signal.SIGINT)


@contextmanager
def handling(handler: Callable, numbers) -> Iterator[None]:
    """Handles signals within; not outside the main thread, where Python delivers none.

    One that is ignored (as by a shell script's background job, or nohup) stays so.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            if signal.getsignal(number) is handler:  # nobody has ignored it meanwhile
                signal.signal(number, old)


@contextmanager
def raising_ends() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise `Ended`: who cleans up or saves can do so."""

    def end(number, frame):
        raise Ended(number)

    with handling(end, STOPS[1:]):
        yield


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds stops back; what it yields tells whether there was one.

    A second Ctrl-C interrupts at once. SIGTERM and SIGHUP go, afterwards, to whoever
    handled them before; if nobody did they end the process then.
    """
    came = []

    def note(number, frame):
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)

    try:
        with handling(note, STOPS):
            yield lambda: bool(came)
    finally:
        for number in came:
            if number != signal.SIGINT:
                signal.raise_signal(number)
