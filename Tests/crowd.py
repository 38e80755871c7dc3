"""Several threads that do things at once, each with its own random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

T = TypeVar("T")


def at_once(
    count: int, action: Callable[[int, random.Random], T], dice: random.Random, seconds: float = 120
) -> list[T]:
    """Runs `action(number, dice)` in `count` threads that start together; returns what they return, or raises."""
    barrier = Barrier(count)
    seeds = [dice.randrange(2**32) for _ in range(count)]

    def run(number: int) -> T:
        barrier.wait(seconds)
        return action(number, random.Random(seeds[number]))

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run, number) for number in range(count)]
        return [future.result(seconds) for future in futures]
