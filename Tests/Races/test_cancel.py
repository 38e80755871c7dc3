"""ai.cancel() against everything that can happen to a generation at the same moment."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable

import waiting
from crowd import at_once
from databases import Database, Member, refused
from processes import Simulator, Worker
from protocol import PlainWorker
from simulated import Providers, all_ended, books_are_consistent


def test_a_cancel_at_any_moment_ends_the_generation_once_and_never_contradicts_itself(
    database: Database, member: Member, dice: random.Random
) -> None:
    app, canceller = database.connect(user=member), database.connect(user=member)
    worker = PlainWorker(database)
    for round_number in range(150):
        wanted: uuid.UUID = app.execute(
            "insert into ai.generations (prompt, stream) values ('x', %s) returning id", [dice.random() < 0.5]
        ).fetchone()["id"]
        late = dice.random() < 0.5
        if late:
            claimed = worker.claim(10, look_at_everything=True)

        def run(
            number: int, dice: random.Random, wanted=wanted, late=late, before=claimed if late else None
        ) -> str | None:
            if number == 0:
                return canceller.execute("select ai.cancel(%s) as status", [wanted]).fetchone()["status"]
            claimed = before if late else worker.claim(10, look_at_everything=True)
            if dice.random() < 0.4:  # a failure that would be tried again
                worker.settle(claimed, outcome="failed", signal="http", http_status=503, output="")
            else:
                worker.settle(claimed)
            return None

        said, _ = at_once(2, run, dice)
        row = app.execute("select status, finished_at, attempts from ai.generations where id = %s", [wanted]).fetchone()
        if said == "running":  # the worker is told; what it then reports is the end
            asked = worker.cancellations()
            worker.settle(asked, outcome="cancelled", output="")
            # An attempt that failed at that moment went back unawares: the next look at everything ends it.
            assert worker.claim(10, look_at_everything=True) == [], f"round {round_number}"
            row = app.execute(
                "select status, finished_at, attempts from ai.generations where id = %s", [wanted]
            ).fetchone()
            assert row["status"] in ("cancelled", "succeeded"), f"round {round_number}: {row}"
        else:
            assert row["status"] == said, f"round {round_number}: cancel() said {said}, then {row}"
        assert row["finished_at"] is not None, f"round {round_number}: {row}"
        assert worker.claim(10, look_at_everything=True) == [], f"round {round_number}"
        calls = app.execute("select count(*) as n from ai.llm_calls where generation_id = %s", [wanted]).fetchone()["n"]
        assert calls == row["attempts"], f"round {round_number}"
        events = app.execute("select seq, type from ai.read_stream(%s)", [wanted]).fetchall()
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["type"] for event in events].count("end") == 1


def test_many_that_cancel_the_same_generation_at_once_agree(
    database: Database, member: Member, dice: random.Random
) -> None:
    connections = [database.connect(user=member) for _ in range(6)]
    for _ in range(20):
        wanted = connections[0].execute("select ai.generate(prompt => 'x') as id").fetchone()["id"]
        said = at_once(
            6,
            lambda n, _, wanted=wanted: connections[n].execute("select ai.cancel(%s) as s", [wanted]).fetchone()["s"],
            dice,
        )
        assert set(said) == {"cancelled"}
        assert len(connections[0].execute("select from ai.read_stream(%s)", [wanted]).fetchall()) == 1


def test_cancelling_while_the_insert_is_not_committed_finds_nothing(database: Database, member: Member) -> None:
    app, canceller = database.connect(user=member, autocommit=False), database.connect(user=member)
    wanted = app.execute("select ai.generate(prompt => 'x') as id").fetchone()["id"]
    with refused("PT404"):
        canceller.execute("select ai.cancel(%s)", [wanted])
    app.commit()
    assert canceller.execute("select ai.cancel(%s) as status", [wanted]).fetchone()["status"] == "cancelled"


def test_of_several_requests_for_one_generation_a_claim_waits_for_none(database: Database, member: Member) -> None:
    app, worker = database.connect(user=member), PlainWorker(database)
    wanted = app.execute("insert into ai.generations (prompt) values ('x') returning id").fetchone()["id"]
    claimed = worker.claim(1, look_at_everything=True)
    requests = [database.connect(user=member, autocommit=False) for _ in range(2)]
    for request in requests:
        assert request.execute("select ai.cancel(%s) as status", [wanted]).fetchone()["status"] == "running"
    worker.settle(claimed, outcome="failed", signal="http", http_status=503, output="")
    for request in requests:
        request.commit()
    with database.connect(autocommit=False) as other:
        # As another claim does that began when there was one request only; two such claims would wait for each other.
        other.execute("select from ai.cancellations limit 1 for update")
        worker.connection.execute("set lock_timeout = '10s'")
        assert worker.claim(1, look_at_everything=True) == []
        other.rollback()
    assert database.value("select status from ai.generations where id = %s", wanted) == "cancelled"
    assert worker.claim(1, look_at_everything=True) == []
    assert database.value("select count(*) from ai.cancellations") == 0


def test_cancelling_what_waits_for_its_vector_does_not_deadlock_with_the_end_of_the_vector(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dice: random.Random
) -> None:
    model = Providers(database, simulator).model("tokens=2")
    database.execute("insert into ai.cache_policies (exact, semantic, vector_model) values (true, true, 'local/hash')")
    for _ in range(2):
        worker(database, concurrency=16)
    apps = [database.connect(user=member) for _ in range(6)]

    def run(number: int, dice: random.Random) -> None:
        for _ in range(40):
            rows = (
                apps[number]
                .execute(
                    "insert into ai.generations (prompt, model) select 'Question ' || gen_random_uuid(), %s"
                    " from generate_series(1, 4) returning id",
                    [model],
                )
                .fetchall()
            )
            time.sleep(dice.random() * 0.02)
            for row in rows:
                apps[number].execute("select ai.cancel(%s)", [row["id"]])

    at_once(len(apps), run, dice)
    all_ended(database)
    assert database.value("select deadlocks from pg_stat_database where datname = current_database()") == 0
    for table in ("waiting", "prepared", "queue", "delayed", "leases"):
        assert database.value(f"select count(*) from ai.{table}") == 0, f"something is left in ai.{table}"
    # A request that came with the end is forgotten by the next claim.
    waiting.until(lambda: database.value("select count(*) from ai.cancellations") == 0, "the requests to be forgotten")
    books_are_consistent(database)
