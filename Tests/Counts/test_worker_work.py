"""How often the worker speaks to the database and is woken: counts, which a busy machine changes little."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import resting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended

# The database's own defaults, which a worker at rest is measured with.
DEFAULTS = {"heartbeat_ms": 2000, "lease_ms": 15000, "maintain_ms": 5000}
INSERT = (
    "insert into ai.generations (prompt, model, cache) select 'number ' || n, %s, 'off' from generate_series(1, %s) n"
)


def woken(worker: Worker) -> int:
    """How often a thread of the worker went to sleep because it had nothing to do."""
    total = 0
    for status in Path(f"/proc/{worker.pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def tally(worker: Worker) -> dict[str, int]:
    """What the worker says that it did, when it has stopped."""
    worker.terminate()
    return json.loads(worker.text.splitlines()[-1])


def test_a_worker_at_rest_makes_less_than_one_statement_a_second(
    quiet: Database, worker: Callable[..., Worker]
) -> None:
    """Whatever it does: heartbeats, looking for work, upkeep, stores, batches, and connections opened anew."""
    process = worker(quiet)
    # Safety polls come more and more seldom, and sessions have told what they did in the beginning.
    time.sleep(12)
    switches = woken(process)
    rest = resting.watch(quiet, 24)
    assert 0 < rest.rate < 1, rest
    assert rest.sessions == 0, rest
    assert (woken(process) - switches) / rest.seconds < 15
    name = quiet.worker.name
    assert quiet.value("select count(*) from pg_stat_activity where usename = %s", name) <= 8, "as docs/faults.md says"


def test_one_generation_is_one_claim_and_one_settle(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator, **DEFAULTS).model("answer=ok")
    process = worker(database, json=True)
    app = database.connect(user=member)
    rounds = 40

    def one() -> None:
        # One after the other is no load, however quickly: each finds the worker asleep.
        app.execute(INSERT, (model, 1))
        all_ended(database)

    for _ in range(10):
        one()
    before = woken(process)
    for _ in range(rounds):
        one()
    switches = (woken(process) - before) / rounds
    told = tally(process)
    assert told["succeeded"] == rounds + 10
    assert told["settle_statements"] <= rounds + 10
    # One each, and what start, sweeps and safety polls add.
    assert told["claims"] <= (rounds + 10) * 1.3, told
    # A claim, a transfer, an answer, a settle: each wakes one thread, and waits once for the database or the provider.
    assert switches <= 12, f"{switches:.1f} a generation"


def test_under_load_a_statement_moves_many(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator, **DEFAULTS).model("answer=ok")
    process = worker(database, json=True)
    app = database.connect(user=member)
    app.execute(INSERT, (model, 3000))
    all_ended(database)
    told = tally(process)
    assert told["succeeded"] == 3000
    assert told["claims"] + told["settle_statements"] <= 3000 / 8, told


def test_texts_of_many_streams_go_out_together(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator, **DEFAULTS).model("ttft=50;rate=100;tokens=60")
    process = worker(database, json=True, concurrency=200)
    app = database.connect(user=member)
    streams, pause = 100, database.value("select publish_ms from ai.settings") / 1000
    began = time.monotonic()
    app.execute(
        "insert into ai.generations (prompt, model, cache, stream) select 'stream ' || n, %s, 'off', true"
        " from generate_series(1, %s) n",
        (model, streams),
    )
    all_ended(database)
    seconds = time.monotonic() - began
    told = tally(process)
    assert told["succeeded"] == streams
    assert told["deltas"] >= streams
    # A first text may go alone; later ones go together, one statement in a pause, and one at either end.
    assert told["publish_statements"] <= streams + seconds / pause + 2, (seconds, told)


def test_many_clients_of_single_rows_do_not_keep_the_worker_in_the_line_of_notifications(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    """Commits that notify wait for each other. A worker that sleeps between single rows of a busy application would
    make every one of them notify, and so keep them slow enough to look idle."""
    model = Providers(database, simulator, **DEFAULTS).model("answer=ok")
    person = database.member()
    process = worker(database, json=True)
    each, clients = 60, 16
    connections = [database.connect(user=person) for _ in range(clients)]

    def insert(number: int) -> None:
        for n in range(each):
            connections[number].execute(
                "insert into ai.generations (prompt, model, cache) values (%s, %s, 'off')", (f"{number} {n}", model)
            )

    threads = [threading.Thread(target=insert, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_ended(database)
    told = tally(process)
    assert told["succeeded"] == each * clients
    assert told["wake_ups"] <= each * clients / 2, told
    assert told["safety_poll_found"] == 0
