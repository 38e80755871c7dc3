"""Who reads slowly, or not at all, holds up nobody else, and costs a bounded number of bytes."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import waiting
from databases import Database, Member
from processes import Process, Simulator, Worker
from simulated import Providers, all_ended, books_are_consistent, calls

MEGABYTE = 1 << 20


def resident(process: Process) -> int:
    """Bytes of memory that a process has at most had."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM in /proc")


def others_go_on(database: Database, member: Member, model: str, count: int = 200) -> None:
    """Inserts and answers of others, while whoever is slow is slow."""
    app = database.connect(user=member)
    rows = app.execute(
        "insert into ai.generations (prompt, model) select 'other ' || gen_random_uuid(), %s"
        " from generate_series(1, %s) returning id",
        [model, count],
    ).fetchall()
    ids = [row["id"] for row in rows]
    waiting.until(
        lambda: (
            database.value(
                "select count(*) from ai.generations where id = any (%s) and status = 'succeeded'",
                ids,
            )
            == count
        ),
        "others to be answered",
    )


class Sipper:
    """A provider that takes a request byte by byte, with next to no room for more, and never answers."""

    def __init__(self) -> None:
        self.taken = 0
        self._open: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._sip, daemon=True)
        self._thread.start()

    @property
    def callers(self) -> int:
        return len(self._open)

    def _sip(self) -> None:
        while not self._enough.wait(0.001):
            ready, _, _ = select.select([self._listener, *self._open], [], [], 0.05)
            for one in ready:
                if one is self._listener:
                    self._open.append(one.accept()[0])
                    continue
                with contextlib.suppress(OSError):
                    self.taken += len(one.recv(1))

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(10)
        for one in [self._listener, *self._open]:
            one.close()


@pytest.fixture
def sipper() -> Iterator[Sipper]:
    sipper = Sipper()
    yield sipper
    sipper.stop()


def test_a_provider_that_reads_byte_by_byte_holds_up_nobody_and_is_given_up_at_the_deadline(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], sipper: Sipper
) -> None:
    providers = Providers(database, simulator)
    quick = providers.model()
    slow = database.provider("sipper", sipper.url, secret="SIM_API_KEY")
    database.model(slow, "sipper/model", max_output_tokens=64)
    process = worker(database, concurrency=64)
    others_go_on(database, member, quick)
    before = resident(process)
    app = database.connect(user=member)
    app.execute(
        "insert into ai.generations (prompt, model, deadline_ms)"
        " select n || repeat(' words of a long question', 40000), 'sipper/model', 20000 from generate_series(1, 16) n"
    )
    waiting.until(lambda: sipper.callers == 16, "all requests to be on their way")
    others_go_on(database, member, quick)
    assert 0 < sipper.taken < 16 * MEGABYTE // 4, "most of it should not have left yet"
    all_ended(database)
    gone = database.execute(
        "select id, status, error ->> 'code' as code from ai.generations where model = 'sipper/model'"
    )
    assert {(row["status"], row["code"]) for row in gone} == {("failed", "PT504")}
    assert all(len(calls(database, row["id"])) == 1 for row in gone)
    # 16 requests of a megabyte: their text, what the database sent, what is to be sent.
    assert resident(process) - before < 16 * 8 * MEGABYTE
    books_are_consistent(database)
    assert process.running


def test_a_provider_that_writes_byte_by_byte_holds_up_nobody(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    quick = providers.model()
    slow = [providers.model("drip=1;tokens=12", dialect) for dialect in ("openai", "anthropic")]
    process = worker(database, concurrency=128)
    app = database.connect(user=member)
    app.execute(
        "insert into ai.generations (prompt, model, stream)"
        " select 'drip ' || n, m, n %% 2 = 0 from generate_series(1, 20) n, unnest(%s::text[]) m",
        [slow],
    )
    waiting.until(lambda: database.value("select count(*) from ai.leases") == 40, "all to drip")
    others_go_on(database, member, quick)
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
    assert database.value("select count(*) from ai.llm_calls") == 240
    books_are_consistent(database)
    assert process.running


def test_an_app_that_never_reads_its_answer_holds_up_neither_the_worker_nor_other_apps(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    """One stopped in the middle of a result, one in the middle of a transaction that has inserted."""
    providers = Providers(database, simulator)
    quick = providers.model()
    process = worker(database, concurrency=64)
    others_go_on(database, member, quick)
    before = resident(process)
    reading = database.connect(user=member)
    reading.pgconn.send_query(
        b"select g.*, repeat('x', 100000) from ai.generations g, generate_series(1, 100) order by g.id"
    )
    inserting = database.connect(user=member)
    inserting.execute("begin")
    inserting.pgconn.send_query(
        b"with new as (insert into ai.generations (prompt, model) select 'never ' || n, 'local/extract'"
        b" from generate_series(1, 10) n returning id) select repeat('x', 1000000) from new, generate_series(1, 100)"
    )
    waiting.until(
        lambda: (
            database.value(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and wait_event = 'ClientWrite'"
            )
            == 2
        ),
        "both to be stuck on what nobody reads",
    )
    for _ in range(3):
        others_go_on(database, member, quick)
    assert resident(process) - before < 64 * MEGABYTE
    assert process.running
    reading.close()
    inserting.close()
    all_ended(database)
    assert database.value("select count(*) from ai.generations") == 800, "what was not committed is not there"
    books_are_consistent(database)


def test_a_subscriber_that_reads_slowly_gets_every_sequence_whole_and_holds_up_nobody(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    """It takes its notifications only when all has ended. Then it asks for what is missing, a few events at a time."""
    providers = Providers(database, simulator)
    quick, streaming = providers.model(), providers.model("rate=2000;tokens=400")
    process = worker(database, concurrency=64)
    app = database.connect(user=member)
    listener = database.connect(user=member)
    channel = listener.execute("select ai.subscribe() as channel").fetchone()
    assert channel is not None
    listener.execute(f'listen "{channel["channel"]}"')
    ids = [
        row["id"]
        for row in app.execute(
            "insert into ai.generations (prompt, model, stream) select 'tell ' || n, %s, true"
            " from generate_series(1, 100) n returning id",
            [streaming],
        )
    ]
    for generation in ids:
        name = listener.execute("select ai.subscribe(%s) as channel", [generation]).fetchone()
        assert name is not None
        listener.execute(f'listen "{name["channel"]}"')
    before = resident(process)
    others_go_on(database, member, quick)
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0
    assert resident(process) - before < 64 * MEGABYTE
    heard = len(list(listener.notifies(timeout=2, stop_after=100_000)))
    assert heard > 0
    for generation in ids[::10]:
        seen, after = [], 0
        while True:  # a few at a time
            events = listener.execute("select * from ai.read_stream(%s, %s) limit 7", [generation, after]).fetchall()
            if not events:
                break
            seen += events
            after = events[-1]["seq"]
        assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
        assert [event["type"] for event in seen if event["type"] == "end"] == ["end"]
        text = "".join(event["data"]["text"] for event in seen if event["type"] == "delta")
        assert text == database.value("select output from ai.generations where id = %s", generation)
    books_are_consistent(database)
