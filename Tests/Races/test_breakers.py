"""Circuit breakers while several workers claim and settle at once: one probe, exact counts, nobody waits."""

from __future__ import annotations

import random
from functools import partial

from crowd import at_once
from databases import Database, Member
from protocol import Attempt, PlainWorker

BROKEN = {"outcome": "failed", "signal": "http", "http_status": 503, "latency_ms": 1}


def provide(database: Database, *names: str, **thresholds: int) -> dict[str, int]:
    """Models of one provider, and how many failures of class `transient` open a breaker, by scope."""
    provider = database.provider("flaky", "http://127.0.0.1:9")
    for scope in ("model", "provider"):
        database.execute(
            "update ai.breaker_settings set threshold = %s, cooldown_ms = 100 where scope = %s and class = 'transient'",
            thresholds.get(scope, 100000),
            scope,
        )
    database.execute("update ai.settings set backoff_base_ms = 1, backoff_cap_ms = 1, max_attempts = 100")
    return {name: database.model(provider, name) for name in names}


def ask(database: Database, member: Member, model: str, count: int) -> None:
    database.connect(user=member).execute(
        "insert into ai.generations (prompt, model) select 'question ' || n, %s from generate_series(1, %s) n",
        [model, count],
    )


def opened(database: Database, model_id: int) -> None:
    """Opens the breaker of a model, with its probe due now."""
    database.execute(
        "insert into ai.breakers (model_id, state, failures, opened_at, probe_at, cooldown_ms, why)"
        " values (%s, 'open', 5, now() - interval '1 min', now(), 100, 'transient')",
        model_id,
    )


def test_of_many_workers_one_sends_the_probe(database: Database, member: Member, dice: random.Random) -> None:
    models = provide(database, "m")
    ask(database, member, "m", 80)
    opened(database, models["m"])
    workers = [PlainWorker(database, f"w{n}") for n in range(8)]
    claimed = at_once(8, lambda n, _: workers[n].claim(10, look_at_everything=True), dice)
    assert sum(map(len, claimed)) == 1
    assert database.value("select state from ai.breakers") == "half_open"
    # It answers: closed, and what waited goes out.
    (probe,) = [(n, one) for n, share in enumerate(claimed) for one in share]
    assert set(workers[probe[0]].settle([probe[1]], latency_ms=1).values()) == {"ended"}
    assert database.value("select count(*) from ai.breakers") == 0
    database.execute("update ai.delayed set due_at = now()")
    assert len(workers[0].claim(100, look_at_everything=True)) == 79


def test_a_probe_that_is_being_claimed_keeps_nobody_waiting(database: Database, member: Member) -> None:
    models = provide(database, "m", "healthy")
    ask(database, member, "m", 3)
    opened(database, models["m"])
    slow, quick = PlainWorker(database, "slow"), PlainWorker(database, "quick")
    quick.connection.execute("set lock_timeout = '20s'")
    slow.connection.execute("begin")
    assert len(slow.claim(2, look_at_everything=True)) == 1
    # Its claim has not committed: the other finds the breaker taken, and goes on with what is healthy.
    ask(database, member, "healthy", 2)
    claimed = quick.claim(10, look_at_everything=True)
    assert len(claimed) == 2
    assert set(quick.settle(claimed, latency_ms=1).values()) == {"ended"}
    slow.connection.execute("rollback")
    # Nothing was let through: the probe is still to be sent.
    database.execute("update ai.delayed set due_at = now()")
    assert len(quick.claim(10, look_at_everything=True)) == 1


def test_a_probe_that_a_limit_refuses_is_sent_by_another_tenant_at_once(database: Database, member: Member) -> None:
    models = provide(database, "m")
    other = database.member()
    database.execute(
        "insert into ai.limits (tenant_id, metric, period, amount, on_limit)"
        " values (%s, 'requests', 'month', 0, 'reject')",
        member.tenant_id,
    )
    slow, quick = PlainWorker(database, "slow"), PlainWorker(database, "quick")
    ask(database, member, "m", 1)
    for _ in range(2):  # the first makes the lane of the limit
        assert slow.claim(10, look_at_everything=True) == []
    assert database.value("select status from ai.generations") == "rejected"
    opened(database, models["m"])
    ask(database, member, "m", 1)
    slow.connection.execute("begin")
    assert slow.claim(10, look_at_everything=True) == []
    # Until that is committed nobody knows that it is not sent.
    ask(database, other, "m", 1)
    assert quick.claim(10, look_at_everything=True) == []
    slow.connection.execute("commit")
    assert database.value("select state from ai.breakers") == "open"
    database.execute("update ai.delayed set due_at = now()")
    assert len(quick.claim(10, look_at_everything=True)) == 1
    assert database.value("select state from ai.breakers") == "half_open"
    assert database.value("select tenant_id from ai.leases") == other.tenant_id


def test_failures_are_counted_exactly_and_without_deadlock(
    database: Database, member: Member, dice: random.Random
) -> None:
    names = [f"m{n}" for n in range(6)]
    models = provide(database, *names)
    for name in names:
        ask(database, member, name, 8 * 5)
    workers = [PlainWorker(database, f"w{n}") for n in range(8)]
    shares: list[list[Attempt]] = [[] for _ in workers]
    everything = workers[0].claim(240, look_at_everything=True)
    dice.shuffle(everything)
    # All leases are the first worker's; the others report in its name.
    for number, one in enumerate(everything):
        shares[number % 8].append(one)
    for worker in workers[1:]:
        worker.id = workers[0].id

    def report(number: int, dice: random.Random) -> None:
        share = shares[number]
        while share:
            size = dice.randrange(1, 8)
            some, share = share[:size], share[size:]
            assert set(workers[number].settle(some, **BROKEN).values()) == {"requeued"}

    at_once(8, report, dice)
    counted = database.execute("select model_id, failures, state from ai.breakers where model_id is not null")
    assert {row["model_id"]: row["failures"] for row in counted} == dict.fromkeys(models.values(), 40)
    assert database.value("select failures from ai.breakers where provider_id is not null") == 240
    assert {row["state"] for row in counted} == {"closed"}


def settle_half(workers: list[PlainWorker], halves: list[list[Attempt]], number: int, dice: random.Random) -> None:
    workers[number].settle(halves[number], **BROKEN)


def test_two_that_open_it_at_once_open_it_once(database: Database, member: Member, dice: random.Random) -> None:
    models = provide(database, "m", model=5)
    for _ in range(10):
        database.execute("delete from ai.breakers")
        database.execute("delete from ai.delayed")
        database.execute("delete from ai.queue")
        ask(database, member, "m", 8)
        first, second = PlainWorker(database, "first"), PlainWorker(database, "second")
        halves = [first.claim(4, look_at_everything=True), second.claim(4, look_at_everything=True)]
        assert [len(half) for half in halves] == [4, 4]
        at_once(2, partial(settle_half, [first, second], halves), dice)
        row = database.execute("select * from ai.breakers where model_id = %s", models["m"])[0]
        assert (row["state"], row["cooldown_ms"]) == ("open", 100)
        assert row["failures"] == 8


def test_successes_and_failures_at_once_lose_no_worker(database: Database, member: Member, dice: random.Random) -> None:
    """A quarter of the answers are errors: whatever the breakers do, every generation has an end and nobody hangs."""
    provide(database, "a", "b", model=3, provider=4)
    for name in ("a", "b"):
        ask(database, member, name, 30)

    def work(number: int, dice: random.Random) -> None:
        worker = PlainWorker(database, f"w{number}")
        worker.connection.execute("set lock_timeout = '10s'")
        for _ in range(3000):
            claimed = worker.claim(dice.randrange(1, 12), look_at_everything=True)
            good = [one for one in claimed if dice.random() < 0.75]
            worker.settle(good, latency_ms=1)
            worker.settle([one for one in claimed if one not in good], **BROKEN)
            if not claimed and database_is_done(worker):
                return

    def database_is_done(worker: PlainWorker) -> bool:
        with database.connect() as connection:
            rows = connection.execute("select count(*) as n from ai.generations where finished_at is null").fetchall()
        return rows[0]["n"] == 0

    at_once(6, work, dice)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 60
