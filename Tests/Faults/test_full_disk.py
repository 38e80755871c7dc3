"""The disk is full: apps and operators are told so, nothing that was acknowledged or answered is lost, and all goes on
as soon as there is space again.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import databases
import psycopg
import pytest
import waiting
from asking import AskingApp, ask
from databases import Database
from processes import Simulator, Worker, grow_rarer
from psycopg import sql
from servers import Server, temporary_server
from simulated import Providers, all_ended, books_agree_with_the_provider, ended
from small_disk import SmallDisk, small_disk

# Enough for a migrated database and the log of what these tests do.
DATABASE_MB, SERVER_MB = 64, 256


def migrate(martlet_bin: Path, database: Database) -> None:
    database.migrate(martlet_bin)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk for a database, apart from that of the server's log."""
    with small_disk(tmp_path.name, DATABASE_MB) as disk:
        yield disk


@pytest.fixture
def cramped(disk: SmallDisk, tmp_path: Path, martlet_bin: Path) -> Iterator[Database]:
    """A migrated database whose tables lie on the small disk."""
    with (
        temporary_server(tmp_path.name, inside=disk.inside) as server,
        databases.temporary(server.url) as database,
    ):
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute(sql.SQL("create tablespace small location {}").format(sql.Literal(str(disk.place))))
            admin.execute(sql.SQL("alter database {} set tablespace small").format(sql.Identifier(database.name)))
        migrate(martlet_bin, database)
        yield database


def refused_for_space(database: Database, app_url: str, model: str) -> bool:
    """Whether an app that asks for something large is told that there is no space."""
    try:
        with closing(psycopg.connect(app_url, autocommit=True, connect_timeout=5)) as app:
            app.execute(
                "insert into ai.generations (prompt, model) select string_agg(gen_random_uuid()::text, ''), %s"
                " from generate_series(1, 2000)",
                [model],
            )
    except psycopg.errors.DiskFull:
        return True
    return False


def test_an_answer_that_does_not_fit_waits_for_space_with_all_its_content(
    cramped: Database, disk: SmallDisk, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    # The simulator's prose would be packed into nothing.
    cramped.execute("alter table ai.generations alter column output set storage external")
    providers = Providers(cramped, simulator)
    model = providers.model("latency=6000;tokens=60000", max_output_tokens=100000)
    process = worker(cramped)
    [asked] = ask(cramped.connect(user=cramped.member()), model, 1)
    waiting.until(lambda: cramped.value("select count(*) from ai.leases") == 1, "the call")
    # Without its content it would find room.
    disk.fill(leaving=96 << 10)
    process.says("the database refuses results")
    assert cramped.value("select status from ai.generations") == "running"
    disk.free()
    assert ended(cramped, asked)["status"] == "succeeded"
    books_agree_with_the_provider(cramped, simulator)
    assert cramped.value("select count(*) from ai.llm_calls") == 1


def test_a_full_disk_costs_no_answer_and_nothing_paid_twice(
    cramped: Database,
    disk: SmallDisk,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
) -> None:
    providers = Providers(cramped, simulator)
    # Long answers: without their content they would find room where with it they do not.
    models = [providers.model("ttft=100;rate=2000;tokens=2000", dialect) for dialect in ("openai", "anthropic")]
    member = cramped.member()
    app = AskingApp(member, models, random.Random(dice.random()), most_open=120)
    process = worker(cramped, concurrency=32)
    app.start()
    waiting.until(lambda: cramped.value("select count(*) from ai.leases") > 10, "work in flight")
    before = len(process.text)
    disk.fill()
    waiting.until(lambda: refused_for_space(cramped, member.url, models[0]), "an app to be told")
    waiting.until(lambda: "53100" in process.text[before:], "the worker to be told")
    time.sleep(2.0)  # the lease is 1.5 s
    assert process.running
    grow_rarer(process, before)
    disk.free()
    done = cramped.value("select count(*) from ai.generations where finished_at is not null")
    waiting.until(
        lambda: cramped.value("select count(*) from ai.generations where finished_at is not null") > done + 20,
        "answers again",
    )
    all_is_well(cramped, simulator, app)
    assert cramped.value("select count(*) from ai.llm_calls where status <> 'succeeded'") == 0
    assert process.terminate() == 0


def all_is_well(database: Database, simulator: Simulator, app: AskingApp) -> None:
    """What was acknowledged was answered, once, and is on the books."""
    app.finish()
    all_ended(database, 90)
    found = {
        row["idempotency_key"]: row["id"]
        for row in database.execute(
            "select idempotency_key, id from ai.generations where status = 'succeeded' and idempotency_key is not null"
        )
    }
    assert found == app.acknowledged
    books_agree_with_the_provider(database, simulator)


def log_fills(database: Database) -> None:
    """Writes until the server has no space for its log; without it, it cannot go on, and all sessions end."""
    session = database.superuser

    def broken() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            session.execute("select pg_logical_emit_message(true, 'fill', repeat('x', 100000)), pg_switch_wal()")
        return session.closed

    waiting.until(broken, "the server to end", every=0)


def started(server: Server, database: Database) -> bool:
    """Starts it unless it runs; it may be about to end, after a recovery that found no space either."""
    server("start")
    with contextlib.suppress(psycopg.OperationalError):
        return database.value("select true")
    return False


def test_a_server_without_space_for_its_log_ends_and_nothing_is_lost(
    tmp_path: Path,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
    martlet_bin: Path,
) -> None:
    with (
        small_disk(tmp_path.name, SERVER_MB) as disk,
        temporary_server("all", inside=disk.inside, below=disk.place) as server,
        databases.temporary(server.url) as database,
    ):
        migrate(martlet_bin, database)
        providers = Providers(database, simulator)
        models = [providers.model("ttft=100;rate=500;tokens=60", dialect) for dialect in ("openai", "anthropic")]
        app = AskingApp(database.member(), models, random.Random(dice.random()), most_open=120)
        process = worker(database, concurrency=32)
        app.start()
        waiting.until(lambda: database.value("select count(*) from ai.leases") > 10, "work in flight")
        disk.fill()
        log_fills(database)
        waiting.until(lambda: app.broken > 0, "the app to be told")
        assert process.running
        disk.free()
        database.forget_connections()
        waiting.until(lambda: started(server, database), "the server to be back")
        all_is_well(database, simulator, app)
        assert process.terminate() == 0
