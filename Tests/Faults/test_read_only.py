"""The database takes no writes: it was set read-only, or it is a standby. Apps and operators are told so; all goes on
when that is over, whichever way it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import databases
import pytest
import waiting
from asking import ask
from checkups import Doctor
from databases import Database, refused
from processes import Simulator, Worker, grow_rarer
from psycopg import sql
from servers import Server
from simulated import Providers, all_ended, books_agree_with_the_provider


def set_read_only(database: Database, on: bool) -> None:
    """For all sessions that begin from now on."""
    database.execute(
        sql.SQL("alter database {} set default_transaction_read_only = {}")
        .format(sql.Identifier(database.name), sql.Literal("on" if on else "off"))
        .as_string()
    )


def end_sessions(database: Database) -> None:
    database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and usename <> current_user"
    )


def test_a_database_that_is_read_only_for_a_while_loses_nothing(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    model = providers.model("ttft=4000;rate=200;tokens=20")
    member = database.member()
    process = worker(database, concurrency=32)
    ask(database.connect(user=member), model, 20)
    ask(database.connect(user=member), model, 20, stream=True)
    waiting.until(lambda: database.value("select count(*) from ai.leases") > 10, "work in flight")

    # The administrator's own session began before, and may still write.
    set_read_only(database, True)
    end_sessions(database)
    before = len(process.text)
    with refused("25006"):
        ask(database.connect(user=member), model, 1)
    waiting.until(lambda: process.text[before:].count("25006") > 8, "the worker to be told by all that it asks")
    time.sleep(2.0)  # the lease is 1.5 s
    assert process.running
    grow_rarer(process, before)
    assert database.value("select count(*) from pg_stat_activity where usename = %s", database.worker.name) < 10

    # Nobody ends the sessions that began meanwhile and would stay as they are.
    set_read_only(database, False)
    all_ended(database, 60)
    ask(database.connect(user=member), model, 1)
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 41
    # What it held when the time of its lease was over is still its own.
    assert database.value("select count(*) from ai.llm_calls") == 41
    books_agree_with_the_provider(database, simulator)
    assert process.terminate() == 0


@pytest.mark.parametrize("once", [False, True])
def test_a_worker_that_begins_while_the_database_is_read_only(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], once: bool
) -> None:
    """It waits; one that is to end by itself gives up after some tries."""
    providers = Providers(database, simulator)
    member = database.member()
    ask(database.connect(user=member), providers.model(), 1)
    database.superuser  # noqa: B018  # a session that may write
    set_read_only(database, True)
    process = worker(database, ready=False, once=once)
    process.says("25006")
    if once:
        assert process.wait(30) == 1
        assert "read-only" in process.text
        return
    set_read_only(database, False)
    process.says("working")
    all_ended(database)


def test_a_standby_does_nothing_until_it_is_promoted(
    own_server: Server, martlet_bin: Path, simulator: Simulator, worker: Callable[..., Worker], doctor: Doctor
) -> None:
    with databases.temporary(own_server.url) as database:
        database.migrate(martlet_bin)
        providers = Providers(database, simulator)
        member = database.member()
        process = worker(database, concurrency=32)
        ask(database.connect(user=member), providers.model("ttft=4000;rate=200;tokens=20"), 20)
        waiting.until(lambda: database.value("select count(*) from ai.leases") > 10, "work in flight")
        own_server("stop", "fast")
        own_server.start_as_standby()
        database.forget_connections()
        assert database.value("select pg_is_in_recovery()")
        writable = doctor(database.url)[1]["writable"][0]
        assert (writable["state"], "standby" in writable["message"]) == ("fail", True)
        before = len(process.text)
        with refused("25006"):
            ask(database.connect(user=member), providers.model(), 1)
        waiting.until(lambda: "during recovery" in process.text[before:], "the worker to be told")
        time.sleep(2.0)  # the lease is 1.5 s
        grow_rarer(process, before)
        database.execute("select pg_promote()")
        all_ended(database)
        assert database.value("select count(*) from ai.llm_calls") == 20
        books_agree_with_the_provider(database, simulator)
        assert process.terminate() == 0
