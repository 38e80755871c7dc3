"""Several threads that do things at once, each with its own random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import psycopg
from psycopg import IsolationLevel

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
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


def commits(
    connection: psycopg.Connection, change: Callable[[psycopg.Connection, random.Random], None], dice: random.Random
) -> bool:
    """One or two changes in a transaction of any isolation level; false where it was refused for what others did."""
    connection.isolation_level = dice.choice(LEVELS)
    try:
        for _ in range(dice.randrange(1, 3)):
            change(connection, dice)
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        if error.sqlstate not in ("40001", "40P01"):
            raise
        return False
    return True
