"""Two sessions and more, against the SQL alone: what waits for whom, and that nothing is lost or locked for long."""

from __future__ import annotations

import random
import uuid
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member, refused
from protocol import Attempt, PlainWorker

ISOLATION = {
    "read committed": psycopg.IsolationLevel.READ_COMMITTED,
    "repeatable read": psycopg.IsolationLevel.REPEATABLE_READ,
    "serializable": psycopg.IsolationLevel.SERIALIZABLE,
}
# A statement that waits for somebody else's transaction fails with 55P03 instead, or 57014 for one that polls.
IMPATIENT = "-c lock_timeout=20000 -c statement_timeout=30000"


def ask(connection: psycopg.Connection[dict[str, Any]], prompt: str = "x", **columns: Any) -> uuid.UUID:
    names = ["prompt", *columns]
    query = f"insert into ai.generations ({', '.join(names)}) values ({', '.join(['%s'] * len(names))}) returning id"
    return connection.execute(query, [prompt, *columns.values()]).fetchone()["id"]


def impatient(worker: PlainWorker) -> PlainWorker:
    worker.connection.execute("set lock_timeout = '20s'")
    worker.connection.execute("set statement_timeout = '30s'")
    return worker


# What an app leaves open must not stop the others.


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_an_app_that_cancels_and_does_not_commit_stops_no_worker(
    database: Database, member: Member, outcome: str
) -> None:
    other = database.member()
    app, canceller = database.connect(user=member), database.connect(user=member, autocommit=False)
    worker = impatient(PlainWorker(database))
    mine = [ask(app) for _ in range(3)]
    theirs = ask(database.connect(user=other))
    running = worker.claim(10, look_at_everything=True)
    assert {one.generation_id for one in running} == {*mine, theirs}
    queued = ask(app)

    for one in (*mine, queued):
        canceller.execute("select ai.cancel(%s)", [one])
    # Its transaction stays open. The whole batch is settled all the same, and the queue goes on.
    # What failed is tried again in a minute, and nothing of it while this test takes its time.
    failure = {"signal": "http", "http_status": 503, "retry_after_ms": 60_000} if outcome == "failed" else {}
    results = worker.settle(running, outcome=outcome, **failure)
    assert set(results.values()) == {"ended" if outcome == "succeeded" else "requeued"}
    next_one = ask(app)
    assert [one.generation_id for one in worker.claim(10, look_at_everything=True)] == [next_one]
    assert "rescued" in worker.maintain()
    canceller.commit()

    assert worker.claim(10, look_at_everything=True) == []
    rows = database.execute("select id, status from ai.generations where id = any(%s)", [*mine, queued])
    ends = {row["id"]: row["status"] for row in rows}
    assert ends[queued] == "cancelled"
    assert {ends[one] for one in mine} == {"succeeded" if outcome == "succeeded" else "cancelled"}
    assert database.value("select count(*) from ai.cancellations") == 0
    assert database.value("select status from ai.generations where id = %s", theirs) != "cancelled"


def test_an_app_that_inserts_and_does_not_commit_stops_nobody_but_who_falls_asleep(
    database: Database, member: Member
) -> None:
    holding = database.connect(user=member, autocommit=False)
    ask(holding)
    ask(holding, priority="high")
    worker, app = impatient(PlainWorker(database)), database.connect(user=database.member(), options=IMPATIENT)
    same_tenant = database.connect(user=member, options=IMPATIENT)
    for connection in (app, same_tenant):
        wanted = ask(connection)
        [attempt] = worker.claim(10, look_at_everything=True)
        assert attempt.generation_id == wanted
        assert worker.settle([attempt]) == {attempt: "ended"}
        assert "unlisted" in worker.maintain()
    holding.commit()
    assert len(worker.claim(10, look_at_everything=True)) == 2


def test_an_app_that_reads_and_does_not_commit_stops_nobody(database: Database, member: Member) -> None:
    month = database.value("select to_char(now() at time zone 'UTC' + interval '2 months', 'YYYYMM')")
    database.execute(f"drop table ai.llm_calls_p{month}")
    reading = database.connect(user=member, autocommit=False)
    for table in ("generations", "llm_calls", "models"):
        reading.execute(f"select count(*) from ai.{table}")
    worker, app = impatient(PlainWorker(database)), database.connect(user=member, options=IMPATIENT)
    # A partition is wanted, for which the default one must be locked for a moment: that is put off.
    worker.connection.execute("reset lock_timeout")
    database.execute("update ai.maintenance set partitions_at = '-infinity'")
    assert worker.maintain().get("partitions_blocked") is True
    ask(app)
    attempts = worker.claim(10, look_at_everything=True)
    assert len(attempts) == 1
    assert set(worker.settle(attempts).values()) == {"ended"}
    reading.rollback()
    database.execute("update ai.maintenance set partitions_at = '-infinity'")
    assert worker.maintain()["partitions_made"] == 1


def test_maintenance_is_done_by_one_at_a_time_and_nobody_can_lock_it_out(database: Database, member: Member) -> None:
    workers = [impatient(PlainWorker(database)) for _ in range(2)]
    workers[0].connection.autocommit = False
    assert "rescued" in workers[0].maintain()
    assert workers[1].maintain()["skipped"] is True
    workers[0].connection.commit()
    app = database.connect(user=member)
    for first in range(1634300000, 1634300010):
        app.execute("select pg_advisory_lock(%s, 0)", [first])
    assert "rescued" in workers[1].maintain()


# Lanes: what is queued is found, whenever its lane was taken off the list.


@pytest.mark.parametrize("level", ISOLATION)
def test_a_row_is_never_queued_in_a_lane_that_is_not_listed(
    database: Database, member: Member, dice: random.Random, level: str
) -> None:
    inserters = [database.connect(user=member, autocommit=False) for _ in range(3)]
    for one in inserters:
        one.isolation_level = ISOLATION[level]
    worker = PlainWorker(database)
    ask(database.connect(user=member))
    worker.settle(worker.claim(10, look_at_everything=True))
    found: list[Attempt] = []

    def run(number: int, dice: random.Random) -> int:
        if number == 3:
            for _ in range(120):
                worker.maintain()
                found.extend(worker.claim(1000, look_at_everything=True))
            return 0
        done = 0
        for _ in range(60):
            try:
                if dice.random() < 0.5:
                    inserters[number].execute("select count(*) from ai.models")  # the snapshot is older than the insert
                ask(inserters[number], priority=dice.choice(["high", "normal", "low"]))
                if dice.random() < 0.1:
                    inserters[number].rollback()
                else:
                    inserters[number].commit()
                    done += 1
            except psycopg.errors.SerializationFailure:
                inserters[number].rollback()
        return done

    done = sum(at_once(4, run, dice))
    found.extend(worker.claim(1000, look_at_everything=True))
    assert len(found) == len(set(found)) == done
    unlisted = database.value(
        "select count(*) from ai.queue q where not exists (select from ai.active_lanes a where a.lane_id = q.lane_id)"
    )
    assert unlisted == 0
    worker.maintain()
    worker.maintain()
    assert database.value("select count(*) from ai.active_lanes") == 0


@pytest.mark.parametrize("level", ISOLATION)
def test_a_transaction_of_any_level_may_insert_cancel_and_read_its_own_generation(
    database: Database, member: Member, level: str
) -> None:
    app = database.connect(user=member, autocommit=False)
    app.isolation_level = ISOLATION[level]
    kept, cancelled = ask(app), ask(app)
    assert app.execute("select ai.cancel(%s) as s", [cancelled]).fetchone()["s"] == "cancelled"
    with app.transaction(force_rollback=True):
        undone = ask(app)
    app.commit()
    worker = PlainWorker(database)
    [attempt] = worker.claim(10, look_at_everything=True)
    assert attempt.generation_id == kept
    assert database.value("select count(*) from ai.generations where id = %s", undone) == 0


# Registration and prices


def test_a_role_does_not_become_both_bound_and_a_gateway(
    database: Database, member: Member, dice: random.Random
) -> None:
    for _ in range(20):
        login = database.login()
        sessions = [database.connect(), database.connect()]
        statements = [
            ("insert into ai.authenticators (role_name) values (%s)", [login.name]),
            (
                "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, %s)",
                [login.name, member.tenant_id, member.user_id],
            ),
        ]

        def run(number: int, _: random.Random, sessions=sessions, statements=statements) -> str:
            try:
                sessions[number].execute(*statements[number])
            except psycopg.Error as error:
                return error.sqlstate or "?"
            return "ok"

        assert sorted(at_once(2, run, dice)) == ["PT409", "ok"]


def test_price_versions_that_are_added_at_once_follow_one_another(database: Database, dice: random.Random) -> None:
    model = database.model(database.provider("p", "http://p.test"), "p/m")
    sessions = [database.connect() for _ in range(6)]

    def run(number: int, dice: random.Random) -> int:
        added = 0
        for _ in range(10):
            try:
                sessions[number].execute(
                    "insert into ai.prices (model_id, rates, valid_from)"
                    " values (%s, %s, now() + %s * interval '1 second')",
                    [model, '{"input": 1, "output": 1}', dice.randrange(1, 100000)],
                )
                added += 1
            except psycopg.Error as error:
                if error.sqlstate not in ("PT409", "23505"):
                    raise
        return added

    added = sum(at_once(6, run, dice))
    rows = database.execute(
        "select valid_from::text f, valid_to::text t from ai.prices where model_id = %s order by prices.valid_from",
        model,
    )
    assert len(rows) == added + 1
    assert [row["t"] for row in rows] == [*(row["f"] for row in rows[1:]), "infinity"]


# Everything at once


def test_nothing_deadlocks_and_everything_ends_once_whatever_is_done_at_once(
    database: Database, dice: random.Random
) -> None:
    """Apps insert, cancel and read; workers claim, publish, settle, die and are rescued; one maintains, one sweeps."""
    members = [database.member() for _ in range(3)]
    database.execute(
        "update ai.settings set heartbeat_ms = 100, lease_ms = 500, backoff_base_ms = 1, backoff_cap_ms = 5,"
        " max_attempts = 20"
    )
    apps, workers = 4, 4
    connections = [database.connect(user=members[n % 3]) for n in range(apps)]
    crew = [PlainWorker(database, f"crew {n}") for n in range(workers)]
    asked: list[list[uuid.UUID]] = [[] for _ in range(apps)]
    troubles: list[str] = []

    def app(number: int, dice: random.Random) -> None:
        connection, mine = connections[number], asked[number]
        for _ in range(60):
            what = dice.random()
            if what < 0.5 or not mine:
                count = dice.choice([1, 1, 5, 20])
                rows = connection.execute(
                    "insert into ai.generations (prompt, stream, priority)"
                    " select 'x', %s, %s from generate_series(1, %s) returning id",
                    [dice.random() < 0.5, dice.choice(["high", "normal", "low"]), count],
                ).fetchall()
                mine.extend(row["id"] for row in rows)
            elif what < 0.8:
                with connection.transaction():  # several cancels in one transaction, in any order
                    for one in dice.sample(mine, min(4, len(mine))):
                        connection.execute("select ai.cancel(%s)", [one])
            else:
                connection.execute("select * from ai.read_stream(%s, 0, 5)", [dice.choice(mine)]).fetchall()

    def work(number: int, dice: random.Random) -> None:
        for _ in range(80):
            worker = crew[number]
            if not worker.heartbeat():  # it was declared dead: it registers again
                worker = crew[number] = PlainWorker(database, f"crew {number}")
            attempts = worker.claim(dice.choice([1, 8, 64]), look_at_everything=dice.random() < 0.5)
            dice.shuffle(attempts)
            for one in attempts[:3]:
                worker.publish(one, "text")
            for one in worker.cancellations():
                worker.settle([one], outcome="cancelled", output="")
            cut = dice.randrange(len(attempts) + 1)
            worker.settle(attempts[:cut], output="yes", tail="s")
            kind = dice.random()
            if kind < 0.3:
                worker.settle(attempts[cut:], outcome="failed", signal="http", http_status=503, output="")
            elif kind < 0.5:
                worker.settle(attempts[cut:], outcome="released", sent=False, output="")
            # else they are forgotten, as by a worker that died
            if dice.random() < 0.1:
                worker.stop()

    def upkeep(number: int, dice: random.Random) -> None:
        connection = database.connect()
        keeper = PlainWorker(database, "keeper")
        for _ in range(60):
            keeper.maintain()
            if dice.random() < 0.2:
                connection.execute("select ai.requeue_orphans()")
            if dice.random() < 0.2:
                connection.execute("update ai.maintenance set partitions_at = '-infinity', orphans_at = '-infinity'")

    def run(number: int, dice: random.Random) -> None:
        try:
            (app if number < apps else work if number < apps + workers else upkeep)(
                number - apps if number >= apps else number, dice
            )
        except psycopg.Error as error:
            if error.sqlstate == "23505" and "stream_events" in str(error):
                return  # two wrote the same number: nothing was written, the worker says it again
            troubles.append(f"{number}: {error.sqlstate} {error}")

    at_once(apps + workers + 2, run, dice)
    assert troubles == []

    # What is left is finished in peace.
    database.execute("update ai.workers set heartbeat_at = '-infinity' where ended_at is null")
    last = PlainWorker(database, "last")
    wanted = sum(map(len, asked))
    for _ in range(2000):
        last.heartbeat()
        last.maintain()
        last.settle(last.claim(1000, look_at_everything=True))
        if database.value("select count(*) from ai.generations where finished_at is null") == 0:
            break
    assert database.value("select count(*) from ai.generations where finished_at is not null") == wanted
    for table in ("queue", "delayed", "leases"):
        assert database.value(f"select count(*) from ai.{table}") == 0, table
    # One row for each attempt at a provider, no more; what was handed back unsent is the only difference.
    assert (
        database.value(
            "select count(*) from ai.generations g"
            " where attempts < (select count(*) from ai.llm_calls c where c.generation_id = g.id)"
        )
        == 0
    )
    assert (
        database.value(
            "select count(*) from (select from ai.llm_calls group by generation_id, attempt having count(*) > 1) twice"
        )
        == 0
    )
    # Every stream without a gap, the end after everything.
    assert (
        database.value(
            "select count(*) from (select generation_id, count(*) n, max(seq) m from ai.stream_events group by 1) e"
            " join ai.generations g on g.id = e.generation_id where n <> m or m + 1 <> g.last_seq"
        )
        == 0
    )
    sums = [database.value(f"select sum(cost) from ai.{table}") for table in ("llm_calls", "generations")]
    assert sums[0] == sums[1]


def test_an_insert_that_conflicts_with_a_key_it_cannot_see_is_told_so(database: Database, member: Member) -> None:
    first, second = database.connect(user=member), database.connect(user=member, autocommit=False)
    second.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    second.execute("select count(*) from ai.generations")
    ask(first, idempotency_key="k")
    with refused("40001"):
        ask(second, idempotency_key="k")
    second.rollback()
    assert second.execute("select ai.generate('x', idempotency_key => 'k') as id").fetchone()["id"] is not None
