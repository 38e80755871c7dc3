"""Where a benchmark is, and that it does not take for ever."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

_doing: list[str] = []
# After its time a benchmark may clean up for so long, and once more for each thing that hangs.
_CLEANING = 30.0


class TimeIsUpError(Exception):
    """Says what was being done."""


def say(what: str) -> None:
    """To whoever watches."""
    print(what, file=sys.stderr, flush=True)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Says what is done, and, when it is done, how long it took; it is named where the time runs out meanwhile."""
    _doing.append(what)
    began, depth = time.perf_counter(), "  " * len(_doing)
    say(f"{depth}{what} …")
    try:
        yield
        say(f"{depth}{what}: {time.perf_counter() - began:.1f} s")
    finally:
        _doing.pop()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises `TimeIsUpError` in the block after so many seconds, again while it cleans up. In the main thread only."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUpError(f"not done within {seconds:.0f} s, while {', '.join(_doing) or 'beginning'}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _CLEANING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
