"""What is leased comes and goes all day: whatever moment statistics were taken at, each row is found by its key."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from counting import FACTS, Load, ask_for_many
from databases import Database
from protocol import Attempt

BATCH, HELD = 64, 1_280


def told(load: Load, some: list[Attempt], **columns: Any) -> list[Any]:
    named = [{"id": str(one.generation_id), "attempt": one.attempt, **columns} for one in some]
    return [load.worker.id, json.dumps(named)]


def claim(load: Load, some: list[Attempt]) -> tuple[str, list[Any]]:
    return "select * from ai.worker_claim(%s, %s, %s)", [load.worker.id, len(some), load.worker.cursor]


def settle(load: Load, some: list[Attempt]) -> tuple[str, list[Any]]:
    return "select * from ai.worker_settle(%s, %s)", told(load, some, outcome="succeeded", sent=True, **FACTS)


def settle_failures(load: Load, some: list[Attempt]) -> tuple[str, list[Any]]:
    failure = {"outcome": "failed", "sent": True, "signal": "server_error", "http_status": 500}
    return "select * from ai.worker_settle(%s, %s)", told(load, some, **failure)


def publish(load: Load, some: list[Attempt]) -> tuple[str, list[Any]]:
    return "select * from ai.worker_publish(%s, %s)", told(load, some, part=1, text="So ")


def cancellations(load: Load, some: list[Attempt]) -> tuple[str, list[Any]]:
    load.database.execute(
        "insert into ai.cancellations (generation_id, tenant_id) select c, %s from unnest(%s::uuid[]) c",
        load.member.tenant_id,
        [one.generation_id for one in some],
    )
    return "select * from ai.worker_cancellations(%s)", [load.worker.id]


@pytest.mark.parametrize("action", [claim, settle, settle_failures, publish, cancellations], ids=lambda a: a.__name__)
def test_it_looks_at_no_more_pages_after_statistics_of_an_empty_moment(
    load: Load, quiet: Database, action: Callable[[Load, list[Attempt]], tuple[str, list[Any]]]
) -> None:
    def pages() -> int:
        """Of a session that planned by now's statistics, the second time."""
        load.worker.connection = quiet.connect(user=quiet.worker)
        load.worker.connection.execute(*action(load, [held.pop() for _ in range(BATCH)]))
        query, values = action(load, [held.pop() for _ in range(BATCH)])
        return load._buffers(query, *values)

    with psycopg.connect(quiet.url) as old:
        # Nothing that is deleted from now on can be cleared away.
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from ai.generations limit 1")
        for _ in range(20):
            load.round(512)
        quiet.execute("analyze")
        load.app.execute(
            "insert into ai.generations (prompt, model, stream) select 'Why? ' || n, 'counted/model', true"
            " from generate_series(1, %s) n",
            [HELD + BATCH * 10],
        )
        held = [one for _ in range(HELD // BATCH) for one in load.claim(BATCH)]
        stale = pages()
        quiet.execute("analyze")
        fresh = pages()
    assert stale <= fresh * 1.2, f"{stale} pages, of {fresh} with statistics of now"


@pytest.mark.parametrize("chore", ["unlist_empty_lanes()", "end_cancelled()", "requeue_orphans('1 hour')"])
def test_a_chore_that_finds_nothing_looks_at_hardly_more_pages_either(load: Load, quiet: Database, chore: str) -> None:
    def pages() -> int:
        with psycopg.connect(quiet.url, autocommit=True) as session:
            session.execute(f"select ai.{chore}")
            row = session.execute(f"explain (analyze, buffers, timing off, format json) select ai.{chore}").fetchone()
            assert row is not None
            plan = row[0][0]["Plan"]
            return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    with psycopg.connect(quiet.url) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from ai.generations limit 1")
        for _ in range(20):
            load.round(512)
        quiet.execute("analyze")
        ask_for_many(load, tenants=100, each=100)
        held = [one for _ in range(10) for one in load.worker.claim(BATCH)]
        cancellations(load, held[:BATCH])
        stale = pages()
        quiet.execute("analyze")
        fresh = pages()
    assert stale <= fresh * 1.5, f"{stale} pages, of {fresh} with statistics of now"
