"""Several sessions at one collection: nothing is lost, and what workers bring waits for nobody."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member
from waiting import until

# A statement that waits for somebody else's transaction fails with 55P03.
IMPATIENT = "-c lock_timeout=20000 -c statement_timeout=60000"
Connection = psycopg.Connection[dict[str, Any]]


@pytest.fixture
def keeper(database: Database) -> Member:
    """A developer with a collection `docs` of 384 dimensions."""
    keeper = database.member(role="developer")
    database.connect(user=keeper).execute(
        "select ai.create_collection('docs', target_tokens => 16, overlap_tokens => 0)"
    )
    return keeper


def chunks(database: Database, where: str = "true") -> list[int]:
    return [row["id"] for row in database.execute(f"select id from ai.chunks where {where} order by id")]


def store(connection: Connection, keeper: Member, refs: list[int], version: int = 1) -> None:
    vectors = json.dumps([[(ref * n) % 13 - 6 for n in range(1, 385)] for ref in refs])
    answer = connection.execute(
        "select ai.store_chunk_vectors(%s, %s, %s, %s) as why", [keeper.tenant_id, version, refs, vectors]
    ).fetchone()
    assert answer == {"why": None}


def add(connection: Connection, content: str, uri: str | None = None) -> Any:
    row = connection.execute("select ai.add_document('docs', %s, uri => %s) as id", [content, uri]).fetchone()
    assert row is not None
    return row["id"]


def text(chunks: int, word: str = "word") -> str:
    return "\n\n".join(f"# {word} {n}\n" + f"{word} " * 8 for n in range(chunks))


def whole(database: Database) -> None:
    """What is counted is what is there, and every live chunk has its vector."""
    rows = database.execute(
        """
        select c.name from ai.collections c
         where c.chunks <> (select count(*) from ai.chunks k where k.collection_id = c.id and k.live)
            or c.chunks <> (select count(*) from ai.chunks k join ai.chunk_vectors v on v.chunk_id = k.id
                             where k.collection_id = c.id and k.live and v.version = c.embedding_version)
            or exists (select from ai.documents d where d.collection_id = c.id and d.live_revision is not null
                        and exists (select from ai.chunks k where k.document_id = d.id and k.live
                                       and k.revision <> d.live_revision))
        """
    )
    assert rows == []


def test_a_vector_of_a_replaced_chunk_counts_for_none_of_the_new_ones(database: Database, keeper: Member) -> None:
    app, worker = database.connect(user=keeper, autocommit=False), database.connect()
    document = add(app, text(1), "urn:1")
    app.commit()
    (former,) = chunks(database)
    add(app, text(2, "other"), "urn:1")
    store(worker, keeper, [former])  # still there for the worker, whose document the app holds
    app.commit()
    first, second = chunks(database, f"id <> {former}")

    store(worker, keeper, [first])
    whole(database)
    assert database.value("select status from ai.documents where id = %s", document) == "embedding"
    store(worker, keeper, [second])
    whole(database)
    assert database.value("select status from ai.documents where id = %s", document) == "ready"


def test_many_that_add_the_same_uri_make_one_document(database: Database, keeper: Member, dice: random.Random) -> None:
    connections = [database.connect(user=keeper, options=IMPATIENT) for _ in range(8)]

    def act(number: int, dice: random.Random) -> set[Any]:
        return {
            add(connections[number], text(dice.randint(1, 5), f"w{dice.randint(1, 6)}"), "urn:one") for _ in range(10)
        }

    ids = set.union(*at_once(8, act, dice))
    assert len(ids) == 1
    (document,) = database.execute("select * from ai.documents")
    assert document["id"] in ids
    assert document["status"] == "pending"
    mine = chunks(database)
    assert len(mine) == document["chunks"]
    assert len(chunks(database, f"revision = {document['revision']}")) == document["chunks"]
    store(database.superuser, keeper, mine)
    assert database.value("select status from ai.documents") == "ready"
    whole(database)


def test_many_that_add_the_same_content_make_one_document(
    database: Database, keeper: Member, dice: random.Random
) -> None:
    connections = [database.connect(user=keeper, options=IMPATIENT) for _ in range(8)]
    ids = at_once(8, lambda number, _: add(connections[number], "The same."), dice)
    assert len(set(ids)) == 1
    assert len(chunks(database)) == 1


def test_vectors_that_come_at_once_complete_the_document(
    database: Database, keeper: Member, dice: random.Random
) -> None:
    add(database.connect(user=keeper), text(64))
    refs = chunks(database)
    workers = [database.connect(options=IMPATIENT) for _ in range(8)]
    at_once(8, lambda number, _: store(workers[number], keeper, refs[number * 8 : number * 8 + 8]), dice)
    # The last two may not have seen each other: then the tick does.
    database.execute("select ai.finish_collections()")
    assert database.value("select status from ai.documents") == "ready"
    assert database.value("select count(*) from ai.staged_vectors") == 0
    whole(database)


@pytest.mark.parametrize(
    "statement",
    [
        "select ai.delete_document((select id from ai.documents limit 1))",
        "select ai.add_document('docs', 'Another.', uri => 'urn:one')",
        "select ai.rebuild_collection('docs')",
        "select ai.delete_collection('docs')",
    ],
)
def test_an_app_that_does_not_commit_holds_up_no_vectors(database: Database, keeper: Member, statement: str) -> None:
    app = database.connect(user=keeper)
    add(app, text(3), "urn:one")
    refs = chunks(database)
    app.execute("begin")
    app.execute(statement)
    worker = database.connect(options=IMPATIENT)
    store(worker, keeper, refs)
    worker.execute("select ai.finish_collections()")
    worker.execute("select ai.chunk_embedding_failed(%s, 1, %s, '{}')", [keeper.tenant_id, refs])
    assert database.value("select live_revision from ai.documents") is None, "left to later"
    app.execute("rollback")
    database.execute("select ai.finish_collections()")
    assert database.value("select status from ai.documents") == "ready"
    whole(database)


def test_an_index_that_is_built_holds_up_no_vectors(database: Database, keeper: Member) -> None:
    add(database.connect(user=keeper), text(3))
    builder = database.connect()
    builder.execute("begin")
    builder.execute("lock table ai.chunk_vectors in share mode")  # what CREATE INDEX takes
    worker = database.connect(options=IMPATIENT)
    store(worker, keeper, chunks(database))
    worker.execute("select ai.finish_collections()")
    assert database.value("select status from ai.documents") == "pending"
    assert database.value("select count(*) from ai.staged_vectors") == 3, "they wait beside"
    builder.execute("commit")
    worker.execute("select ai.finish_collections()")
    assert database.value("select status from ai.documents") == "ready"
    whole(database)


def test_a_rebuild_misses_no_document_that_is_being_added(database: Database, keeper: Member) -> None:
    app, rebuilder = database.connect(user=keeper), database.connect(user=keeper)
    add(app, text(2), "urn:before")
    store(database.superuser, keeper, chunks(database))
    app.execute("begin")
    add(app, text(3), "urn:open")
    rebuilder.execute("set statement_timeout = '60s'")
    pid = rebuilder.info.backend_pid

    def rebuild(number: int, _: random.Random) -> None:
        if number:
            rebuilder.execute("select ai.rebuild_collection('docs')")
        else:
            until(lambda: database.value("select cardinality(pg_blocking_pids(%s))", pid), "the rebuild to wait")
            app.execute("commit")

    at_once(2, rebuild, random.Random(1))
    asked = database.execute("select unnest(refs) as id from ai.embedding_jobs where version = 2")
    assert sorted(row["id"] for row in asked) == chunks(database), "both the old chunks and those that came meanwhile"
    store(database.superuser, keeper, chunks(database), version=2)
    assert database.execute("select embedding_version, model from ai.collections") == [
        {"embedding_version": 2, "model": "local/hash"}
    ]
    assert database.execute("select distinct status from ai.documents") == [{"status": "ready"}]
    whole(database)


def test_whatever_happens_at_once_the_collection_stays_whole(
    database: Database, keeper: Member, dice: random.Random
) -> None:
    """Apps add, replace, delete and rebuild, while workers bring vectors in any order and the tick runs."""
    apps = [database.connect(user=keeper) for _ in range(3)]
    workers = [database.connect() for _ in range(3)]

    def app(connection: Connection, dice: random.Random) -> None:
        for _ in range(25):
            uri = f"urn:{dice.randint(1, 5)}"
            what = dice.random()
            if what < 0.7:
                add(connection, text(dice.randint(1, 4), f"w{dice.randint(1, 99)}"), uri)
            elif what < 0.9:
                connection.execute("select ai.delete_document(id) from ai.documents where uri = %s", [uri])
            else:
                connection.execute("select ai.rebuild_collection('docs')")

    def work(connection: Connection, dice: random.Random) -> None:
        for _ in range(60):
            rows = connection.execute(
                "select version, refs from ai.embedding_jobs order by md5(generation_id::text || %s) limit 3",
                [str(dice.random())],
            ).fetchall()
            for row in rows:
                refs = [
                    ref["id"]
                    for ref in connection.execute(
                        "select ref as id from ai.chunk_texts(%s, %s)", [keeper.tenant_id, row["refs"]]
                    ).fetchall()
                ]
                if refs:
                    store(connection, keeper, refs, row["version"])
            if dice.random() < 0.3:
                connection.execute("select ai.finish_collections()")

    def act(number: int, dice: random.Random) -> None:
        app(apps[number], dice) if number < 3 else work(workers[number - 3], dice)

    at_once(6, act, dice)
    whole(database)
    # What is left is brought in order; then everything is ready.
    for row in database.execute("select version, refs from ai.embedding_jobs order by generation_id"):
        refs = [ref for ref in row["refs"] if ref in set(chunks(database))]
        if refs:
            store(database.superuser, keeper, refs, row["version"])
    database.execute("select ai.finish_collections()")
    assert database.execute("select status from ai.documents where status <> 'ready'") == []
    assert database.value("select next_version from ai.collections") is None
    assert database.value("select count(*) from ai.staged_vectors") == 0
    whole(database)
