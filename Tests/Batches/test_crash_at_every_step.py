"""A worker dies at every moment of a provider batch's life: each generation is answered once, and each answer is on the
books once."""

from __future__ import annotations

import random
import time
import uuid
from decimal import Decimal

import pytest
from batching import BatchWorker, DiedError, Provider, batch_model, quick
from databases import Database, Member
from simulated import books_are_consistent

COUNT = 5


def ask(database: Database, member: Member, model: str, count: int = COUNT) -> list[uuid.UUID]:
    rows = database.connect(user=member).execute(
        "insert into ai.generations (prompt, model, priority) select 'question ' || n, %s, 'batch'"
        " from generate_series(1, %s) n returning id",
        [model, count],
    )
    return [row["id"] for row in rows]


def live(database: Database, provider: Provider, deaths: set[int]) -> list[str]:
    """Workers follow each other, each until it dies, until everything has ended; returns the moments that came."""
    moments: list[str] = []

    def moment(name: str) -> None:
        moments.append(name)
        if len(moments) - 1 in deaths:
            raise DiedError(name)

    deadline = time.monotonic() + 30
    worker = None
    while True:
        assert time.monotonic() < deadline, moments
        worker = worker or BatchWorker(database, provider, moment)
        try:
            while worker.claim(look_at_everything=True):
                pass
            for step in (steps := worker.steps()):
                worker.do(step)
        except DiedError:
            database.execute("update ai.workers set ended_at = now(), ending = 'dead' where id = %s", worker.id)
            worker.connection.close()
            worker = None
            continue
        if not steps and not database.value("select count(*) from ai.provider_batches where state <> 'ended'"):
            # What was retried singly is answered like any other.
            singles = worker.claim(look_at_everything=True)
            for attempt in singles:
                worker.settle([attempt], usage={"input": 10, "output": 5})
            if not singles and not database.value("select count(*) from ai.generations where finished_at is null"):
                worker.connection.close()
                return moments
        elif not steps:
            time.sleep(0.003)


def is_right(database: Database, member: Member, asked: list[uuid.UUID], provider: Provider) -> None:
    rows = database.execute("select * from ai.generations where id = any(%s)", asked)
    assert {row["status"] for row in rows} == {"succeeded"}
    for row in rows:
        calls = database.execute("select * from ai.llm_calls where generation_id = %s", row["id"])
        assert len(calls) == 1, calls
        assert (calls[0]["status"], calls[0]["service_tier"], calls[0]["cost"]) == (
            "succeeded",
            "batch",
            Decimal("0.0000525"),
        )
        assert provider.billed[f"{row['id']}_1"] == 1
    for table in ("batched_requests", "leases", "queue", "delayed"):
        assert database.value(f"select count(*) from ai.{table}") == 0, table


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_worker_that_dies_at_any_moment_neither_loses_nor_repeats_anything(
    database: Database, member: Member, dialect: str
) -> None:
    quick(database)
    model = batch_model(database, dialect)
    database.execute(
        "insert into ai.limits (tenant_id, metric, period, amount) values (%s, 'cost', 'month', 1000)", member.tenant_id
    )
    calm = live(database, Provider(names=dialect == "openai"), set())
    asked = ask(database, member, model)
    provider = Provider(names=dialect == "openai")
    calm = live(database, provider, set())
    is_right(database, member, asked, provider)
    for death in range(len(calm)):
        provider = Provider(names=dialect == "openai")
        asked = ask(database, member, model)
        moments = live(database, provider, {death})
        assert len(moments) > death, "nobody died"
        is_right(database, member, asked, provider)
    books_are_consistent(database)
    spent = database.value("select sum(cost) from ai.llm_calls")
    assert (
        database.value("select sum(e.delta) from ai.counter_entries e join ai.counters c on c.id = e.counter_id")
        == spent
    ), "what was reserved is given back"


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_workers_that_die_several_times_at_random_moments(
    database: Database, member: Member, dialect: str, dice: random.Random
) -> None:
    quick(database)
    model = batch_model(database, dialect)
    for _ in range(6):
        provider = Provider(names=dialect == "openai")
        asked = ask(database, member, model)
        live(database, provider, {dice.randrange(30) for _ in range(6)})
        is_right(database, member, asked, provider)
    books_are_consistent(database)


def test_workers_that_die_among_batches_that_look_alike(
    database: Database, member: Member, dice: random.Random
) -> None:
    quick(database, provider_batch_requests=2)
    model = batch_model(database, "anthropic")
    for _ in range(6):
        provider = Provider(names=False)
        asked = ask(database, member, model, 6)
        live(database, provider, {dice.randrange(60) for _ in range(8)})
        is_right(database, member, asked, provider)
    books_are_consistent(database)
