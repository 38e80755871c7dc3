"""Bad weather for a whole installation: workers and the database are killed, frozen, cut off and slowed down at random
moments, the disk is full now and then, and providers misbehave, while an app asks and keeps its own account.

`make chaos` is the long run. MARTLET_SEED repeats one, as far as processes that run at once can be repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import psycopg
import pytest
import waiting
from asking import AskingApp
from databases import Database
from processes import Simulator, Worker
from psycopg import sql
from servers import Server, temporary_server
from simulated import Providers, all_ended, books_agree_with_the_provider
from slow_wire import slow_wire
from small_disk import SmallDisk, small_disk

# How often a worker is killed, and the database (immediate shutdown: no checkpoint, recovery from the log).
KILLS = int(os.environ.get("MARTLET_CHAOS_KILLS", "20"))
CRASHES = int(os.environ.get("MARTLET_CHAOS_CRASHES", "3"))
WORKERS = 2

# Each of them is tried again, so that every question has an answer in the end: nothing lost hides behind an error.
MISBEHAVIOUR = (
    "ttft=60;rate=500;tokens=30",
    "status=503;retry_after_ms=30;chance=10",
    "status=429;retry_after_ms=30;chance=10",
    "status=500;chance=10",
    "embedded_error=0;chance=10",
    "reset;chance=10",
    "empty;chance=10",
    "latency=400",
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk for the tables. It has room for what a run leaves behind."""
    with small_disk(tmp_path.name, 256 + 4 * KILLS) as disk:
        yield disk


@pytest.fixture
def own_server(disk: SmallDisk, tmp_path: Path) -> Iterator[Server]:
    """A server that may be killed, on a disk of its own."""
    with temporary_server(tmp_path.name, inside=disk.inside) as server:
        yield server


@pytest.fixture
def stormy(own_server: Server, disk: SmallDisk, martlet_bin: Path) -> Iterator[Database]:
    """A migrated database on the small disk."""
    with databases.temporary(own_server.url) as database:
        with psycopg.connect(own_server.url, autocommit=True) as admin:
            admin.execute(sql.SQL("create tablespace small location {}").format(sql.Literal(str(disk.place))))
            admin.execute(sql.SQL("alter database {} set tablespace small").format(sql.Identifier(database.name)))
        database.migrate(martlet_bin)
        yield database


def test_nothing_is_lost_ended_twice_or_off_the_books_in_bad_weather(
    stormy: Database,
    own_server: Server,
    disk: SmallDisk,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
) -> None:
    providers = Providers(stormy, simulator)
    models = [
        providers.model(directives, dialect) for directives in MISBEHAVIOUR for dialect in ("openai", "anthropic")
    ]
    wires = contextlib.ExitStack()
    wire = wires.enter_context(slow_wire(own_server.url))
    member = stormy.member()
    member.login.url = wire.through(member.login.url)
    login = dataclasses.replace(stormy.worker, url=wire.through(stormy.worker.url))
    app = AskingApp(member, models, random.Random(dice.random()), most_open=150)
    workers = [worker(stormy, concurrency=24, login=login) for _ in range(WORKERS)]

    def kill_worker() -> None:
        victim = dice.randrange(WORKERS)
        workers[victim].kill()
        workers[victim] = worker(stormy, concurrency=24, login=login, ready=False)

    def crash_database() -> None:
        own_server("stop", "immediate")
        time.sleep(dice.random())
        own_server("start")
        stormy.forget_connections()

    def cut_connections() -> None:
        stormy.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and random() < 0.5"
        )

    def freeze_worker() -> None:
        victim = workers[dice.randrange(WORKERS)]
        victim.freeze()
        time.sleep(dice.choice((0.3, 2.5)))  # the lease is 1.5 s
        victim.thaw()

    def fill_disk() -> None:
        disk.fill(leaving=dice.choice((0, 256 << 10)))
        time.sleep(dice.choice((0.3, 2.5)))
        disk.free()

    def slow_down() -> None:
        wire.delay = dice.choice((0.05, 0.8))  # with the latter, heartbeats come too late for the lease
        time.sleep(dice.choice((0.5, 2.5)))
        wire.delay = 0

    events: list[Callable[[], None]] = [kill_worker] * KILLS + [crash_database] * CRASHES
    events += [cut_connections] * (KILLS // 4) + [freeze_worker] * (KILLS // 4)
    events += [fill_disk] * (KILLS // 10) + [slow_down] * (KILLS // 10)
    dice.shuffle(events)
    app.start()
    for event in events:
        waiting.until(lambda: stormy.value("select count(*) from ai.leases") > 0, "work in flight")
        time.sleep(dice.random() ** 2 * 0.5)
        event()
    app.finish()
    all_ended(stormy, 120)

    assert app.broken > 0, "this was calm weather: no connection of the app broke"
    found = {
        row["idempotency_key"]: row["id"]
        for row in stormy.execute("select idempotency_key, id from ai.generations where status = 'succeeded'")
    }
    assert found == app.acknowledged
    assert stormy.value("select count(*) from ai.llm_calls where status = 'abandoned'") > 0
    books_agree_with_the_provider(stormy, simulator)
    wires.close()
    calls = stormy.execute(
        "select status || ' ' || count(*) as n from ai.llm_calls group by status order by count(*) desc"
    )
    print(
        f"{len(events)} events; {len(app.acknowledged)} questions acknowledged, each answered once;"
        f" {app.broken} connections of the app lost; calls: {', '.join(row['n'] for row in calls)}"
    )
