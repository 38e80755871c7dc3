"""ai.vectorize() with several sessions at once: the last text wins, nothing is missed, nobody waits for an app."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, refused
from vectorized import App, Embedder, vector
from waiting import until

REPEATABLE = psycopg.IsolationLevel.REPEATABLE_READ


@pytest.fixture
def app(database: Database) -> App:
    return App(database)


@pytest.fixture
def embedder(database: Database) -> Embedder:
    return Embedder(database)


def assert_up_to_date(app: App) -> None:
    """Each row of the table has one embedding, of its present text, and nothing else is kept."""
    assert app.embedded() == [(key, body, "embedded", vector(body)) for key, body in app.expected()]


def come_to_rest(app: App, embedder: Embedder) -> None:
    """What was noted under a conflict is asked for once the jobs before it are done."""
    while embedder.drain() + app.upkeep() > 0:
        pass


def waits(database: Database, connection: psycopg.Connection[Any]) -> bool:
    return database.value(
        "select exists (select from pg_locks where pid = %s and not granted)", connection.info.backend_pid
    )


def old_transaction(
    app: App, embedder: Embedder, level: psycopg.IsolationLevel = REPEATABLE
) -> psycopg.Connection[Any]:
    """Three rows that are embedded, and a transaction that sees them, and nothing that comes after it."""
    app.execute("create table shop.other (id integer)")
    app.execute("insert into shop.notes values (1, null, 'one'), (2, null, 'two'), (3, null, 'three')")
    app.vectorize()
    embedder.drain()
    old = app.connect(autocommit=False)
    old.isolation_level = level
    old.execute("select count(*) from shop.other")
    return old


def unknown_changes(old: psycopg.Connection[Any]) -> None:
    old.execute("update shop.notes set body = 'uno' where id = 1")
    old.execute("insert into shop.notes values (4, null, 'four')")
    old.commit()


def test_of_two_updates_of_a_row_the_later_wins_however_their_embeddings_come(app: App, database: Database) -> None:
    app.execute("insert into shop.notes values (1, null, 'first')")
    app.vectorize()
    slow, quick = Embedder(database), Embedder(database)
    assert slow.take() == ["first"]

    one, two = app.connect(autocommit=False), app.connect(autocommit=False)
    one.execute("update shop.notes set body = 'second' where id = 1")
    later = threading.Thread(target=two.execute, args=["update shop.notes set body = 'third' where id = 1"])
    later.start()
    until(lambda: waits(database, two), "the second update waits for the first")
    one.commit()
    later.join(30)
    two.commit()

    assert quick.take() == ["third"], "a text that is known to be old is not embedded"
    quick.answer()
    slow.answer()
    assert_up_to_date(app)


@pytest.mark.parametrize(
    "change",
    [
        "update shop.notes set body = 'changed'",
        "update shop.notes set body = null",
        "update shop.notes set id = id + 100",
        "delete from shop.notes",
        "truncate shop.notes",
        "insert into shop.notes values (9, null, 'new')",
        "select ai.stop_vectorizing('notes')",
        "select ai.revectorize('notes', 'test/two')",
        "select ai.vectorize_retry('notes')",
        "select ai.refresh_vectorizer('notes')",
        "drop table shop.notes",
    ],
)
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_open_transaction_of_an_app_stops_no_worker(
    app: App, embedder: Embedder, database: Database, change: str, end: str
) -> None:
    app.execute("insert into shop.notes select i, null, 'text ' || i from generate_series(1, 5) i")
    app.vectorize()
    assert len(embedder.take()) == 5
    slow = app.connect(autocommit=False)
    slow.execute(change)

    # Settles, claims and keeps in order while that transaction is open; lock_timeout would tell.
    assert embedder.answer() == ["ended"]
    embedder.take()
    embedder.maintain()
    database.superuser.execute("set lock_timeout = '5s'")
    app.upkeep()
    getattr(slow, end)()
    app.upkeep()
    embedder.drain()
    app.upkeep()

    gone = end == "commit" and ("stop" in change or "drop" in change)
    if gone:
        assert app.embedded() == []
    else:
        assert_up_to_date(app)


def test_a_transaction_with_an_old_snapshot_writes_what_was_embedded_meanwhile(app: App, embedder: Embedder) -> None:
    app.execute("insert into shop.notes values (1, null, 'one'), (2, null, 'two'), (3, null, 'three')")
    app.vectorize()
    old = app.connect(autocommit=False)
    old.isolation_level = REPEATABLE
    old.execute("select count(*) from shop.notes")
    embedder.drain()

    # The rows of the embeddings have changed since its snapshot: that must be no error of the app's.
    old.execute("update shop.notes set body = 'uno' where id = 1")
    old.execute("delete from shop.notes where id = 2")
    old.execute("update shop.notes set id = 30 where id = 3")
    old.commit()
    come_to_rest(app, embedder)
    assert_up_to_date(app)


def test_what_is_gone_is_remembered_until_what_is_older_is_removed(
    app: App, embedder: Embedder, database: Database
) -> None:
    app.execute("insert into shop.notes values (1, null, 'one'), (2, null, 'two'), (3, null, 'three')")
    app.vectorize()
    old = app.connect(autocommit=False)
    old.isolation_level = REPEATABLE
    old.execute("select count(*) from shop.notes")
    embedder.drain()
    old.execute("delete from shop.notes where id in (2, 3)")
    old.commit()
    holding = database.connect(autocommit=False)
    holding.execute("select from ai.vectorized_rows where state <> 'gone' for update")
    app.upkeep()
    holding.rollback()
    come_to_rest(app, embedder)
    assert_up_to_date(app)


def test_a_transaction_that_does_not_know_the_vectorizer_yet_is_told_of(app: App, embedder: Embedder) -> None:
    app.execute("insert into shop.notes values (1, null, 'one')")
    app.execute("create table shop.other (id integer)")
    old = app.connect(autocommit=False)
    old.isolation_level = REPEATABLE
    old.execute("select count(*) from shop.other")
    app.vectorize()
    old.execute("insert into shop.notes values (2, null, 'two')")
    old.commit()

    assert app.progress()["problem"]["class"] == "missed"
    assert app.execute("select ai.refresh_vectorizer('notes') as rows")[0]["rows"] == 1
    assert app.progress()["problem"] is None
    embedder.drain()
    assert_up_to_date(app)


@pytest.mark.parametrize("level", [REPEATABLE, psycopg.IsolationLevel.SERIALIZABLE], ids=["repeatable", "serializable"])
@pytest.mark.parametrize(
    "changes",
    [
        ["update shop.notes set body = 'uno' where id = 1", "insert into shop.notes values (4, null, 'four')"],
        ["delete from shop.notes where id = 2", "update shop.notes set body = null where id = 3"],
        ["update shop.notes set body = 'uno'", "update shop.notes set body = 'due' where id = 1"],
        ["update shop.notes set id = id + 10"],
        ["truncate shop.notes"],
        ["truncate shop.notes", "insert into shop.notes values (2, null, 'again')"],
    ],
)
@pytest.mark.parametrize(
    "switched", ["before it writes", "before it commits", "after it commits", "after a second rebuild"]
)
def test_a_transaction_that_does_not_know_of_a_rebuild_is_caught_up(
    app: App, embedder: Embedder, switched: str, changes: list[str], level: psycopg.IsolationLevel
) -> None:
    old = old_transaction(app, embedder, level)
    app.execute("select ai.revectorize('notes', 'test/two')")

    def switch() -> None:
        embedder.drain()
        app.upkeep()
        assert app.progress()["model"] == "test/two", "it is switched"

    if switched in ("before it writes", "after a second rebuild"):
        switch()
    if switched == "after a second rebuild":
        app.execute("select ai.revectorize('notes', 'test/one')")
    for change in changes:
        old.execute(change)
    if switched == "before it commits":
        switch()
    old.commit()
    come_to_rest(app, embedder)
    assert app.progress()["model"] == ("test/one" if switched == "after a second rebuild" else "test/two")
    assert_up_to_date(app)


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.READ_COMMITTED, REPEATABLE], ids=["committed", "repeatable"])
@pytest.mark.parametrize(
    "later",
    [
        ["update shop.notes set body = 'eins' where id = 1", "update shop.notes set body = 'vier' where id = 4"],
        ["delete from shop.notes where id in (1, 4)"],
        ["truncate shop.notes"],
        ["update shop.notes set body = null"],
        ["update shop.notes set id = id + 100"],
        ["delete from shop.notes", "insert into shop.notes values (1, null, 'eins')"],
        ["truncate shop.notes", "insert into shop.notes values (1, null, 'uno'), (5, null, 'five')"],
    ],
)
@pytest.mark.parametrize("noted", ["before the upkeep", "after it", "around it"])
def test_what_is_done_after_a_transaction_with_an_old_snapshot_stays(
    app: App, embedder: Embedder, noted: str, later: list[str], level: psycopg.IsolationLevel
) -> None:
    old = old_transaction(app, embedder)
    app.execute("select ai.revectorize('notes', 'test/two')")
    unknown_changes(old)
    second = app.connect(autocommit=False)
    second.isolation_level = level
    if noted == "after it":
        app.upkeep()
    second.execute("select count(*) from shop.notes")
    if noted == "around it":
        app.upkeep()
    for change in later:
        second.execute(change)
    second.commit()
    come_to_rest(app, embedder)
    assert_up_to_date(app)
    assert app.database.value("select count(*) from ai.row_changes") == 0


def test_a_refresh_takes_changes_of_old_snapshots_for_older(app: App, embedder: Embedder) -> None:
    old = old_transaction(app, embedder)
    app.execute("select ai.revectorize('notes', 'test/two')")
    unknown_changes(old)
    app.execute("delete from shop.notes where id = 4")
    app.execute("select ai.refresh_vectorizer('notes')")
    come_to_rest(app, embedder)
    assert_up_to_date(app)


@pytest.mark.parametrize("held", ["select ai.fill_vectorizers(now())", "select from ai.vectorized_rows for update"])
def test_a_rebuild_leaves_out_what_was_truncated_and_is_held(
    app: App, embedder: Embedder, database: Database, held: str
) -> None:
    old = old_transaction(app, embedder)
    old.execute("truncate shop.notes")
    old.commit()
    keeping = database.connect(autocommit=False)
    keeping.execute(held)
    app.execute("select ai.revectorize('notes', 'test/two')")
    keeping.commit()
    come_to_rest(app, embedder)
    assert app.embedded() == []


def test_an_open_rebuild_with_changes_to_note_holds_up_no_other(
    app: App, embedder: Embedder, database: Database
) -> None:
    old = old_transaction(app, embedder)
    app.execute("create table shop.more (id integer primary key, body text)")
    app.execute("insert into shop.more values (1, 'x')")
    app.execute("select ai.vectorize('shop.more', '{body}', 'test/one', format => 'plain')")
    embedder.drain()
    unknown_changes(old)
    slow, other = app.connect(autocommit=False), app.connect()
    slow.execute("select ai.revectorize('notes', 'test/two')")
    # lock_timeout would tell.
    database.superuser.execute("set lock_timeout = '5s'")
    app.upkeep()
    other.execute("set lock_timeout = '5s'")
    other.execute("select ai.revectorize('more', 'test/two')")
    slow.commit()
    come_to_rest(app, embedder)
    assert app.progress()["model"] == "test/two"
    assert database.value("select count(*) from ai.row_changes") == 0


def test_a_rebuild_is_switched_to_when_all_changes_are_noted(app: App, embedder: Embedder, database: Database) -> None:
    old = old_transaction(app, embedder)
    app.execute("select ai.revectorize('notes', 'test/two')")
    embedder.drain()
    unknown_changes(old)
    # Another upkeep holds them, so that this one cannot note them.
    keeping = database.connect(autocommit=False)
    keeping.execute("select from ai.row_changes for update")
    app.upkeep()
    assert app.progress()["model"] == "test/one"
    keeping.commit()
    come_to_rest(app, embedder)
    assert app.progress()["model"] == "test/two"
    assert_up_to_date(app)


def test_a_rebuild_waits_for_open_writes_and_misses_none(app: App, embedder: Embedder, database: Database) -> None:
    app.execute("insert into shop.notes values (1, null, 'one')")
    app.vectorize()
    embedder.drain()
    writer, builder = app.connect(autocommit=False), app.connect()
    writer.execute("update shop.notes set body = 'uno'")
    building = threading.Thread(target=builder.execute, args=["select ai.revectorize('notes', 'test/two')"])
    building.start()
    until(lambda: waits(database, builder), "the rebuild waits for the write")
    writer.commit()
    building.join(30)
    assert embedder.drain() == 2
    app.upkeep()
    assert app.progress()["model"] == "test/two"
    assert_up_to_date(app)


@pytest.mark.parametrize(
    "call",
    [
        "ai.vectorize('shop.notes', '{body}')",
        "ai.refresh_vectorizer('notes')",
        "ai.revectorize('notes', 'test/one')",
    ],
)
def test_what_reads_the_whole_table_refuses_old_snapshots(app: App, call: str) -> None:
    if "ai.vectorize(" not in call:
        app.vectorize()
    old = app.connect(autocommit=False)
    old.isolation_level = REPEATABLE
    with refused("PT400"):
        old.execute(f"select {call}")


def test_an_embedding_that_was_skipped_for_a_lock_is_asked_for_again(app: App, embedder: Embedder) -> None:
    app.execute("insert into shop.notes values (1, null, 'one')")
    app.vectorize()
    assert embedder.take() == ["one"]
    deleting = app.connect(autocommit=False)
    deleting.execute("delete from shop.notes")
    assert embedder.answer() == ["ended"]
    deleting.rollback()
    assert app.progress()["pending"] == 1
    assert app.upkeep() == 1
    assert embedder.drain() == 1
    assert_up_to_date(app)


@pytest.mark.parametrize("rebuild", [False, True], ids=["one model", "rebuilt on the way"])
def test_many_writers_and_workers_at_once(app: App, database: Database, dice: random.Random, rebuild: bool) -> None:
    """Random statements of four sessions, two workers that answer in any order, an upkeep all the time."""
    app.execute("insert into shop.notes select i, null, 'text ' || i from generate_series(1, 30) i")
    app.vectorize()
    written = threading.Event()
    left = ["writer"] * 4

    def write(number: int, dice: random.Random) -> None:
        connection = app.connect(autocommit=False)
        if number == 0:
            connection.isolation_level = REPEATABLE
        try:
            for step in range(40):
                change(connection, dice, f"body {number} {step}")
        finally:
            left.pop()
            if not left:
                written.set()

    def change(connection: psycopg.Connection[Any], dice: random.Random, body: str) -> None:
        low, text = dice.randrange(30), dice.choice([body, "same", None])
        try:
            for _ in range(dice.choice([1, 1, 3])):
                kind = dice.randrange(5)
                if kind == 0:
                    connection.execute("delete from shop.notes where id between %s and %s", [low, low + 3])
                elif kind == 1:
                    connection.execute(
                        "insert into shop.notes"
                        " select i, null, %s::text from generate_series(%s::integer, %s::integer) i"
                        " on conflict (id) do update set body = excluded.body",
                        [text, low, low + 5],
                    )
                else:
                    high = low + dice.randrange(4)
                    connection.execute("update shop.notes set body = %s where id between %s and %s", [text, low, high])
            dice.choice([connection.commit, connection.commit, connection.rollback])()
        except psycopg.errors.OperationalError as error:
            # The app's own rows: a deadlock of its statements, or an old snapshot. Nothing of Martlet's tables.
            connection.rollback()
            assert "vectorized_rows" not in str(error), error  # noqa: PT017

    def work(_: int, dice: random.Random) -> None:
        worker = Embedder(database)
        while not written.is_set():
            worker.take(dice.choice([1, 4, 64]))
            if worker.held and dice.random() < 0.7:
                worker.answer(dice.sample(worker.held, dice.randrange(1, len(worker.held) + 1)))
        worker.answer()

    def keep(_: int, dice: random.Random) -> None:
        connection = database.connect()
        connection.execute("set lock_timeout = '5s'")
        started = not rebuild
        while not written.is_set():
            connection.execute("select ai.fill_vectorizers(now())")
            if not started and dice.random() < 0.3:
                started = True
                app.connect().execute("select ai.revectorize('notes', 'test/two')")
        if not started:
            app.connect().execute("select ai.revectorize('notes', 'test/two')")

    at_once(7, lambda number, dice: (write, write, write, write, work, work, keep)[number](number, dice), dice)
    come_to_rest(app, Embedder(database))
    assert app.progress()["failed"] == 0
    assert app.progress()["model"] == ("test/two" if rebuild else "test/one")
    assert_up_to_date(app)
    assert database.value("select count(*) from ai.embedding_jobs") == 0


def test_vectorizing_a_table_that_is_being_written_misses_nothing(
    app: App, database: Database, dice: random.Random
) -> None:
    app.execute("insert into shop.notes select i, null, 'text ' || i from generate_series(1, 200) i")

    def write(number: int, dice: random.Random) -> None:
        if number == 0:
            app.connect().execute("select ai.vectorize('shop.notes', '{body}', 'test/one', format => 'plain')")
            return
        connection = app.connect()
        for step in range(40):
            row = number * 1000 + step
            connection.execute("insert into shop.notes values (%s, null, 'new ' || %s::text)", [row, row])
            connection.execute("update shop.notes set body = body || '!' where id = %s", [dice.randrange(1, 200)])

    at_once(5, write, dice)
    worker = Embedder(database)
    worker.drain()
    app.upkeep()
    assert app.progress()["problem"] is None
    assert_up_to_date(app)
