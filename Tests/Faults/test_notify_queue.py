"""The queue of notifications is full, because one who listens does not read: from then on PostgreSQL refuses every
commit that notifies. Inserts and workers go on all the same, and subscribers find what they were not told.
"""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import waiting
from asking import ask
from checkups import Doctor
from databases import Database, Member, refused
from processes import Simulator, Worker
from servers import embedded_version
from simulated import Providers, all_ended, books_are_consistent, ended


def fill(database: Database, channel: str) -> int:
    """Notifies until PostgreSQL takes no more; gives how many it took."""
    taken = 0
    with database.connect() as talker, refused("54000"):
        for taken in range(10_000):  # noqa: B007
            talker.execute("select pg_notify(%s, repeat('x', 7900))", [channel])
    return taken


@contextlib.contextmanager
def open_transaction(database: Database) -> Iterator[None]:
    """Somebody listens, and forgot a transaction."""
    with database.connect() as idle:
        idle.execute("listen anything")
        idle.execute("begin")
        idle.execute("select 1")
        fill(database, "other")
        yield


@contextlib.contextmanager
def deaf_client(database: Database) -> Iterator[None]:
    """Somebody listens and never reads, until nothing more fits between the server and him."""
    with database.connect() as deaf:
        with socket.socket(fileno=socket.dup(deaf.fileno())) as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.execute("listen anything")
        # The queue is full before the sockets are, when his session is slow: it goes on reading. Who asks for the usage
        # makes room.
        refusals = 0

        def stuck() -> bool:
            nonlocal refusals
            database.value("select pg_notification_queue_usage()")
            taken = fill(database, "anything")
            sends = database.value(
                "select wait_event = 'ClientWrite' from pg_stat_activity where pid = %s", deaf.info.backend_pid
            )
            refusals = 0 if taken or not sends else refusals + 1
            return refusals == 10

        waiting.until(stuck, "the queue to be full for good", every=0.1)
        yield


@contextlib.contextmanager
def as_if_full(database: Database) -> Iterator[None]:
    """Before PostgreSQL 17 the queue has 8 GB. Here its functions act as if it were full; sessions are ended."""

    def swap(*statements: str) -> None:
        with database.connect() as connection:
            connection.execute("set allow_system_table_mods = on")
            for statement in statements:
                connection.execute(statement)
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and usename <> current_user"
            )

    swap(
        "alter function pg_catalog.pg_notify(text, text) rename to really_notify",
        "alter function pg_catalog.pg_notification_queue_usage() rename to real_queue_usage",
        """create function pg_catalog.pg_notify(text, text) returns void language plpgsql as $$ begin
             raise exception 'too many notifications in the NOTIFY queue' using errcode = '54000'; end $$""",
        "create function pg_catalog.pg_notification_queue_usage() returns float8 language sql as 'select 1.0::float8'",
    )
    yield
    swap(
        "drop function pg_catalog.pg_notify(text, text), pg_catalog.pg_notification_queue_usage()",
        "alter function pg_catalog.really_notify(text, text) rename to pg_notify",
        "alter function pg_catalog.real_queue_usage() rename to pg_notification_queue_usage",
    )


JAMS = [as_if_full] if embedded_version() == "16" else [open_transaction, deaf_client]


def asleep(database: Database) -> bool:
    """Whether the worker holds the handshake lock: from then on every insert has to notify."""
    return database.value(
        "select exists (select from pg_locks where locktype = 'advisory' and classid = 1634300001 and granted"
        " and mode = 'ExclusiveLock' and database = (select oid from pg_database where datname = current_database()))"
    )


def streams_are_whole(app: psycopg.Connection[Any], ids: list[uuid.UUID]) -> None:
    for one in ids:
        events = app.execute("select * from ai.read_stream(%s)", [one]).fetchall()
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [events[0]["type"], events[-1]["type"]] == ["running", "end"]
        text = "".join(event["data"]["text"] for event in events if event["type"] == "delta")
        assert text == app.execute("select output from ai.generations where id = %s", [one]).fetchone()["output"]


@pytest.mark.parametrize("jam", JAMS)
def test_inserts_and_answers_go_on_while_no_commit_may_notify(
    poor: Database,
    simulator: Simulator,
    worker: Callable[..., Worker],
    jam: Callable[[Database], contextlib.AbstractContextManager[None]],
) -> None:
    providers = Providers(poor, simulator, provider_batch_gather_ms=100, provider_batch_poll_ms=50)
    quick, slow = providers.model("ttft=20;rate=400;tokens=20"), providers.model("ttft=60000")
    batched = providers.model("tokens=5", capabilities='{"batch": true}')
    member = poor.member()
    poor.execute("insert into ai.cache_policies (tenant_id, kind, ttl) values (%s, 'chat', '1 hour')", member.tenant_id)
    process = worker(poor, concurrency=16)
    with jam(poor):
        app = poor.connect(user=member)
        # Each insert finds the worker asleep, so that it has to notify.
        for _ in range(3):
            waiting.until(lambda: asleep(poor), "the worker to sleep")
            for one in ask(app, quick, 1):
                ended(poor, one)
        streams = ask(app, quick, 40, stream=True)
        ask(app, quick, 40)
        ask(app, batched, 5, priority="batch")  # nobody can tell the worker that there is a batch to be sent
        for _ in range(2):  # the second is answered from the cache, in the insert
            app.execute("insert into ai.generations (prompt, model, cache) values ('the same', %s, 'exact')", [quick])
            all_ended(poor)
        [running] = ask(app, slow, 1)
        waiting.until(lambda: poor.value("select count(*) from ai.leases") == 1, "the slow one to run")
        app.execute("select ai.cancel(%s)", [running])
        all_ended(poor)
        streams_are_whole(app, streams)
        assert ended(poor, running)["status"] == "cancelled"
        with refused("54000"):
            app.execute("select pg_notify('still', 'full')")
    assert poor.value("select count(*) from ai.generations where status not in ('succeeded', 'cancelled')") == 0
    assert poor.value("select count(*) from ai.generations where cached") == 1
    assert poor.value("select count(*) from ai.llm_calls where service_tier = 'batch'") == 5
    assert "refuses" not in process.text
    told_again(poor, member, quick)
    books_are_consistent(poor)


@pytest.mark.parametrize("jam", JAMS[:1])
def test_the_doctor_sees_a_queue_that_is_full(
    poor: Database, doctor: Doctor, jam: Callable[[Database], contextlib.AbstractContextManager[None]]
) -> None:
    assert doctor(poor.url)[1]["notifications"][0]["state"] == "ok"
    with jam(poor):
        code, findings = doctor(poor.url)
        assert code == 1
        assert findings["notifications"][0]["state"] == "fail"
        assert "End the session" in findings["notifications"][0]["hint"]
    waiting.until(lambda: doctor(poor.url)[1]["notifications"][0]["state"] == "ok", "the queue to be read", every=0.5)


def test_the_queue_is_as_long_as_the_documentation_says(poor: Database) -> None:
    """8 GB before PostgreSQL 17, which no test fills; since then as many pages as the server is given."""
    size = 1 << 20 if embedded_version() == "16" else int(poor.value("show max_notify_queue_pages"))
    with poor.connect() as idle, poor.connect() as talker:
        idle.execute("listen anything")
        idle.execute("begin")
        idle.execute("select 1")
        before = round(poor.value("select pg_notification_queue_usage()") * size)
        for _ in range(20):  # a page has room for one of them
            talker.execute("select pg_notify('other', repeat('x', 7900))")
        assert round(poor.value("select pg_notification_queue_usage()") * size) - before in range(19, 22)


def told_again(database: Database, member: Member, model: str) -> None:
    """As soon as the queue has room, subscribers are told everything, without anybody's help."""
    waiting.until(lambda: database.value("select pg_notification_queue_usage()") < 0.1, "the queue to empty")
    with database.connect(user=member) as app:
        channel = app.execute("select ai.subscribe() as channel").fetchone()["channel"]
        app.execute(f"listen {channel}")
        [one] = ask(app, model, 1)
        for notification in app.notifies(timeout=30):
            if f'"id": "{one}"' in notification.payload and '"end"' in notification.payload:
                return
    raise AssertionError("nobody was told of the end")
