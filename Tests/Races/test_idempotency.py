"""The same idempotency key gives the same generation, however many ask at once (promise 6)."""

from __future__ import annotations

import random
import threading

import psycopg
import pytest
import waiting
from crowd import at_once
from databases import Database, Member
from psycopg import IsolationLevel

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]


def ask(connection: psycopg.Connection, key: str, prompt: str) -> object:
    """Asks in a transaction, again after a serialization failure as every app must; returns the id."""
    while True:
        try:
            with connection.transaction():
                return connection.execute(
                    "select ai.generate(prompt => %s, idempotency_key => %s) as id", [prompt, key]
                ).fetchone()["id"]
        except psycopg.errors.SerializationFailure:
            continue


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name.lower())
def test_of_many_that_ask_with_the_same_key_at_once_all_get_the_same_generation(
    database: Database, member: Member, dice: random.Random, level: IsolationLevel
) -> None:
    connections = [database.connect(user=member) for _ in range(12)]
    for connection in connections:
        connection.isolation_level = level
    for number in range(10):
        ids = at_once(12, lambda i, _, n=number: ask(connections[i], f"key {n}", "the same"), dice)
        assert len(set(ids)) == 1, f"round {number}"
    assert database.value("select count(*) from ai.generations") == 10
    assert database.value("select count(*) from ai.queue") == 10


def test_of_many_that_ask_something_else_with_the_same_key_one_wins_and_the_others_get_pt409(
    database: Database, member: Member, dice: random.Random
) -> None:
    connections = [database.connect(user=member) for _ in range(8)]

    def attempt(number: int, _: random.Random) -> object:
        try:
            return ask(connections[number], "key", f"question {number}")
        except psycopg.Error as error:
            return error.sqlstate

    answers = at_once(8, attempt, dice)
    assert answers.count("PT409") == 7
    assert database.value("select count(*) from ai.generations") == 1


def test_who_waits_for_a_transaction_with_the_same_key_goes_on_when_that_one_rolls_back(
    database: Database, member: Member
) -> None:
    first, second = database.connect(user=member, autocommit=False), database.connect(user=member)
    first.execute("select ai.generate(prompt => 'the same', idempotency_key => 'key')")
    answers: list[object] = []
    waiter = threading.Thread(target=lambda: answers.append(ask(second, "key", "the same")))
    waiter.start()
    waiting.until(
        lambda: database.value(
            "select count(*) from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", second.info.backend_pid
        ),
        "the second to wait for the first",
    )
    first.rollback()
    waiter.join(30)
    assert answers
    assert answers == [row["id"] for row in database.execute("select id from ai.generations")]


def test_two_tenants_may_use_the_same_key(database: Database) -> None:
    ids = {ask(database.connect(user=database.member()), "key", "the same") for _ in range(3)}
    assert len(ids) == 3
