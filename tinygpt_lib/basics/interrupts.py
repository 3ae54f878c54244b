"""Ctrl-C at a good moment: between two steps instead of in the middle of one."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Holds back the first Ctrl-C; what it yields tells whether there was one.

    A second Ctrl-C interrupts at once. Nothing is held back outside the main thread,
    where Python delivers no signals, or where Ctrl-C is ignored (by a shell script's
    background job, say).
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield lambda: False
        return
    pressed = False

    def note(signum, frame):
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
