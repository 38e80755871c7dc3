"""Of many who ask the same at once one asks the provider; nobody waits for ever, nobody waits in a circle."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member
from protocol import Attempt, PlainWorker

KEYS = 5
# More than one generation with the same key that is leased, in one snapshot.
TOGETHER = """
    select count(*) from (
      select 1 from ai.leases l join ai.generations g on g.tenant_id = l.tenant_id and g.id = l.generation_id
       where g.cache_key is not null group by g.tenant_id, g.cache_key having count(*) > 1) t"""


@pytest.fixture
def crowd(database: Database) -> list[Member]:
    """Members of one tenant that shares its cache."""
    tenant = database.tenant()
    provider = database.provider("first", "http://first.test/v1")
    database.model(provider, "first/one")
    database.execute("insert into ai.cache_policies (tenant_id, scope) values (%s, 'tenant')", tenant)
    return [database.member(tenant) for _ in range(4)]


def ask(connection: psycopg.Connection, question: object) -> uuid.UUID:
    return connection.execute(
        "insert into ai.generations (prompt, model) values (%s, 'first/one') returning id", [f"question {question}"]
    ).fetchone()["id"]


def run_together(
    database: Database,
    crowd: list[Member],
    dice: random.Random,
    questions: int,
    settle: Callable[[PlainWorker, list[Attempt], random.Random], None],
) -> list[uuid.UUID]:
    """Four members ask and four workers answer until nothing is left; returns what was asked.

    A fifth looks, all the time, whether two of the same key are ever leased together.
    """
    left = threading.Semaphore(0)
    all_asked = threading.Event()
    all_done = threading.Event()
    together: list[int] = []

    def member(number: int, dice: random.Random) -> list[uuid.UUID]:
        connection = database.connect(user=crowd[number])
        try:
            return [ask(connection, dice.randrange(KEYS)) for _ in range(questions)]
        finally:
            left.release()

    def worker(dice: random.Random) -> list[uuid.UUID]:
        worker = PlainWorker(database)
        while True:
            ended = all_asked.is_set()
            claimed = worker.claim(dice.randrange(1, 20), look_at_everything=dice.random() < 0.5)
            settle(worker, claimed, dice)
            if ended and not claimed:
                look = "select count(*) as n from ai.generations where finished_at is null"
                if not database_connections[threading.get_ident()].execute(look).fetchone()["n"]:
                    return []

    def watcher() -> list[uuid.UUID]:
        connection = database.connect()
        while not all_done.is_set():
            together.append(connection.execute(TOGETHER).fetchone()["count"])
        return []

    database_connections: dict[int, psycopg.Connection] = {}
    watching = threading.Thread(target=watcher)
    watching.start()

    def run(number: int, dice: random.Random) -> list[uuid.UUID]:
        if number < 4:
            asked = member(number, dice)
            if number == 0:
                for _ in range(4):
                    left.acquire()
                all_asked.set()
            return asked
        database_connections[threading.get_ident()] = database.connect()
        return worker(dice)

    try:
        asked = [one for share in at_once(8, run, dice) for one in share]
    finally:
        all_done.set()
        watching.join()
    assert max(together, default=0) == 0
    return asked


def nothing_is_left(database: Database) -> None:
    for table in ("queue", "delayed", "waiting", "leases"):
        assert database.value(f"select count(*) from ai.{table}") == 0, table


def test_each_question_is_sent_once_and_all_get_its_answer(
    database: Database, crowd: list[Member], dice: random.Random
) -> None:
    def settle(worker: PlainWorker, attempts: list[Attempt], _: random.Random) -> None:
        for attempt in attempts:
            worker.settle([attempt], output=f"answer {attempt.generation_id}", finish_reason="stop")

    asked = run_together(database, crowd, dice, 40, settle)
    rows = database.execute("select prompt, status, output, cached from ai.generations where id = any (%s)", asked)
    assert len(rows) == 160
    assert {row["status"] for row in rows} == {"succeeded"}
    assert len({(row["prompt"], row["output"]) for row in rows}) == KEYS
    assert Counter(row["cached"] for row in rows)[False] == KEYS
    assert database.value("select count(*) from ai.llm_calls where cache is null") == KEYS
    assert database.value("select count(*) from ai.llm_calls where cache is not null") == 160 - KEYS
    nothing_is_left(database)


def test_leaders_that_fail_and_are_cancelled_leave_nobody_waiting(
    database: Database, crowd: list[Member], dice: random.Random
) -> None:
    """Half of the attempts fail for good, and some are cancelled by their members while they run."""
    lock = threading.Lock()
    connections = [database.connect(user=member) for member in crowd]

    def settle(worker: PlainWorker, attempts: list[Attempt], dice: random.Random) -> None:
        for attempt in attempts:
            chance = dice.random()
            if chance < 0.5:
                worker.settle([attempt], outcome="failed", signal="http", http_status=400)
            elif chance < 0.7:
                with lock:
                    for connection in connections:
                        # A member sees only its own: of the four one may cancel it.
                        connection.execute(
                            "select ai.cancel(id) from ai.generations where id = %s", [attempt.generation_id]
                        )
                worker.settle([attempt], outcome="cancelled")
            else:
                worker.settle([attempt], finish_reason="stop")

    asked = run_together(database, crowd, dice, 40, settle)
    statuses = Counter(
        row["status"] for row in database.execute("select status from ai.generations where id = any (%s)", asked)
    )
    assert sum(statuses.values()) == 160
    assert set(statuses) <= {"succeeded", "failed", "cancelled"}
    assert statuses["failed"] == database.value("select count(*) from ai.llm_calls where status = 'failed'")
    nothing_is_left(database)


def test_of_many_elections_at_once_each_key_has_one_leader_and_none_waits_in_a_circle(
    database: Database, crowd: list[Member], dice: random.Random
) -> None:
    """The functions by themselves: batches in random order, leaders that end, go back, or die without a word."""
    connection = database.connect(user=crowd[0])
    ids = [ask(connection, number % 12) for number in range(96)]
    tenant = crowd[0].tenant_id
    database.execute("delete from ai.queue")
    stop = threading.Event()
    together: list[int] = []

    def watch() -> None:
        watching = database.connect()
        while not stop.is_set():
            together.append(watching.execute(TOGETHER).fetchone()["count"])

    watcher = threading.Thread(target=watch)
    watcher.start()

    def claim(number: int, dice: random.Random) -> int:
        connection = database.connect(autocommit=False)
        mine = ids[number * 24 : number * 24 + 24]
        led = 0
        for _ in range(60):
            batch = dice.sample(mine, dice.randrange(1, 12))
            followers = {
                row["generation_id"]
                for row in connection.execute(
                    "select * from ai.elect_leaders(%s, %s)", [batch, [tenant] * len(batch)]
                ).fetchall()
            }
            leaders = [one for one in batch if one not in followers]
            connection.execute(
                """insert into ai.leases (generation_id, attempt, worker_id, tenant_id, user_id, lane_id, target,
                     model_id, stream, input_bytes, waiting_since, deadline_at, claimed_at)
                   select i, 1, %s, %s, 'x', 1, 1, 1, false, 1, now(), now(), now() from unnest(%s::uuid[]) i""",
                [uuid.uuid4(), tenant, leaders],
            )
            if dice.random() < 0.1:
                connection.rollback()
                continue
            connection.commit()
            led += len(leaders)
            for leader in sorted(leaders, key=lambda _: dice.random()):
                connection.execute("delete from ai.leases where generation_id = %s", [leader])
                if dice.random() < 0.9:  # else its end is not noticed
                    connection.execute("select ai.resign_leader(%s, %s)", [tenant, leader])
                connection.commit()
        return led

    try:
        assert sum(at_once(4, claim, dice)) > 0
    finally:
        stop.set()
        watcher.join()
    assert max(together) == 0


def test_keeping_invalidating_and_forgetting_at_once_do_not_block_each_other_for_ever(
    database: Database, crowd: list[Member], dice: random.Random
) -> None:
    tenant = crowd[0].tenant_id
    developer = database.member(tenant, role="developer")
    connection = database.connect(user=crowd[0])
    ids = [ask(connection, number % 20) for number in range(80)]
    database.execute(
        "update ai.generations set status = 'succeeded', output = id::text, finish_reason = 'stop', finished_at = now()"
        " where id = any (%s)",
        ids,
    )

    def run(number: int, dice: random.Random) -> None:
        if number == 0:
            connection = database.connect(user=developer)
            for _ in range(60):
                connection.execute("select ai.invalidate_cache(everything => true)")
            return
        connection = database.connect()
        for _ in range(60):
            if number == 1:
                connection.execute("select ai.forget_expired_entries(now() + interval '10 days')")
            else:
                batch = dice.sample(ids, 10)
                connection.execute("select ai.write_caches(%s, %s)", [[tenant] * 10, batch])

    at_once(6, run, dice)
    assert database.value("select count(*) from ai.cache_entries") <= 20
