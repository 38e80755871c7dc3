"""Batches are paused, resumed and cancelled while others insert, claim and settle."""

from __future__ import annotations

import random
import uuid

from crowd import at_once
from databases import Database, Member
from protocol import PlainWorker

INSERT = "insert into ai.generations (prompt, batch_id) select 'row ' || n, %s from generate_series(1, %s) n"


def made(database: Database, member: Member) -> uuid.UUID:
    row = database.connect(user=member).execute("select ai.create_batch('race') as id").fetchone()
    assert row
    return row["id"]


def states(database: Database, batch: uuid.UUID) -> dict[str, int]:
    rows = database.execute("select status, count(*) as n from ai.generations where batch_id = %s group by 1", batch)
    return {row["status"]: row["n"] for row in rows}


def test_an_insert_that_was_open_while_its_batch_was_paused_waits_too(database: Database, member: Member) -> None:
    batch, worker = made(database, member), PlainWorker(database)
    with database.connect(user=member, autocommit=False) as app:
        app.execute(INSERT, [batch, 5])
        database.connect(user=member).execute("select ai.pause_batch(%s)", [batch])
        app.commit()
    assert worker.claim(10, look_at_everything=True) == []
    assert worker.claim(10) == []
    database.connect(user=member).execute("select ai.resume_batch(%s)", [batch])
    assert len(worker.claim(10, look_at_everything=True)) == 5


def test_an_insert_that_was_open_while_its_batch_was_cancelled_is_never_sent(
    database: Database, member: Member
) -> None:
    batch, worker = made(database, member), PlainWorker(database)
    with database.connect(user=member, autocommit=False) as app:
        app.execute(INSERT, [batch, 5])
        # It waits for nobody.
        ended = database.connect(user=member).execute("select cancelled from ai.cancel_batch(%s)", [batch]).fetchone()
        assert ended == {"cancelled": 0}
        app.commit()
    assert worker.claim(10, look_at_everything=True) == []
    worker.maintain()
    assert states(database, batch) == {"cancelled": 5}


def test_whatever_meets_a_cancelled_batch_ends_once(database: Database, member: Member, dice: random.Random) -> None:
    for round_number in range(25):
        batch = made(database, member)
        workers = [PlainWorker(database) for _ in range(2)]
        database.connect(user=member).execute(INSERT, [batch, 40])

        def run(number: int, dice: random.Random, batch=batch, workers=workers) -> None:
            if number < 2:
                worker = workers[number]
                for _ in range(dice.randrange(1, 6)):
                    claimed = worker.claim(dice.randrange(1, 10), look_at_everything=True)
                    if dice.random() < 0.5:
                        worker.settle(claimed)
                    elif dice.random() < 0.5:
                        worker.settle(claimed, outcome="failed", signal="http", http_status=503, output="")
            else:
                app = database.connect(user=member)
                for _ in range(dice.randrange(1, 4)):
                    app.execute("select ai.cancel_batch(%s)", [batch])

        at_once(4, run, dice)
        for worker in workers:
            asked = worker.cancellations()
            worker.settle(asked, outcome="cancelled", output="")
        workers[0].maintain()
        for worker in workers:
            assert worker.claim(100, look_at_everything=True) == [], f"round {round_number}"
            worker.stop()
        found = states(database, batch)
        assert sum(found.values()) == 40, f"round {round_number}: {found}"
        assert set(found) <= {"cancelled", "succeeded"}, f"round {round_number}: {found}"
        left = database.value(
            "select (select count(*) from ai.queue) + (select count(*) from ai.delayed)"
            " + (select count(*) from ai.leases)"
        )
        assert left == 0, f"round {round_number}"


def test_pausing_and_resuming_at_any_moment_loses_nothing(
    database: Database, member: Member, dice: random.Random
) -> None:
    batch, worker = made(database, member), PlainWorker(database)

    def run(number: int, dice: random.Random) -> None:
        app = database.connect(user=member)
        for _ in range(30):
            if number == 0:
                worker.settle(worker.claim(dice.randrange(1, 10), look_at_everything=dice.random() < 0.5))
            elif number == 1:
                app.execute(INSERT, [batch, dice.randrange(1, 10)])
            elif number == 2:
                app.execute("select ai.pause_batch(%s)", [batch])
            else:
                app.execute("select ai.resume_batch(%s)", [batch])

    at_once(4, run, dice)
    database.connect(user=member).execute("select ai.resume_batch(%s)", [batch])
    while claimed := worker.claim(100, look_at_everything=True):
        worker.settle(claimed)
    assert set(states(database, batch)) == {"succeeded"}
