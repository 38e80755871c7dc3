"""An app that asks all the time and keeps its own account of what it was told, whatever happens to the database."""

from __future__ import annotations

import random
import threading
import uuid
from contextlib import closing
from typing import Any

import psycopg
from databases import Member

# The key is the whole question: what is asked again, after a commit that was never confirmed, is the same.
_ASK = """
    insert into ai.generations (prompt, model, stream, idempotency_key)
    select 'question ' || k, (%(models)s::text[])[1 + ('x' || left(k, 6))::bit(24)::int %% %(count)s],
           left(k, 1) < '8', k
      from unnest(%(keys)s::text[]) k
"""


def ask(app: psycopg.Connection[Any], model: str, count: int, **columns: Any) -> list[uuid.UUID]:
    """Inserts so many questions, all of them different, on a connection that gives rows as dicts; returns their ids."""
    names = "".join(f", {name}" for name in columns)
    rows = app.execute(
        f"insert into ai.generations (prompt, model{names})"
        f" select 'question ' || gen_random_uuid(), %s{', %s' * len(columns)} from generate_series(1, %s) returning id",
        [model, *columns.values(), count],
    )
    return [row["id"] for row in rows]


class AskingApp(threading.Thread):
    """Inserts small batches, each in a transaction of its own, and asks again where it was not told the end of one.

    `acknowledged` has the id of every question whose commit was confirmed, by its idempotency key. `broken` counts the
    connections that it lost. It rests up to `rest` seconds after each batch.
    """

    def __init__(self, member: Member, models: list[str], dice: random.Random, most_open: int, rest: float = 0) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, uuid.UUID] = {}
        self.broken = 0
        self._member, self._models, self._dice, self._most_open, self._rest = member, models, dice, most_open, rest
        self._enough = threading.Event()
        self._fault: BaseException | None = None

    def finish(self) -> None:
        """Begins nothing new; returns when all that was begun is acknowledged."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive(), "the app waits for the database for ever"
        if self._fault:
            raise self._fault

    def run(self) -> None:
        keys: list[str] = []
        while keys or not self._enough.is_set():
            try:
                with closing(psycopg.connect(self._member.url, autocommit=True, connect_timeout=5)) as connection:
                    while keys or not self._enough.is_set():
                        if not keys and self._is_busy(connection):
                            self._enough.wait(0.05)
                            continue
                        keys = keys or [self._key() for _ in range(self._dice.randrange(1, 12))]
                        self._ask(connection, keys)
                        keys = []
                        self._enough.wait(self._dice.random() * self._rest)
            except psycopg.OperationalError:
                self.broken += 1
                self._enough.wait(0.1)
            except BaseException as fault:
                self._fault = fault
                return

    def _key(self) -> str:
        return f"{self._dice.getrandbits(128):032x}"

    def _is_busy(self, connection: psycopg.Connection[Any]) -> bool:
        row = connection.execute("select count(*) from ai.generations where finished_at is null").fetchone()
        return row is None or row[0] >= self._most_open

    def _ask(self, connection: psycopg.Connection[Any], keys: list[str]) -> None:
        connection.execute(_ASK, {"models": self._models, "count": len(self._models), "keys": keys})
        # Also those that an earlier try had committed without being able to say so.
        for key, generation in connection.execute(
            "select k, ai.idempotent_generation(k) from unnest(%s::text[]) k", [keys]
        ):
            assert self.acknowledged.setdefault(key, generation) == generation, "one key, two generations"
