"""Bad weather for a whole installation: workers and the database are killed, frozen and cut off at random moments, and
providers misbehave, while an app asks and keeps its own account.

`make chaos` is the long run. MARTLET_SEED repeats one, as far as processes that run at once can be repeated.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import pytest
import waiting
from asking import AskingApp
from databases import Database
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider

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
def stormy(own_server: Callable[..., str], martlet_bin: Path) -> Iterator[Database]:
    """A migrated database on a server that may be killed."""
    with databases.temporary(own_server("url")) as database:
        subprocess.run(
            [martlet_bin, "migrate"], env={**os.environ, "DATABASE_URL": database.url}, check=True, timeout=120
        )
        yield database


def test_nothing_is_lost_ended_twice_or_off_the_books_in_bad_weather(
    stormy: Database,
    own_server: Callable[..., str],
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
) -> None:
    providers = Providers(stormy, simulator)
    models = [
        providers.model(directives, dialect) for directives in MISBEHAVIOUR for dialect in ("openai", "anthropic")
    ]
    app = AskingApp(stormy.member(), models, random.Random(dice.random()), most_open=150)
    workers = [worker(stormy, concurrency=24) for _ in range(WORKERS)]

    def kill_worker() -> None:
        victim = dice.randrange(WORKERS)
        workers[victim].kill()
        workers[victim] = worker(stormy, concurrency=24, ready=False)

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

    events: list[Callable[[], None]] = [kill_worker] * KILLS + [crash_database] * CRASHES
    events += [cut_connections] * (KILLS // 4) + [freeze_worker] * (KILLS // 4)
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
