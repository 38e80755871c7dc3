"""c: local generations that need no provider, drained by one worker in batches, all of it on."""

from __future__ import annotations

import time

import psycopg
from Benchmarks import queue_peers
from Benchmarks.floors import Floors
from Benchmarks.installation import Installation, settle_down
from Benchmarks.measuring import Figures, Result, at_least, in_turns, medians
from Benchmarks.setting import Setting

FLOOR = "minimal SQL, batches of 100"
UNLIMITED, AS_OWNER = "without limits", "by the owner, who names the member in each row"
_NEWEST = "select coalesce(max(id::text), '00000000-0000-0000-0000-000000000000') from ai.generations"
_RATE = """
select count(*) filter (where status = 'succeeded')::integer as succeeded, count(*)::integer as n,
       count(*) / nullif(extract(epoch from max(finished_at) - min(started_at)), 0)::float8 as rate
  from ai.generations where id > %s::uuid
"""


def drained(installed: Installation, rows: int, workers: int = 1, **options: object) -> Figures:
    """Rows that wait are taken by workers that start; the rate from the first claim to the last end."""
    newest = installed.database.value(_NEWEST)
    report = installed.bench("load", requests=rows, clients=1, batch=min(rows, 10_000), no_wait=True)
    assert report["inserted"] == rows, report
    settle_down(installed.database)
    with installed.working(workers, **options):
        installed.wait_until_all_ended(300)
    (sums,) = installed.database.execute(_RATE, newest)
    assert sums["succeeded"] == sums["n"] == rows, sums
    settle_down(installed.database)
    return {"rate": sums["rate"]}


def without_limits(installed: Installation, rows: int, **options: object) -> Figures:
    """The same member with no limit that counts."""
    switch = "update ai.limits set enabled = %s"
    installed.database.execute(switch, False)
    try:
        return drained(installed, rows, **options)
    finally:
        installed.database.execute(switch, True)


def inserted(installed: Installation, rows: int, as_owner: bool) -> Figures:
    """Inserts of 1,000 rows that nobody answers, by the member or by the owner in the member's name; rolled back."""
    named = ("tenant_id, user_id, ", "%s, %s, ") if as_owner else ("", "")
    statement = (
        f"insert into ai.generations ({named[0]}model, prompt)"
        f" select {named[1]}'local/extract', 'What is swift number ' || n || '?' from generate_series(1, 1000) n"
    )
    values = [installed.member.tenant_id, installed.member.user_id] if as_owner else None
    with psycopg.connect(installed.database.url if as_owner else installed.member.url) as connection:
        began = time.perf_counter()
        for _ in range(max(1, rows // 1_000)):
            connection.execute(statement, values)
        took = time.perf_counter() - began
        connection.rollback()
    return {"rate": max(1, rows // 1_000) * 1_000 / took}


def run(setting: Setting) -> list[Result]:
    rows = setting.size(30_000, 500)
    options = {"concurrency": setting.size(1_000, 100)}
    with setting.installation() as installed, queue_peers.installed(setting, installed) as peers:
        floors = Floors(setting, installed)
        installed.warm_up()
        taken = in_turns(
            setting.rounds,
            {
                "ours": lambda: drained(installed, rows, **options),
                FLOOR: lambda: {"rate": floors.drain(rows)},
                UNLIMITED: lambda: without_limits(installed, rows, **options),
                **{peer.name: lambda peer=peer: peer.drain() for peer in peers},
            },
        )
        rights = in_turns(
            setting.rounds,
            {
                "ours": lambda: inserted(installed, setting.size(20_000, 1_000), as_owner=False),
                AS_OWNER: lambda: inserted(installed, setting.size(20_000, 1_000), as_owner=True),
            },
        )
    names = [FLOOR, *(peer.name for peer in peers), UNLIMITED]
    return [
        Result("c", "local no-op generations through one worker, batches", "/s", taken["ours"]["rate"],
               medians(taken, "rate", *names), [at_least(12_000)]),
        Result("c", "inserts of 1,000 rows by a bound member", "rows/s", rights["ours"]["rate"],
               medians(rights, "rate", AS_OWNER)),
    ]  # fmt: skip
