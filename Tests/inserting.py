"""Apps that insert in every way that could lose a wake-up: random gaps, savepoints, all isolation levels, rollbacks."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any

import psycopg
from psycopg import IsolationLevel

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


class _Rollback(Exception):  # noqa: N818  # not an error
    """Rolls a block back."""


def _gap(dice: random.Random) -> None:
    """Nothing, or up to some milliseconds: between INSERT and COMMIT this is where wake-ups get lost."""
    if dice.random() < 0.7:
        time.sleep(dice.random() ** 3 * 0.012)


def _insert(connection: psycopg.Connection[Any], dice: random.Random, columns: dict[str, Any]) -> int:
    count = dice.choice([1, 1, 1, 2, 5])
    names = ", ".join(columns)
    places = ", ".join(["%s"] * len(columns))
    connection.execute(
        f"insert into ai.generations (prompt, {names}) select 'wake up ' || n, {places} from generate_series(1, %s) n",
        [*columns.values(), count],
    )
    return count


def insert_somehow(connection: psycopg.Connection[Any], dice: random.Random, **columns: Any) -> int:
    """One transaction of an app that inserts a few generations; returns how many of them it committed.

    `connection` is in autocommit mode.
    """
    columns = columns or {"model": "local/extract"}
    connection.isolation_level = dice.choice(LEVELS)
    kept = 0
    try:
        with connection.transaction():
            if dice.random() < 0.5:  # takes the snapshot that REPEATABLE READ keeps, before anything else happens
                connection.execute("select count(*) from ai.generations")
                _gap(dice)
            for _ in range(dice.choice([1, 1, 2])):
                if dice.random() < 0.4:
                    with contextlib.suppress(_Rollback), connection.transaction():  # a savepoint
                        inside = _insert(connection, dice, columns)
                        _gap(dice)
                        if dice.random() < 0.4:
                            raise _Rollback
                        kept += inside
                else:
                    kept += _insert(connection, dice, columns)
                _gap(dice)
            if dice.random() < 0.1:
                raise _Rollback
    except (_Rollback, psycopg.errors.SerializationFailure):  # the COMMIT itself may be refused
        return 0
    return kept
