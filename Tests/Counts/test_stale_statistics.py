"""What is leased comes and goes all day: whatever moment statistics were taken at, each row is found by its key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from counting import FACTS, Load, ask_for_many, buffers
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


@pytest.fixture
def stale(load: Load, quiet: Database) -> Iterator[None]:
    """Statistics of a moment when nothing was queued or leased, beside dead rows that an old snapshot keeps."""
    with psycopg.connect(quiet.url) as old:
        old.execute("set transaction isolation level repeatable read")
        old.execute("select from ai.generations limit 1")
        for _ in range(20):
            load.round(512)
        quiet.execute("analyze")
        yield


@pytest.mark.usefixtures("stale")
@pytest.mark.parametrize("action", [claim, settle, settle_failures, publish, cancellations], ids=lambda a: a.__name__)
def test_it_looks_at_no_more_pages_after_statistics_of_an_empty_moment(
    load: Load, quiet: Database, action: Callable[[Load, list[Attempt]], tuple[str, list[Any]]]
) -> None:
    def pages() -> int:
        """Of a session that planned by now's statistics, the second time."""
        load.worker.connection = quiet.connect(user=quiet.worker)
        load.worker.connection.execute(*action(load, [held.pop() for _ in range(BATCH)]))
        query, values = action(load, [held.pop() for _ in range(BATCH)])
        return buffers(load.worker.connection, query, *values)

    load.app.execute(
        "insert into ai.generations (prompt, model, stream) select 'Why? ' || n, 'counted/model', true"
        " from generate_series(1, %s) n",
        [HELD + BATCH * 10],
    )
    held = [one for _ in range(HELD // BATCH) for one in load.claim(BATCH)]
    before = pages()
    quiet.execute("analyze")
    after = pages()
    assert before <= after * 1.2, f"{before} pages, of {after} with statistics of now"


@pytest.mark.usefixtures("stale")
@pytest.mark.parametrize("chore", ["unlist_empty_lanes(now())", "end_cancelled()", "requeue_orphans('1 hour')"])
def test_a_chore_that_finds_nothing_looks_at_hardly_more_pages_either(load: Load, quiet: Database, chore: str) -> None:
    def pages() -> int:
        session = quiet.connect()
        session.execute(f"select ai.{chore}")
        return buffers(session, f"select ai.{chore}")

    ask_for_many(load, tenants=100, each=100)
    held = [one for _ in range(10) for one in load.worker.claim(BATCH)]
    cancellations(load, held[:BATCH])
    before = pages()
    quiet.execute("analyze")
    after = pages()
    assert before <= after * 1.5, f"{before} pages, of {after} with statistics of now"


def test_a_documents_vectors_are_counted_without_statistics_and_hardly_looked_at_before_there_are_enough(
    quiet: Database,
) -> None:
    developer = quiet.member(role="developer")
    app = quiet.connect(user=developer)
    app.execute(
        "select ai.create_collection('c', 'local/hash', target_tokens => 16, max_tokens => 32, overlap_tokens => 0)"
    )
    text = " ".join(f"word{number}" for number in range(12_000))
    (document,) = app.execute("select ai.add_document('c', %s, 't') as id", [text]).fetchall()
    stage = """
        insert into ai.staged_vectors (tenant_id, collection_id, document_id, version, chunk_id, embedding)
        select c.tenant_id, c.collection_id, c.document_id, k.embedding_version, c.id,
               (select '[' || string_agg('1', ',') || ']' from generate_series(1, k.dimensions))::ai.embedding
          from ai.chunks c join ai.collections k on k.tenant_id = c.tenant_id and k.id = c.collection_id
         where c.document_id = %s order by c.id limit %s offset %s
    """

    def pages() -> int:
        query = (
            "select ai.finish_collection(d.tenant_id, d.collection_id, array[d.id]) from ai.documents d where d.id = %s"
        )
        session = quiet.connect()
        session.execute("begin")
        session.execute(query, [document["id"]])
        looked_at = buffers(session, query, document["id"])
        session.execute("rollback")
        return looked_at

    chunks = quiet.value("select chunks from ai.documents where id = %s", document["id"])
    assert chunks > 1_000
    quiet.execute(stage, document["id"], chunks - 1, 0)
    assert pages() < chunks / 2
    quiet.execute(stage, document["id"], 1, chunks - 1)
    before = pages()
    quiet.execute("analyze")
    after = pages()
    assert before <= after * 1.2, f"{before} pages, of {after} with statistics"
