"""h: a million queued and five million finished, under an old open transaction, beside empty tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import waiting
from Benchmarks import installation, progress
from Benchmarks.installation import Installation, settle_down
from Benchmarks.measuring import Figures, Result, at_least, at_most, in_turns
from Benchmarks.setting import Setting

EMPTY = "empty tables"

_TENANTS = """
with made as (insert into ai.tenants (name) select 'crowd ' || n from generate_series(1, %s) n returning id)
insert into ai.members (tenant_id, user_id, role) select id, 'one', 'user' from made
"""
_LIMITS = """
insert into ai.limits (tenant_id, metric, period, amount, on_limit)
select t.id, v.metric, v.period, 1000000000, 'wait'
  from ai.tenants t cross join (values ('requests', 'minute'), ('cost', 'month')) v (metric, period)
 where t.name like 'crowd %'
"""
# As they would be after their end, written without triggers: only their number counts.
_FINISHED = """
insert into ai.generations (tenant_id, user_id, prompt, model, status, output, attempts, input_tokens, output_tokens,
                            cost, started_at, finished_at)
select t.id, 'one', 'What is swift number ' || n || '?', 'local/extract', 'succeeded', 'A swift sleeps on the wing.',
       1, 60, 20, 0.0001, now(), now()
  from (select id, row_number() over (order by id) as k from ai.tenants where name like 'crowd %%') t
  join generate_series(%s::integer, %s::integer) n on t.k = 1 + n %% %s
"""
_BOOKS = """
insert into ai.llm_calls (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status, cost)
select tenant_id, id, 1, started_at, user_id, 'local', model, 'chat', 'succeeded', 0.0001
  from ai.generations where status = 'succeeded' and user_id = 'one' and started_at = now()
"""
_QUEUED = """
insert into ai.generations (tenant_id, user_id, prompt, model)
select t.id, 'one', 'What is swift number ' || n || '?', 'local/extract'
  from ai.tenants t cross join generate_series(1, %s) n where t.name like 'crowd %%'
"""
# Of whom something is queued.
_QUEUING = "select count(distinct tenant_id) from ai.queue"


def fill(setting: Setting, installed: Installation) -> None:
    """Most of the queue belongs to one tenant, the rest to a thousand others."""
    database = installed.database
    finished, tenants = setting.size(5_000_000, 5_000), setting.size(1_000, 10)
    queued, few = setting.size(900_000, 40_000), setting.size(100, 10)
    with database.superuser.transaction():
        database.execute("set local session_replication_role = replica")
        for first in range(0, finished, 500_000):
            last = min(first + 500_000, finished)
            with progress.doing(f"{last:,} of {finished:,} finished"):
                database.superuser.execute(_FINISHED, [first, last - 1, tenants])
        with progress.doing("their books"):
            database.execute(_BOOKS)
    with progress.doing("vacuum"):
        database.execute("vacuum analyze ai.generations, ai.llm_calls")
    with progress.doing(f"{few * tenants:,} queued of {tenants:,} tenants"):
        database.superuser.execute(_QUEUED, [few])
    with progress.doing(f"{queued:,} queued of one"):
        installed.bench("load", requests=queued, clients=2, batch=20_000, no_wait=True, seconds=600)
    settle_down(database)


@contextmanager
def held_back(installed: Installation) -> Iterator[None]:
    """A transaction that is older than all that is deleted from now on, as one that was forgotten would be."""
    old = psycopg.connect(installed.database.url)
    old.execute("set transaction isolation level repeatable read")
    old.execute("select count(*) from ai.settings")
    try:
        yield
    finally:
        old.close()


def rate(installed: Installation, seconds: float) -> Figures:
    """How many a second one worker ends while it has enough to do."""
    count = "select count(*) from ai.llm_calls where created_at > %s"
    now = installed.database.value("select now()")
    with installed.working(concurrency=1_000):
        waiting.until(lambda: installed.database.value(count, now), "the first calls", 30)
        first, began = installed.database.value(count, now), time.perf_counter()
        time.sleep(seconds)
        last, took = installed.database.value(count, now), time.perf_counter() - began
        left = installed.database.value("select exists (select from ai.queue)")
    assert left, "the queue was too short to take the time of it"
    return {"rate": (last - first) / took}


def run(setting: Setting) -> list[Result]:
    seconds, tenants = setting.size(5.0, 1.0), setting.size(1_000, 10)
    with (
        installation.opened(setting.server, setting.folder / "empty") as empty,
        installation.opened(setting.server, setting.folder / "deep") as deep,
    ):
        for installed in (empty, deep):
            installed.warm_up()
            installed.database.execute(_TENANTS, tenants)
            installed.database.execute(_LIMITS)
            # The first generation of a tenant makes its lane.
            installed.database.superuser.execute(_QUEUED, [1])
            with installed.working():
                installed.wait_until_all_ended()
        quiet = deep.another_tenant("quiet")
        fill(setting, deep)

        def of_empty() -> Figures:
            # As many tenants, as much as is needed for the time, nothing else.
            empty.database.superuser.execute(_QUEUED, [setting.size(100, 4_000)])
            settle_down(empty.database)
            try:
                return rate(empty, seconds)
            finally:
                with progress.doing("the rest of it"), empty.working(concurrency=1_000):
                    empty.wait_until_all_ended(300)

        with held_back(deep):
            taken = in_turns(setting.rounds, {"deep": lambda: rate(deep, seconds), EMPTY: of_empty})
            with progress.doing("a quiet tenant"), deep.working(concurrency=1_000):

                def starts() -> list[float]:
                    load = {"requests": setting.size(40, 10), "warm_up": 5, "stream": True, "member": quiet}
                    return [deep.bench("latency", **load)["claimed_ms"]["p99"] for _ in range(setting.rounds)]

                beside_all = starts()
                waiting.until(lambda: deep.database.value(_QUEUING) <= 1, "the end of all but the loud tenant's", 120)
                beside_one = starts()
        assert deep.database.value("select exists (select from ai.queue)"), "the queue was empty in the end"
    queued, finished = setting.size(1_000_000, 40_100), setting.size(5_000_000, 5_000)
    what = f"claim and settle, {queued:,} queued, {finished:,} finished, {tenants:,} tenants, old transaction open"
    return [
        Result("h", what, "/s", taken["deep"]["rate"], {EMPTY: taken[EMPTY]["rate"]}, [at_least(0.8, EMPTY)]),
        Result("h", "a row of a quiet tenant beside the loudest of them, commit → claimed, p99", "ms", beside_one, {},
               [at_most(50)], more_is_better=False, remark="the worker is busy with it all the time"),
        Result("h", f"the same beside all {tenants:,}, whose turns come first", "ms", beside_all, {}, [],
               more_is_better=False),
    ]  # fmt: skip
