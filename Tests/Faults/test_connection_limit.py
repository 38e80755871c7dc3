"""No more connections: the server's, the database's or the role's limit is reached. Whoever is refused is told why,
tries again more and more seldom, and goes on when there is room.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest
import waiting
from asking import ask
from databases import Database, Member
from processes import Simulator, Worker, grow_rarer
from psycopg import sql
from simulated import Providers, all_ended, books_agree_with_the_provider

TOLD = "too many connections|too many clients|remaining connection slots"


@contextlib.contextmanager
def crowd(poor: Database, member: Member) -> Iterator[None]:
    """Others take every connection that the server has."""
    with contextlib.ExitStack() as others:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                others.enter_context(psycopg.connect(member.url, connect_timeout=5))
        yield


@contextlib.contextmanager
def role_limit(poor: Database, member: Member) -> Iterator[None]:
    """The worker's role, and the app's, may have no more than they have."""

    def limit(connections: int) -> None:
        for name in (poor.worker.name, member.login.name):
            poor.execute(
                sql.SQL("alter role {} connection limit {}")
                .format(sql.Identifier(name), sql.Literal(connections))
                .as_string()
            )

    limit(0)
    yield
    limit(-1)


def end_worker_sessions(database: Database) -> None:
    database.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", database.worker.name)


def worker_sessions(database: Database) -> int:
    return database.value("select count(*) from pg_stat_activity where usename = %s", database.worker.name)


def is_refused(member: Member) -> bool:
    try:
        psycopg.connect(member.url, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        if not re.search(TOLD, str(error)):
            raise
        return True
    return False


@pytest.mark.parametrize("taken", [crowd, role_limit])
def test_a_worker_that_gets_no_connection_waits_for_one_and_loses_nothing(
    poor: Database,
    simulator: Simulator,
    worker: Callable[..., Worker],
    taken: Callable[[Database, Member], contextlib.AbstractContextManager[None]],
) -> None:
    providers = Providers(poor, simulator)
    model = providers.model("ttft=4000;rate=200;tokens=20")
    member = poor.member()
    process = worker(poor, concurrency=32)
    app = poor.connect(user=member)
    ask(app, model, 20)
    ask(app, model, 20, stream=True)
    waiting.until(lambda: poor.value("select count(*) from ai.leases") > 10, "work in flight")
    before = len(process.text)
    with contextlib.ExitStack() as stack:
        # Its connections are cut again and again, until it has none and can have none. Once does not show that: an
        # attempt of the worker's that is just being refused holds the last place, and leaves it.
        def deprived() -> bool:
            end_worker_sessions(poor)
            stack.enter_context(taken(poor, member))
            return not worker_sessions(poor) and is_refused(member)

        waiting.until(lambda: deprived() and deprived() and deprived(), "the worker to be without connections", 60)
        waiting.until(lambda: re.search(TOLD, process.text[before:]), "the worker to be told")
        ask(app, model, 10)  # who is connected goes on
        time.sleep(2.0)  # the lease is 1.5 s
        assert process.running
        grow_rarer(process, before)
    all_ended(poor, 60)
    assert poor.value("select count(*) from ai.generations where status = 'succeeded'") == 50
    books_agree_with_the_provider(poor, simulator)
    assert process.terminate() == 0


def test_a_worker_with_too_few_connections_for_itself_says_so_and_works_when_it_gets_them(
    poor: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(poor, simulator)
    poor.execute(sql.SQL("alter role {} connection limit 2").format(sql.Identifier(poor.worker.name)).as_string())
    process = worker(poor)
    ask(poor.connect(user=poor.member()), providers.model(), 20, stream=True)
    process.says("too many connections for role")
    poor.execute(sql.SQL("alter role {} connection limit -1").format(sql.Identifier(poor.worker.name)).as_string())
    all_ended(poor, 60)
    books_agree_with_the_provider(poor, simulator)
