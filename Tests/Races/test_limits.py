"""Limits are exact (promise 4): whatever is inserted, claimed, settled and lost at once, never one too many."""

from __future__ import annotations

import random
import threading
import uuid
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member
from protocol import Attempt, PlainWorker

CLIENTS = 64
CLAIMERS = 4
SOMETHING_TO_CLAIM = "select from ai.queue q join ai.active_lanes a on a.lane_id = q.lane_id limit 1"


def limit(database: Database, **columns: Any) -> int:
    """Inserts a limit and returns its id."""
    names = ", ".join(columns)
    places = ", ".join(["%s"] * len(columns))
    return database.value(f"insert into ai.limits ({names}) values ({places}) returning id", *columns.values())


def model(database: Database) -> str:
    """A model whose answers have at most 1,000 tokens, at a price of 20 a million of them."""
    provider = database.provider("p", "http://p.test")
    database.model(provider, "p/m", rates='{"input": 1, "output": 15, "reasoning": 20}', max_output_tokens=1000)
    return "p/m"


def insert(connection: psycopg.Connection[Any], count: int, priority: str = "normal") -> None:
    connection.execute(
        "insert into ai.generations (prompt, model, priority, deadline_ms)"
        " select 'x', 'p/m', %s, 86400000 from generate_series(1, %s)",
        [priority, count],
    )


def chains_hold(database: Database) -> None:
    """Each balance is the one before plus delta, and the numbers have no gap, as far as nothing was pruned."""
    assert (
        database.value(
            "select count(*) from (select *, lag(balance, 1, 0::numeric) over w as before,"
            " lag(seq, 1, 0::bigint) over w as last from ai.counter_entries"
            " window w as (partition by counter_id, window_start order by seq)) e"
            " where balance <> before + delta or seq <> last + 1"
        )
        == 0
    )


def highest(database: Database, limit_id: int) -> Decimal:
    """The most that any counter of a limit ever held in a window."""
    return database.value(
        "select coalesce(max(e.balance), 0) from ai.counter_entries e join ai.counters c on c.id = e.counter_id"
        " where c.limit_id = %s",
        limit_id,
    )


def nothing_is_reserved(database: Database) -> None:
    """Nothing runs, so nothing is reserved: of what runs at once none, of money what the calls cost."""
    database.execute("select ai.prune_counters(now())")
    assert database.value("select count(*) from ai.leases") == 0
    assert database.value("select count(*) from ai.unsettled") == 0
    assert (
        database.value(
            "select count(*) from ai.limits l join ai.counters c on c.limit_id = l.id, lateral (select balance from"
            " ai.counter_entries e where e.counter_id = c.id order by window_start desc, seq desc limit 1) b"
            " where l.metric = 'concurrency' and b.balance <> 0"
        )
        == 0
    )


def run_crowd(
    database: Database,
    members: list[Member],
    dice: random.Random,
    rows: int,
    work: Any,
    keys: list[str] | None = None,
) -> None:
    """CLIENTS apps insert `rows` each, while CLAIMERS workers do `work(worker, attempts, dice)` until all is quiet.

    With `keys` each app begins a session with one of these API keys.
    """
    connections = [database.connect(user=members[n % len(members)]) for n in range(CLIENTS)]
    for number, connection in enumerate(connections if keys else []):
        connection.execute("select ai.login(%s, true)", [keys[number % len(keys)] if keys else None])
    workers = [PlainWorker(database, f"claimer {n}") for n in range(CLAIMERS)]
    busy = [CLIENTS]
    lock = threading.Lock()

    def run(number: int, dice: random.Random) -> None:
        if number < CLIENTS:
            try:
                left = rows
                while left > 0:
                    count = min(left, dice.choice([1, 1, 2, 5]))
                    insert(connections[number], count, dice.choice(["high", "normal", "low"]))
                    left -= count
            finally:
                with lock:
                    busy[0] -= 1
            return
        worker, eyes = workers[number - CLIENTS], database.connect()
        while True:
            ended = busy[0] == 0
            attempts = worker.claim(dice.choice([1, 7, 64]), look_at_everything=dice.random() < 0.5 or ended)
            work(worker, attempts, dice)
            if ended and not attempts and not eyes.execute(SOMETHING_TO_CLAIM).fetchall():
                return

    at_once(CLIENTS + CLAIMERS, run, dice)


def settle(worker: PlainWorker, attempts: list[Attempt], dice: random.Random) -> None:
    """Answers of any length up to what is allowed."""
    for one in attempts:
        worker.settle([one], usage={"input": dice.randrange(1, 3), "output": dice.randrange(0, 1001)})


@pytest.mark.parametrize("on_limit", ["wait", "reject"])
def test_a_limit_of_n_admits_n_and_not_one_more(database: Database, dice: random.Random, on_limit: str) -> None:
    model(database)
    tenant = database.tenant()
    members = [database.member(tenant) for _ in range(3)]
    whole = limit(
        database, tenant_id=tenant, metric="requests", period="month", amount=100, on_limit=on_limit, operator=True
    )
    each = limit(database, per="member", metric="requests", period="month", amount=50, on_limit=on_limit)
    run_crowd(database, members, dice, 6, settle)
    assert highest(database, whole) == 100
    assert highest(database, each) <= 50
    assert database.value("select count(*) from ai.llm_calls") == 100
    by_status = {
        row["status"]: row["n"] for row in database.execute("select status, count(*) n from ai.generations group by 1")
    }
    assert by_status == {"succeeded": 100, "queued" if on_limit == "wait" else "rejected": CLIENTS * 6 - 100}
    assert (
        database.value("select count(*) from ai.generations where status = 'rejected' and error ->> 'code' <> 'PT429'")
        == 0
    )
    chains_hold(database)
    nothing_is_reserved(database)
    if on_limit == "wait":  # raised: what waits goes on, and all of it
        database.execute("update ai.limits set amount = 1000000")
        worker = PlainWorker(database)
        while attempts := worker.claim(64, look_at_everything=True) or worker.claim(64, look_at_everything=True):
            settle(worker, attempts, dice)
        assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0


def test_a_limit_per_api_key_admits_n_of_each_key_and_not_one_more(database: Database, dice: random.Random) -> None:
    model(database)
    tenant = database.tenant()
    member = database.member(tenant, role="admin")
    made = database.execute(
        "select k.id, k.key from generate_series(1, 2) n, ai.create_api_key('key ' || n, %s, null, null, %s) k",
        member.user_id,
        tenant,
    )
    rotated = database.execute("select id, key from ai.rotate_api_key(%s)", made[0]["id"])[0]
    limit(database, per="api_key", metric="requests", period="month", amount=30, on_limit="reject")
    limit(database, tenant_id=tenant, api_key_id=made[0]["id"], metric="requests", period="month", amount=20)
    run_crowd(database, [member], dice, 2, settle, [made[0]["key"], made[1]["key"], rotated["key"]])
    asked = database.execute(
        "select origin_id, status, count(*) n from ai.generations g join ai.api_keys k on k.id = g.api_key_id"
        " group by 1, 2"
    )
    by_key = {(row["origin_id"], row["status"]): row["n"] for row in asked}
    first, second = made[0]["id"], made[1]["id"]
    # 21 or 22 of the 64 apps have each of the keys, and ask twice.
    assert by_key[first, "succeeded"] == 20, "the key and what it was rotated into, together"
    assert by_key[second, "succeeded"] == 30
    assert by_key[second, "rejected"] == 12
    assert sum(by_key.values()) == CLIENTS * 2
    chains_hold(database)
    nothing_is_reserved(database)


@pytest.mark.parametrize("on_limit", ["wait", "reject"])
def test_a_budget_is_never_exceeded_and_is_the_sum_of_the_calls(
    database: Database, dice: random.Random, on_limit: str
) -> None:
    model(database)
    tenant = database.tenant()
    members = [database.member(tenant) for _ in range(3)]
    budget = Decimal("1.5")
    money = limit(database, tenant_id=tenant, metric="cost", period="month", amount=budget, on_limit=on_limit)
    database.execute("select ai.add_credit(%s, 1.2)", tenant)
    database.execute("update ai.limits set on_limit = %s where metric = 'credit'", on_limit)
    credit = database.value("select id from ai.limits where metric = 'credit'")
    run_crowd(database, members, dice, 5, settle)
    cost = database.value("select sum(cost) from ai.llm_calls")
    assert cost <= Decimal("1.2")
    if on_limit == "wait":  # what is left is less than the dearest answer
        assert cost > Decimal("1.2") - Decimal("0.021")
    assert highest(database, money) <= budget
    assert highest(database, credit) <= Decimal("1.2")
    for one in (money, credit):
        assert (
            database.value(
                "select sum(delta) from ai.counter_entries e join ai.counters c on c.id = e.counter_id"
                " where c.limit_id = %s",
                one,
            )
            == cost
        )
    chains_hold(database)
    nothing_is_reserved(database)


def test_no_more_run_at_once_than_allowed_and_all_get_their_turn(database: Database, dice: random.Random) -> None:
    model(database)
    members = [database.member(database.tenant()) for _ in range(2)]
    at_most = limit(database, metric="concurrency", amount=5)
    running = {member.tenant_id: 0 for member in members}
    most = dict(running)
    lock = threading.Lock()
    tenants: dict[uuid.UUID, uuid.UUID] = {}

    def work(worker: PlainWorker, attempts: list[Attempt], dice: random.Random) -> None:
        ids = [one.generation_id for one in attempts]
        rows = (
            worker_database.execute("select tenant_id, id from ai.generations where id = any (%s)", [ids]).fetchall()
            if ids
            else []
        )
        with lock:
            for row in rows:
                tenants[row["id"]] = row["tenant_id"]
                running[row["tenant_id"]] += 1
                most[row["tenant_id"]] = max(most[row["tenant_id"]], running[row["tenant_id"]])
        dice.shuffle(attempts)
        for one in attempts:
            with lock:
                running[tenants[one.generation_id]] -= 1
            worker.settle([one])

    class Locked:
        """One connection for all claimers, who read the tenants of what they got."""

        def __init__(self) -> None:
            self.connection, self.lock = database.connect(), threading.Lock()

        def execute(self, *arguments: Any) -> Any:
            with self.lock:
                return self.connection.execute(*arguments)

    worker_database = Locked()
    run_crowd(database, members, dice, 4, work)
    # Parked lanes are looked at when something settles; what is left after the crowd went home is claimed in peace.
    last = PlainWorker(database)
    while True:
        attempts = last.claim(64, look_at_everything=True)
        if not attempts and database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0:
            break
        work(last, attempts, dice)
    assert max(most.values()) <= 5
    assert highest(database, at_most) <= 5
    chains_hold(database)
    nothing_is_reserved(database)


def test_those_who_ask_the_same_count_once_each_whoever_answers_them(database: Database, dice: random.Random) -> None:
    """Leaders and followers under limits: no deadlock, each is a request, and only what was called runs and costs."""
    model(database)
    member = database.member()
    database.execute("insert into ai.cache_policies (tenant_id, scope) values (%s, 'tenant')", member.tenant_id)
    at_once_most = limit(database, metric="concurrency", amount=3)
    asked = limit(database, metric="requests", period="month", amount=1000000)
    money = limit(database, metric="cost", period="month", amount=1000000)
    apps = [database.connect(user=member) for _ in range(8)]
    workers = [PlainWorker(database, f"crew {n}") for n in range(CLAIMERS)]
    busy = [len(apps)]
    lock = threading.Lock()

    def run(number: int, dice: random.Random) -> None:
        if number < len(apps):
            for _ in range(15):
                apps[number].execute(
                    "insert into ai.generations (prompt, model, cache, deadline_ms)"
                    " select 'question ' || %s, 'p/m', 'exact', 86400000 from generate_series(1, %s)",
                    [dice.randrange(12), dice.choice([1, 2, 5])],
                )
            with lock:
                busy[0] -= 1
            return
        worker, eyes = workers[number - len(apps)], database.connect()
        while True:
            ended = busy[0] == 0
            attempts = worker.claim(dice.choice([1, 8, 64]), look_at_everything=dice.random() < 0.5 or ended)
            for one in attempts:
                if dice.random() < 0.2:
                    worker.settle([one], outcome="released", sent=False, output="")
                else:
                    worker.settle([one], usage={"input": 2, "output": dice.randrange(100)}, finish_reason="stop")
            if ended and not attempts and not eyes.execute("select from ai.queue limit 1").fetchall():
                return

    at_once(len(apps) + CLAIMERS, run, dice)
    assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
    assert highest(database, at_once_most) <= 3
    nothing_is_reserved(database)
    assert highest(database, money) >= database.value("select sum(cost) from ai.llm_calls")
    # All but those that the cache answered, inside the INSERT or at the first claim.
    answered = database.value(
        "select count(*) from ai.generations g where g.attempts > 0 or not exists"
        " (select from ai.llm_calls c where c.generation_id = g.id and c.cache = 'exact')"
    )
    counted = database.value(
        "select sum(e.delta) from ai.counter_entries e join ai.counters c on c.id = e.counter_id where c.limit_id = %s",
        asked,
    )
    assert counted == answered
    chains_hold(database)


def test_an_old_snapshot_is_refused_by_the_key_and_admits_nothing(database: Database, dice: random.Random) -> None:
    """A worker whose sessions run at REPEATABLE READ reads an old balance: the ledger's key stops it."""
    model(database)
    member = database.member()
    money = limit(database, metric="requests", period="month", amount=3)
    insert(database.connect(user=member), 8)
    first, second = PlainWorker(database), PlainWorker(database)
    assert first.claim(64, look_at_everything=True) == []  # finds the lane and makes the counter
    assert len(first.claim(1, look_at_everything=True)) == 1
    second.connection.autocommit = False
    second.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    second.connection.execute("select 1 from ai.worker_leases(%s)", [second.id])  # the snapshot
    assert len(first.claim(2, look_at_everything=True)) == 2
    with pytest.raises(psycopg.Error) as caught:
        second.claim(3, look_at_everything=True)
    assert caught.value.sqlstate in ("23505", "40001")
    second.connection.rollback()
    assert highest(database, money) == 3


def test_an_open_transaction_of_an_app_holds_up_nobody(database: Database, dice: random.Random) -> None:
    """It inserted, cancelled what runs and what waits, and does not commit: claims and settlements go on."""
    model(database)
    member = database.member()
    limit(database, metric="concurrency", amount=2)
    app = database.connect(user=member)
    insert(app, 6)
    worker = PlainWorker(database)
    worker.connection.execute("set lock_timeout = '5s'")
    worker.claim(64, look_at_everything=True)
    running = worker.claim(64, look_at_everything=True)
    assert len(running) == 2
    app.autocommit = False
    waiting = [row["id"] for row in app.execute("select id from ai.generations where status = 'queued' order by id")]
    app.execute("select ai.cancel(%s), ai.cancel(%s)", [running[0].generation_id, waiting[0]])
    insert(app, 1)
    worker.settle(running)
    assert len(worker.claim(64, look_at_everything=True)) == 2
    app.rollback()


def test_everything_at_once_with_policies_that_change_ends_in_balance(database: Database, dice: random.Random) -> None:
    """Apps insert and cancel; workers settle, fail, hand back and die; admins change every limit; one maintains."""
    model(database)
    tenants = [database.tenant() for _ in range(2)]
    members = [database.member(tenants[n % 2], role="admin") for n in range(4)]
    database.execute(
        "update ai.settings set heartbeat_ms = 100, lease_ms = 500, backoff_base_ms = 1,"
        " backoff_cap_ms = 5, max_attempts = 20"
    )
    database.execute("delete from ai.breaker_settings")
    limit(database, metric="concurrency", amount=7)
    limit(database, per="member", metric="requests", period="second", amount=20)
    limit(database, metric="cost", period="month", amount=1000000)  # counts everything there is
    limit(database, tenant_id=tenants[0], metric="tokens", period="second", amount=20000)
    limit(database, tenant_id=tenants[1], metric="credit", amount=1000000)
    apps = [database.connect(user=members[n % 4]) for n in range(6)]
    crew = [PlainWorker(database, f"crew {n}") for n in range(4)]
    troubles: list[str] = []

    def app(number: int, dice: random.Random) -> None:
        connection = apps[number]
        for _ in range(40):
            what = dice.random()
            if what < 0.6:
                insert(connection, dice.choice([1, 1, 5, 20]), dice.choice(["high", "normal", "low"]))
            elif what < 0.8:
                with connection.transaction():
                    ids = connection.execute(
                        "select id from ai.generations where finished_at is null order by random() limit 3"
                    ).fetchall()
                    for row in sorted(ids, key=lambda row: row["id"]):  # two apps that cancel the same, in one order
                        connection.execute("select ai.cancel(%s)", [row["id"]])
            elif what < 0.9:
                connection.execute(
                    "insert into ai.limits (metric, period, amount, user_id, on_limit) values"
                    " ('requests', 'second', %s, ai.user_id(), %s)",
                    [dice.choice([1, 10, 100]), dice.choice(["wait", "reject"])],
                )
            else:
                connection.execute(
                    # In one order: two admins of a tenant change the same.
                    "update ai.limits set amount = %s, enabled = %s where id = any (array("
                    "select l.id from ai.limits l where not l.operator order by l.id for update))",
                    [dice.choice([0, 1, 10, 1000]), dice.random() < 0.7],
                )

    def work(number: int, dice: random.Random) -> None:
        for _ in range(60):
            worker = crew[number]
            if not worker.heartbeat():
                worker = crew[number] = PlainWorker(database, f"crew {number}")
            attempts = worker.claim(dice.choice([1, 8, 64]), look_at_everything=dice.random() < 0.6)
            dice.shuffle(attempts)
            for one in worker.cancellations():
                worker.settle([one], outcome="cancelled", output="", sent=dice.random() < 0.5)
            cut = dice.randrange(len(attempts) + 1)
            worker.settle(attempts[:cut], usage={"input": 2, "output": dice.randrange(1001)})
            kind = dice.random()
            if kind < 0.3:
                worker.settle(attempts[cut:], outcome="failed", signal="http", http_status=503, output="")
            elif kind < 0.6:
                worker.settle(attempts[cut:], outcome="released", sent=False, output="")
            if dice.random() < 0.1:
                worker.stop()

    def upkeep(number: int, dice: random.Random) -> None:
        connection, keeper = database.connect(), PlainWorker(database, "keeper")
        for _ in range(40):
            keeper.maintain()
            connection.execute("select ai.prune_counters(now() + interval '2 hours')")
            connection.execute(
                "update ai.limits set amount = %s where metric = 'concurrency'", [dice.choice([1, 3, 7, 20])]
            )

    def run(number: int, dice: random.Random) -> None:
        try:
            if number < 6:
                app(number, dice)
            elif number < 10:
                work(number - 6, dice)
            else:
                upkeep(number, dice)
        except psycopg.Error as error:
            troubles.append(f"{number}: {error.sqlstate} {error}")

    at_once(11, run, dice)
    assert troubles == []

    # No limit any more but those that count: whatever is left is finished in peace.
    database.execute("update ai.limits set enabled = false where metric not in ('cost', 'credit')")
    database.execute("update ai.workers set heartbeat_at = '-infinity' where ended_at is null")
    last = PlainWorker(database, "last")
    for _ in range(2000):
        last.heartbeat()
        last.maintain()
        last.settle(last.claim(1000, look_at_everything=True))
        if database.value("select count(*) from ai.generations where finished_at is null") == 0:
            break
    assert database.value("select count(*) from ai.generations where finished_at is null") == 0
    nothing_is_reserved(database)
    # The ledger of money is the sum of the calls, tenant by tenant, to the last digit.
    rows = database.execute(
        "select c.tenant_id, l.metric, sum(e.delta) ledger,"
        " (select coalesce(sum(x.cost), 0) from ai.llm_calls x where x.tenant_id = c.tenant_id) calls"
        " from ai.limits l join ai.counters c on c.limit_id = l.id join ai.counter_entries e on e.counter_id = c.id"
        " where l.metric in ('cost', 'credit') group by 1, 2"
    )
    assert len(rows) == 3
    assert [row["ledger"] for row in rows] == [row["calls"] for row in rows]


def parked(database: Database) -> int:
    return database.value("select count(*) from ai.parked_lanes where counter_id <> 0")


def claimed(worker: PlainWorker) -> int:
    """How many a few claims of everything give: the first one moves what lies in a lane without its limits."""
    return sum(len(worker.claim(look_at_everything=True)) for _ in range(3))


def test_an_open_pause_of_a_lane_at_its_limit_makes_no_claim_look_again_and_again(database: Database) -> None:
    member = database.member()
    name = model(database)
    limit_id = limit(database, tenant_id=member.tenant_id, metric="requests", period="month", amount=1)
    worker, app = PlainWorker(database), database.connect(user=member)
    row = app.execute("select ai.create_batch('paused') as id").fetchone()
    assert row
    app.execute(
        "insert into ai.generations (prompt, model, batch_id) select 'x', %s, %s from generate_series(1, 5)",
        [name, row["id"]],
    )
    assert claimed(worker) == 1
    assert parked(database) == 1
    database.execute("update ai.limits set amount = 1.5")  # lists the lane
    with database.connect(user=member, autocommit=False) as pausing:
        pausing.execute("select ai.pause_batch(%s)", [row["id"]])
        assert worker.claim(look_at_everything=True) == []
        assert parked(database) == 1
        places = database.value("select array_agg(q.ctid order by q.ctid) from ai.queue q")
        for _ in range(10):
            assert worker.claim(look_at_everything=True) == []
            assert worker.claim() == []
            assert worker.wait_ms is not None
            assert worker.wait_ms > 1000
        # Nothing was taken and put back.
        assert database.value("select array_agg(q.ctid order by q.ctid) from ai.queue q") == places
        assert parked(database) == 1
        pausing.commit()
    database.execute("update ai.limits set amount = 100 where id = %s", limit_id)
    assert worker.claim(look_at_everything=True) == []
    app.execute("select ai.resume_batch(%s)", [row["id"]])
    assert len(worker.claim(look_at_everything=True)) == 4


@pytest.mark.parametrize("way", ["limit", "credit"])
def test_a_limit_that_is_raised_beside_a_claim_that_read_the_old_one(database: Database, way: str) -> None:
    member = database.member()
    model(database)
    if way == "limit":
        limit(database, tenant_id=member.tenant_id, metric="requests", period="month", amount=1)
    else:
        database.execute("select ai.add_credit(%s, 0.03)", member.tenant_id)
        database.execute("update ai.limits set on_limit = 'wait'")
    worker = PlainWorker(database)
    insert(database.connect(user=member), 4)
    assert claimed(worker) == 1
    database.execute("update ai.parked_lanes set until = now()")
    worker.connection.execute("begin")
    assert worker.claim(look_at_everything=True) == []
    if way == "limit":
        database.execute("update ai.limits set amount = 100")
    else:
        database.execute("select ai.add_credit(%s, 100)", member.tenant_id)
    worker.connection.execute("commit")
    assert parked(database) == 1
    # Nobody has to wait for the minute to be over.
    assert len(worker.claim(look_at_everything=True)) == 3
    assert database.value("select count(*) from ai.unsettled") == 0


def test_upkeep_waits_for_nobody_who_holds_what_is_late(database: Database) -> None:
    member = database.member()
    name = model(database)
    app, worker = database.connect(user=member), PlainWorker(database)
    row = app.execute("select ai.create_batch('paused', paused => true) as id").fetchone()
    assert row
    rows = app.execute(
        "insert into ai.generations (prompt, model, batch_id, deadline_ms)"
        " select 'x', %s, %s, 1 from generate_series(1, 3) returning id",
        [name, row["id"]],
    ).fetchall()
    with database.connect(user=member, autocommit=False) as other:
        other.execute("select ai.cancel(%s)", [rows[1]["id"]])
        assert worker.maintain()["queued_overdue"] == 2
        other.rollback()
    assert worker.maintain()["queued_overdue"] == 1
    assert database.value("select count(*) from ai.generations where error ->> 'code' = 'PT504'") == 3
    assert database.value("select count(*) from ai.queue") == 0
