"""Waiting for a condition, with a deadline: the tests never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, seconds: float = 30, every: float = 0.02) -> T:
    """Calls `condition` until it returns something true, and returns that.

    After `seconds` it fails, naming `what` was waited for and what the condition last said.
    """
    deadline = time.monotonic() + seconds
    while True:
        last = condition()
        if last:
            return last
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {seconds} s for {what}; last seen: {last!r}")
        time.sleep(every)
