"""Rolling upgrades: worker and schema of different versions, under load. Nothing lost, nothing twice, no errors."""

from __future__ import annotations

import contextlib
import json
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import databases
import earlier
import psycopg
import pytest
import waiting
from asking import AskingApp
from databases import Database, Member
from earlier_worker import PROTOCOL, EarlierWorker
from installations import Programs
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider, books_are_consistent, unfinished

Migrate = Callable[..., subprocess.CompletedProcess[str]]
LANDED = earlier.EARLIER[-1]
TABLES = """
select string_agg(format('ai.%I', c.relname), ', ' order by c.relname) from pg_class c
 where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
"""
MODELS = ("", "ttft=40;rate=300;tokens=30", "latency=30")


def ended(database: Database) -> int:
    return database.value("select count(*) from ai.generations where finished_at is not null")


def speak(database: Database, protocol: int) -> None:
    """Makes it a schema of another protocol, as an upgrade to one would, with what sql/ does at every upgrade."""
    definition = database.value("select pg_get_functiondef('ai.worker_protocol()'::regprocedure)")
    other = re.sub(r"select \d+", f"select {protocol}", definition)
    objects = (earlier.SQL / "40_workers.sql").read_text().partition("\n-- objects\n")[2]

    def upgraded() -> bool:
        # As an upgrade does, all tables first, in short tries: whoever waits with some of them may close a circle.
        with contextlib.suppress(psycopg.errors.LockNotAvailable), database.superuser.transaction():
            database.execute("set local lock_timeout = '20ms'")
            database.execute(f"lock table {database.value(TABLES)} in access exclusive mode")
            database.superuser.execute(other.encode())
            database.superuser.execute(objects.encode())
            return True
        return False

    waiting.until(upgraded, "all tables at once", 60)


@pytest.mark.parametrize("door", ["martlet", "bundle"])
def test_a_worker_and_apps_go_on_while_the_schema_under_them_is_upgraded(
    empty_database: Database,
    simulator: Simulator,
    worker: Callable[..., Worker],
    migrate: Migrate,
    bundle: Path,
    programs: Programs,
    dice: random.Random,
    door: str,
) -> None:
    database = empty_database
    earlier.install(database, LANDED, door)
    providers = Providers(database, simulator, lease_ms=15000)
    models = [providers.model(words, dialect) for words in MODELS for dialect in ("openai", "anthropic")]
    process = worker(database, concurrency=32)
    apps = [
        AskingApp(database.member(), models, random.Random(dice.random()), most_open=60, rest=0.1) for _ in range(2)
    ]
    for app in apps:
        app.start()
    before = 0
    for again in range(2):
        waiting.until(lambda: ended(database) >= before + 60, "more to be answered")  # noqa: B023
        if again:  # not a new version, but its sql/ once more: what locks the tables
            database.execute("update ai.migrations set checksum = 'of before' where version = 'sql'")
        done = migrate(database) if door == "martlet" else programs.psql(database.url, "-1", "-f", bundle)
        assert done.returncode == 0, done.stderr
        before = ended(database)
    waiting.until(lambda: ended(database) >= before + 60, "more to be answered after the last upgrade")
    for app in apps:
        app.finish()
    all_ended(database)

    assert [app.broken for app in apps] == [0, 0]
    acknowledged = {key: generation for app in apps for key, generation in app.acknowledged.items()}
    found = {
        row["idempotency_key"]: row["id"]
        for row in database.execute("select idempotency_key, id from ai.generations where status = 'succeeded'")
    }
    assert found == acknowledged
    assert database.value("select count(*) from ai.llm_calls") == len(found), "something was asked twice"
    assert database.value("select deadlocks from pg_stat_database where datname = current_database()") == 0
    books_agree_with_the_provider(database, simulator)
    assert process.terminate() == 0


def test_what_is_known_of_the_earlier_worker_is_what_the_worker_of_now_speaks_or_a_version_before_it(
    martlet_bin: Path,
) -> None:
    """When the number goes up, Tests/earlier_worker.py is to be that of the version that landed, or goes."""
    assert earlier.protocol(LANDED.read_text()) == PROTOCOL
    assert earlier.protocol_of_now() == PROTOCOL
    version = subprocess.run([martlet_bin, "version", "--json"], capture_output=True, check=True, timeout=60).stdout
    assert json.loads(version)["protocol"] == PROTOCOL


def test_a_worker_of_the_version_before_works_for_the_schema_of_now_beside_one_of_now_and_through_the_upgrade(
    empty_database: Database,
    simulator: Simulator,
    worker: Callable[..., Worker],
    migrate: Migrate,
    dice: random.Random,
) -> None:
    database = empty_database
    earlier.install(database, LANDED)
    providers = Providers(database, simulator, lease_ms=15000)
    # What the simulator was asked is not compared here: half of it, nobody asks.
    models = [providers.model(words) for words in MODELS]
    old = EarlierWorker(database)
    app = AskingApp(database.member(), models, random.Random(dice.random()), most_open=60, rest=0.05)
    app.start()
    old.start()
    waiting.until(lambda: ended(database) >= 30 or old.fault, "the worker of then to work for the schema of then")
    done = migrate(database)
    assert done.returncode == 0, done.stderr
    before = len(old.ended)
    waiting.until(lambda: len(old.ended) >= before + 60 or old.fault, "it to work for the schema of now")
    now = worker(database, concurrency=8)
    by_now = "select count(*) from ai.llm_calls where request_id not like 'earlier-%'"
    waiting.until(lambda: database.value(by_now) >= 30 or old.fault, "both to work")
    app.finish()
    all_ended(database)
    old.finish()
    assert now.terminate() == 0

    assert app.broken == 0
    found = {
        row["idempotency_key"]: row["id"]
        for row in database.execute("select idempotency_key, id from ai.generations where status = 'succeeded'")
    }
    assert found == app.acknowledged
    books_are_consistent(database)
    assert old.stale == 0
    assert len(set(old.ended)) == len(old.ended)
    assert database.value("select count(*) from ai.llm_calls") == len(found), "something was asked twice"
    told = database.execute("select generation_id, attempt from ai.llm_calls where request_id like 'earlier-%'")
    assert {(row["generation_id"], row["attempt"]) for row in told} == set(old.ended)
    assert database.value("select deadlocks from pg_stat_database where datname = current_database()") == 0


def test_a_worker_of_another_protocol_is_refused_clearly_and_the_work_is_left_to_others(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    """Upwards and downwards; what was under way with the refused one is asked again by a worker that is understood."""
    providers = Providers(database, simulator)
    model = providers.model("latency=4000")
    process = worker(database, concurrency=8)
    app = database.connect(user=member)
    app.execute(
        "insert into ai.generations (prompt, model) select 'question ' || n, %s from generate_series(1, 20) n", [model]
    )
    waiting.until(lambda: database.value("select count(*) from ai.leases") == 8, "work in flight")

    for protocol, advice in ((PROTOCOL + 1, "Upgrade the worker"), (PROTOCOL - 1, "martlet migrate")):
        speak(database, protocol)
        if process.running:  # it finds out by its heartbeat
            assert process.wait(20) == 1, process.text
            assert "do not speak the same protocol" in process.text
            assert "Upgrade the worker" in process.text
        refused = worker(database, ready=False)
        assert refused.wait(20) == 1
        assert "do not speak the same protocol" in refused.text
        assert advice in refused.text
        with databases.refused("PT409"):
            database.execute("select * from ai.worker_register('of then', '0.1', %s)", PROTOCOL)
        assert database.value("select count(*) from ai.workers where ended_at is null") == 0
    assert database.value("select count(*) from ai.leases") == 0, "its farewell gave back what it held"
    assert unfinished(database) == 20

    speak(database, PROTOCOL)
    process = worker(database, concurrency=20)
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 20
    assert database.value("select count(*) from ai.llm_calls where status = 'abandoned'") == 8
    books_agree_with_the_provider(database, simulator)
    assert process.terminate() == 0
