"""Where the server's time goes: insert, claim and settle of one generation and of a batch, and the functions in them.

Run it beside a server that it may make a database on, for example:

    scripts/with-server 18 .martlet/venv/bin/python Tests/Benchmarks/server_time.py

A member with a rate and a budget asks, a plain worker claims and answers, one statement after the other, each committed
by itself. Printed are medians in milliseconds, of the statement and of its commit; beside them the least that anybody
pays: a row into a table without anything, with a notification. Then the functions that take longest in themselves,
without what they call, as PostgreSQL counts them (track_functions, which costs time, and is off for the medians).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "Tests"))

import psycopg  # noqa: E402
from Benchmarks import installation  # noqa: E402
from Benchmarks.floors import PROMPT  # noqa: E402
from Benchmarks.installation import Installation  # noqa: E402
from databases import Database  # noqa: E402
from protocol import Attempt, PlainWorker  # noqa: E402

# As a provider reports one.
RESULT = {
    "output": "A swift sleeps on the wing and lands only to nest.",
    "http_status": 200,
    "model": "sim",
    "finish_reason": "stop",
    "usage": {"input": 60, "output": 20},
    "latency_ms": 3,
}
_FUNCTIONS = "select funcname, calls, self_time from pg_stat_user_functions where schemaname = 'ai'"
_ASK = "insert into ai.generations (model, prompt) select 'timed/model', %s from generate_series(1, %s)"
_MINIMAL = "with i as (insert into least values (%s) returning 1) select pg_notify('least', '') from i"


class Cycle:
    """Somebody who asks, somebody who answers, and somebody who writes the least there is, on one database."""

    def __init__(self, installed: Installation, count: int) -> None:
        self._count = count
        database = installed.database
        provider = database.provider("timed", "http://127.0.0.1:1")
        database.model(provider, "timed/model", rates='{"input": 3, "output": 15}')
        database.execute("create table least (payload text)")
        self._app, self._owner = database.connect(user=installed.member), database.connect()
        self._worker = PlainWorker(database)
        for connection in (self._app, self._owner, self._worker.connection):
            connection.prepare_threshold = 0
        self.times: dict[str, list[float]] = defaultdict(list)

    def _timed(self, what: str, connection: psycopg.Connection[Any], statement: Callable[[], Any]) -> Any:
        """In a transaction of its own, its commit timed apart."""
        connection.execute("begin")
        began = time.perf_counter()
        answer = statement()
        ran = time.perf_counter()
        connection.execute("commit")
        self.times[what].append((ran - began) * 1000)
        self.times[f"{what}, its commit"].append((time.perf_counter() - ran) * 1000)
        return answer

    def run(self) -> None:
        """Once through. A worker that was idle looks at everything, a busy one goes on where it was."""
        app, owner, worker = self._app, self._owner, self._worker
        self._timed("insert", app, lambda: app.execute(_ASK, [PROMPT, self._count]))
        claimed: list[Attempt] = []
        for _ in range(10):  # a member's first questions are moved to the lane of its limits, and claimed then
            claimed += self._timed("claim", worker.connection, lambda: worker.claim(self._count, self._count == 1))
            if len(claimed) == self._count:
                break
        assert len(claimed) == self._count, f"{len(claimed)} of {self._count} were claimed"
        ended = self._timed("settle", worker.connection, lambda: worker.settle(claimed, **RESULT))
        assert set(ended.values()) == {"ended"}, ended
        self._timed("a row and a NOTIFY", owner, lambda: owner.execute(_MINIMAL, [PROMPT]))


def functions(database: Database) -> dict[str, tuple[int, float]]:
    """Calls and milliseconds of each function, without what it calls."""
    # A session tells of its calls when it is idle, at most once a second.
    with database.connect() as connection:
        connection.execute("select pg_stat_clear_snapshot()")
        return {row["funcname"]: (row["calls"], row["self_time"]) for row in connection.execute(_FUNCTIONS)}


def measure(server: str, folder: Path, count: int, rounds: int) -> None:
    """Prints the times of generations that are asked, claimed and answered `count` together."""
    with installation.opened(server, folder) as installed:
        plain = Cycle(installed, count)
        for _ in range(rounds + 20):
            plain.run()
        print(f"\n{count} together, {rounds} rounds; medians in ms")
        for what, times in plain.times.items():
            print(f"  {what:32} {statistics.median(times[20:]):8.2f}")

    with installation.opened(server, folder) as installed:
        database = installed.database
        database.execute(f"alter database \"{database.name}\" set track_functions = 'pl'")
        counted = Cycle(installed, count)
        for _ in range(20):
            counted.run()
        time.sleep(1.5)
        counted.run()
        before = functions(database)
        for _ in range(rounds):
            counted.run()
        time.sleep(1.5)
        counted.run()
        took = {
            name: (calls - before.get(name, (0, 0))[0], ms - before.get(name, (0, 0))[1])
            for name, (calls, ms) in functions(database).items()
        }
        print("  functions, without what they call; ms a round, calls a round")
        for name, (calls, ms) in sorted(took.items(), key=lambda item: -item[1][1])[:12]:
            print(f"  {'ai.' + name:32} {ms / rounds:8.2f} {calls / rounds:6.1f}")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--together", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args()
    server = os.environ["MARTLET_TEST_DATABASE_URL"]
    with psycopg.connect(server) as connection:
        print(f"PostgreSQL {connection.info.parameter_status('server_version')}")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.together:
            measure(server, Path(folder), count, max(20, options.rounds // count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
