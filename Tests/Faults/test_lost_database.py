"""The database goes away, in part or as a whole, and comes back: workers come back with it and nothing is lost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import databases
import psycopg
import pytest
import waiting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider, unfinished


def ask(database: Database, member: Member, model: str, count: int, stream: bool) -> None:
    """Asks on a connection of its own: others may be dead."""
    with closing(psycopg.connect(member.url, autocommit=True)) as app:
        app.execute(
            "insert into ai.generations (prompt, model, stream)"
            " select 'question ' || gen_random_uuid(), %s, %s from generate_series(1, %s)",
            [model, stream, count],
        )


def test_a_worker_whose_connections_are_cut_again_and_again_loses_nothing(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], dice: random.Random
) -> None:
    providers = Providers(database, simulator)
    member = database.member()
    for stream in (False, True):
        ask(database, member, providers.model("ttft=100;rate=300;tokens=40"), 150, stream)
    processes = [worker(database, concurrency=16) for _ in range(2)]
    for _ in range(25):
        time.sleep(dice.random() * 0.3)
        backends = database.execute(
            "select pid from pg_stat_activity where usename = %s and datname = %s", database.worker.name, database.name
        )
        for backend in dice.sample(backends, min(len(backends), dice.randrange(1, 4))):
            database.execute("select pg_terminate_backend(%s)", backend["pid"])
        if not unfinished(database):
            ask(database, member, providers.model("ttft=100;rate=300;tokens=40"), 40, dice.random() < 0.5)
    all_ended(database, 90)
    assert [process.running for process in processes] == [True, True]
    assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
    books_agree_with_the_provider(database, simulator)


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_worker_survives_a_restart_of_the_database(
    own_server: Callable[..., str],
    martlet_bin: Path,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
    how: str,
) -> None:
    with databases.temporary(own_server("url")) as database:
        database.migrate(martlet_bin)
        providers = Providers(database, simulator)
        member = database.member()
        for stream in (False, True):
            ask(database, member, providers.model("ttft=100;rate=200;tokens=60"), 100, stream)
        process = worker(database, concurrency=16)
        for _ in range(2):
            waiting.until(lambda: database.value("select count(*) from ai.leases") > 0, "work in flight")
            time.sleep(dice.random() * 0.3)
            own_server("stop", how)
            time.sleep(dice.random() * 2)  # long enough for it to try in vain
            assert process.running, process.text
            own_server("start")
            database.forget_connections()
        all_ended(database, 90)
        assert process.running
        assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
        books_agree_with_the_provider(database, simulator)
        assert process.terminate() == 0
