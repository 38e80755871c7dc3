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


def commits(connection: psycopg.Connection, level: IsolationLevel, work: Callable[[], None]) -> bool:
    """A transaction of that isolation level that does the work; false where it was refused for what others did."""
    connection.isolation_level = level
    try:
        work()
        connection.commit()
    except psycopg.Error as error:
        connection.rollback()
        if error.sqlstate not in ("40001", "40P01"):
            raise
        return False
    return True


def commits_some(
    connection: psycopg.Connection, change: Callable[[psycopg.Connection, random.Random], None], dice: random.Random
) -> bool:
    """As `commits`, one or two changes at any level."""

    def work() -> None:
        for _ in range(dice.randrange(1, 3)):
            change(connection, dice)

    return commits(connection, dice.choice(LEVELS), work)
