"""e and f: how quickly an app gets its questions in."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import psycopg
import waiting
from Benchmarks import pgbench, queue_peers
from Benchmarks.floors import PROMPT, Floors
from Benchmarks.installation import Installation, opened, settle_down
from Benchmarks.measuring import Figures, Result, at_least, in_turns, medians
from Benchmarks.setting import Setting

PLAIN, NOTIFIED = "plain insert", "a NOTIFY per insert"
ASKED = "minimal SQL: a policy, who asks, a queue"
PLAIN_ROWS = "plain insert … select"


@contextlib.contextmanager
def busy_with_long_calls(installed: Installation, places: int = 8) -> Iterator[Callable[[], bool]]:
    """A worker all of whose places are taken by calls that do not end. It knows that more is queued, so it does not
    sleep and no insert notifies. Gives a function that tells whether that is still so."""
    model = installed.model("bench/endless", "hang")
    installed.warm_up()  # not before: a new model makes void what claims have noted for inserts
    worker = installed.worker(concurrency=places)
    with psycopg.connect(installed.member.url, autocommit=True) as app:
        app.execute(
            "insert into ai.generations (model, prompt, deadline_ms) select %s, 'Hold on', 3600000"
            " from generate_series(1, %s)",
            [model, 2 * places],
        )

    def is_busy() -> bool:
        asleep = installed.database.value(
            "select count(*) from pg_locks where locktype = 'advisory' and classid = 1634300001"
            " and mode = 'ExclusiveLock'"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        return installed.provider_says("in_flight") == places and asleep == 0

    waiting.until(is_busy, "a worker without a free place")
    try:
        yield is_busy
    finally:
        worker.kill()


def run_single_rows(setting: Setting) -> list[Result]:
    """32 clients, one row a transaction: a worker has no place for them, or answers them."""
    seconds = setting.size(4.0, 1.0)
    clients = setting.size(32, 4)
    insert = f"insert into ai.generations (model, prompt) values ('local/extract', '{PROMPT}');"
    with setting.installation() as installed, opened(setting.server, setting.folder / "answering") as answering:
        floors = Floors(setting, installed)
        answering.warm_up()

        def inserted(where: Installation) -> Figures:
            return {"rate": pgbench.transactions_a_second(where.member.url, setting.folder, insert, clients, seconds)}

        def answered() -> Figures:
            with answering.working():
                figures = inserted(answering)
            settle_down(answering.database)
            return figures

        def floor(measure: Callable[[], float]) -> Figures:
            rate = measure()
            settle_down(installed.database)
            return {"rate": rate}

        with busy_with_long_calls(installed) as is_busy:

            def waits() -> Figures:
                figures = inserted(installed)
                assert is_busy(), "the worker was not busy all the time"
                settle_down(installed.database)
                return figures

            contenders = {
                "ours": waits,
                "answered": answered,
                PLAIN: lambda: floor(lambda: floors.inserts("floor_plain", clients, seconds)),
                NOTIFIED: lambda: floor(lambda: floors.inserts("floor_notified", clients, seconds)),
                ASKED: lambda: floor(lambda: floors.asked(clients, seconds)),
            }
            taken = in_turns(setting.rounds, contenders)
    peers = medians(taken, "rate", PLAIN, NOTIFIED, ASKED)
    return [
        Result(
            "e",
            f"single-row inserts, {clients} clients, worker busy with long calls",
            "/s",
            taken["ours"]["rate"],
            peers,
            [at_least(0.45, PLAIN), at_least(2, NOTIFIED)],
        ),
        Result(
            "e",
            f"single-row inserts, {clients} clients, while the worker answers them: whole generations, no target",
            "/s",
            taken["answered"]["rate"],
            peers,
        ),
    ]


def run_many_rows(setting: Setting) -> list[Result]:
    """One INSERT of 100,000 rows."""
    rows = setting.size(100_000, 2_000)
    with setting.installation() as installed, queue_peers.installed(setting, installed) as peers:
        Floors(setting, installed)
        installed.warm_up()
        plain = (
            "insert into floor_plain (tenant_id, user_id, model, prompt)"
            " select '00000000-0000-7000-8000-000000000000', 'bench', 'local/extract', %s || n"
            " from generate_series(1, %s) n"
        )

        def ours() -> Figures:
            report = installed.bench("load", requests=rows, clients=1, batch=rows, no_wait=True)
            assert report["inserted"] == rows, report
            settle_down(installed.database)
            return {"rate": report["inserted_per_second"]}

        def floor() -> Figures:
            began = time.perf_counter()
            installed.database.execute(plain, PROMPT, rows)
            took = time.perf_counter() - began
            settle_down(installed.database)
            return {"rate": rows / took}

        taken = in_turns(
            setting.rounds,
            {"ours": ours, PLAIN_ROWS: floor, **{peer.name: lambda peer=peer: peer.enqueue() for peer in peers}},
        )
    names = [PLAIN_ROWS, *(peer.name for peer in peers)]
    return [
        Result(
            "f",
            f"one insert … select of {rows:,} rows",
            "rows/s",
            taken["ours"]["rate"],
            medians(taken, "rate", *names),
            [at_least(50_000)],
        )
    ]
