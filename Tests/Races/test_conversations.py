"""Many who talk in one conversation at once, and apps that keep their transactions open."""

from __future__ import annotations

import random
import threading
import uuid
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member, refused
from protocol import PlainWorker
from waiting import until


def start(connection: psycopg.Connection[dict[str, Any]]) -> uuid.UUID:
    return connection.execute("select ai.start_conversation() as id").fetchone()["id"]


def chat(connection: psycopg.Connection[dict[str, Any]], conversation: uuid.UUID, text: str = "x") -> uuid.UUID:
    return connection.execute("select ai.chat(%s, %s) as id", [conversation, text]).fetchone()["id"]


def said(database: Database, conversation: uuid.UUID) -> list[tuple[int, str, uuid.UUID]]:
    rows = database.execute(
        "select seq, role, generation_id from ai.messages where conversation_id = %s order by seq", conversation
    )
    return [(row["seq"], row["role"], row["generation_id"]) for row in rows]


def impatient(worker: PlainWorker) -> PlainWorker:
    worker.connection.execute("set lock_timeout = '20s'")
    worker.connection.execute("set statement_timeout = '30s'")
    return worker


def test_numbers_have_no_gaps_whoever_talks_and_answers_at_once(
    database: Database, member: Member, dice: random.Random
) -> None:
    conversations = [start(database.connect(user=member)) for _ in range(2)]
    talkers = 6
    apps = [database.connect(user=member, autocommit=False) for _ in range(talkers)]
    workers = [impatient(PlainWorker(database, f"worker-{n}")) for n in range(2)]
    asked: list[uuid.UUID] = []
    finished: list[int] = []

    def run(number: int, dice: random.Random) -> None:
        if number < talkers:
            for _ in range(30):
                with apps[number].transaction(force_rollback=dice.random() < 0.2) as transaction:
                    wanted = chat(apps[number], dice.choice(conversations))
                if not transaction.force_rollback:
                    asked.append(wanted)
            finished.append(number)
            return
        worker = workers[number - talkers]
        idle = 0
        while idle < 3:
            claimed = worker.claim(dice.randrange(1, 10), look_at_everything=True)
            if dice.random() < 0.2:
                worker.settle(claimed, outcome="failed", signal="http", http_status=400, output="")
            else:
                worker.settle(claimed)
            idle = 0 if claimed or len(finished) < talkers else idle + 1

    at_once(talkers + len(workers), run, dice)
    database.execute("select ai.record_unrecorded()")
    assert database.value("select count(*) from ai.unrecorded_answers") == 0
    everything = []
    for conversation in conversations:
        messages = said(database, conversation)
        assert [seq for seq, _, _ in messages] == list(range(1, len(messages) + 1))
        assert database.value("select last_seq from ai.conversations where id = %s", conversation) == len(messages)
        everything += messages
    assert sorted(one for _, role, one in everything if role == "user") == sorted(asked)
    succeeded = database.execute("select id from ai.generations where status = 'succeeded'")
    assert sorted(one for _, role, one in everything if role == "assistant") == sorted(row["id"] for row in succeeded)
    ended = database.value("select count(*) from ai.generations where finished_at is not null")
    assert ended == len(asked)


def test_an_app_that_talks_and_does_not_commit_stops_no_worker(database: Database, member: Member) -> None:
    app, holding = database.connect(user=member), database.connect(user=member, autocommit=False)
    conversation, worker = start(app), impatient(PlainWorker(database))
    first = chat(app, conversation)
    other = chat(app, start(app))
    claimed = worker.claim(10, look_at_everything=True)
    second = chat(holding, conversation)

    assert set(worker.settle(claimed).values()) == {"ended"}
    # The answer is there, but in a conversation whose next number is not known it is not said yet.
    assert database.value("select status from ai.generations where id = %s", first) == "succeeded"
    assert said(database, conversation) == [(1, "user", first)]
    assert (
        database.value("select count(*) from ai.messages where generation_id = %s and role = 'assistant'", other) == 1
    )
    assert database.value("select ai.record_unrecorded()") == 0
    holding.commit()
    assert database.value("select ai.record_unrecorded()") == 1
    assert said(database, conversation) == [(1, "user", first), (2, "user", second), (3, "assistant", first)]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_second_who_talks_waits_for_the_first(database: Database, member: Member, ends: str) -> None:
    app, holding = database.connect(user=member), database.connect(user=member, autocommit=False)
    conversation = start(app)
    other = start(app)
    app.execute("set lock_timeout = '200ms'")
    first = chat(holding, conversation)
    with refused("55P03"):
        chat(app, conversation)
    elsewhere = chat(app, other)  # another conversation is another matter
    app.execute("set lock_timeout = 0")
    done: list[uuid.UUID] = []
    thread = threading.Thread(target=lambda: done.append(chat(app, conversation)))
    thread.start()
    waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    until(lambda: database.value(waiting) > 0, "the second to wait")
    getattr(holding, ends)()
    thread.join(30)
    assert said(database, other) == [(1, "user", elsewhere)]
    expected = [first, *done] if ends == "commit" else done
    assert said(database, conversation) == [(n, "user", one) for n, one in enumerate(expected, 1)]


def test_a_conversation_that_is_being_deleted_stops_no_worker(database: Database, member: Member) -> None:
    app, holding = database.connect(user=member), database.connect(user=member, autocommit=False)
    worker = impatient(PlainWorker(database))
    kept, deleted = start(app), start(app)
    answered = chat(app, kept)
    chat(app, deleted)
    claimed = worker.claim(10, look_at_everything=True)
    for conversation in (kept, deleted):
        holding.execute("select ai.delete_conversation(%s)", [conversation])
        if conversation == deleted:
            assert set(worker.settle(claimed).values()) == {"ended"}
    holding.rollback()
    holding.execute("select ai.delete_conversation(%s)", [deleted])
    holding.commit()
    database.execute("select ai.record_unrecorded()")
    assert said(database, kept) == [(1, "user", answered), (2, "assistant", answered)]
    assert said(database, deleted) == []
    assert database.value("select count(*) from ai.unrecorded_answers") == 0


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_a_stricter_transaction_that_was_overtaken_is_told_so(database: Database, member: Member, level: str) -> None:
    app, strict = database.connect(user=member), database.connect(user=member, autocommit=False)
    strict.isolation_level = psycopg.IsolationLevel[level]
    conversation = start(app)
    strict.execute("select count(*) from ai.messages")
    first = chat(app, conversation)
    with refused("40001"):
        chat(strict, conversation)
    strict.rollback()
    second = chat(strict, conversation)
    strict.commit()
    assert said(database, conversation) == [(1, "user", first), (2, "user", second)]
