"""A whole Martlet for a benchmark: a database with a member whose limits are on, a provider, workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import databases
import waiting
from databases import Database, Member
from processes import Process, Simulator, Worker, flags

REPOSITORY = Path(__file__).resolve().parents[2]
MARTLET = os.environ.get("MARTLET_BIN", str(REPOSITORY / ".build/release/martlet"))

# A short answer with its usage, as a provider would send it; at once, or as slowly as real ones stream.
ANSWER = "answer=A%20swift%20sleeps%20on%20the%20wing%20and%20lands%20only%20to%20nest.;usage=input:60,output:20"
_AT_WORK = """
select exists (select from ai.leases) or exists (select from ai.queue) or exists (select from ai.delayed)
    or exists (select from ai.waiting)
"""


class Installation:
    """What `opened` gives. Everything that it starts has ended when its block is left."""

    def __init__(self, database: Database, folder: Path, stack: contextlib.ExitStack) -> None:
        self.database, self._folder, self._stack = database, folder, stack
        self._started = 0
        self.member = self._tenant("bench")
        self._simulator: Simulator | None = None

    def _tenant(self, name: str) -> Member:
        """A member of a new tenant with a rate and a budget that are counted and never reached."""
        member = self.database.member(self.database.tenant(name))
        self.database.execute(
            "insert into ai.limits (tenant_id, metric, period, amount, on_limit) values"
            " (%s, 'requests', 'minute', 1000000000, 'wait'), (%s, 'cost', 'month', 1000000000, 'reject')",
            member.tenant_id,
            member.tenant_id,
        )
        return member

    def another_tenant(self, name: str) -> Member:
        return self._tenant(name)

    @property
    def simulator(self) -> Simulator:
        """The provider, started when it is first asked for."""
        if self._simulator is None:
            self._simulator = self.start("simulate", kind=Simulator, port=0)
            self._simulator.base_url = self._simulator.announced_url()
        return self._simulator

    def model(self, name: str, directives: str = ANSWER) -> str:
        """A model of the simulator that answers as `directives` say."""
        known = self.database.execute("select id from ai.providers where name = 'bench'")
        provider = (
            known[0]["id"]
            if known
            else self.database.provider(
                "bench", f"{self.simulator.base_url}/v1", headers='{"authorization": "Bearer any"}'
            )
        )
        self.database.model(provider, name, f"sim-small+{directives}")
        return name

    def provider_says(self, word: str) -> int:
        """The simulator's own account: how many requests it has `answered`, how many are `in_flight`."""
        with urllib.request.urlopen(f"{self.simulator.base_url}/health", timeout=10) as response:  # noqa: S310
            return json.load(response)[word]

    def start(
        self,
        command: str,
        *arguments: object,
        kind: type[Process] = Process,
        env: dict[str, str] | None = None,
        **options: object,
    ) -> Any:
        """Starts `martlet COMMAND`; it is killed when the installation is left, if it still runs."""
        self._started += 1
        log = self._folder / f"{command}-{self._started}.log"
        process = kind([MARTLET, command, *arguments, *flags(options)], log, env or {})
        self._stack.callback(lambda: process.running and process.kill())
        return process

    def worker(self, ready: bool = True, **options: object) -> Worker:
        environment = {"DATABASE_URL": self.database.worker.url}
        process: Worker = self.start("work", kind=Worker, env=environment, log_level="warning", **options)
        if ready:
            self.registered(process)
        return process

    def registered(self, process: Worker) -> None:
        def is_registered() -> bool:
            assert process.running, f"the worker ended at once:\n{process.text}"
            return self.database.value("select count(*) from ai.workers where ended_at is null") > 0

        waiting.until(is_registered, "a registered worker", 30, every=0.01)

    @contextlib.contextmanager
    def working(self, workers: int = 1, **options: object) -> Iterator[list[Worker]]:
        """Workers for as long as the block runs."""
        started = [self.worker(**options) for _ in range(workers)]
        waiting.until(
            lambda: self.database.value("select count(*) from ai.workers where ended_at is null") >= workers,
            f"{workers} workers",
        )
        try:
            yield started
        finally:
            for worker in started:
                if worker.running:
                    worker.terminate(60)

    def bench(self, load: str, *arguments: object, member: Member | None = None, **options: object) -> dict[str, Any]:
        """Runs `martlet bench LOAD` as the member and returns what it printed."""
        return run_bench(load, *arguments, url=(member or self.member).url, **options)

    def warm_up(self, model: str = "local/extract", generations: int = 200) -> None:
        """The first of a member make the way for all later ones: its lanes, the plans, what is kept in memory."""
        with self.working():
            report = self.bench("load", model=model, requests=generations, clients=4)
        assert report["unfinished"] == 0, report

    def counts(self) -> dict[str, int]:
        """Generations by status."""
        rows = self.database.execute("select status, count(*) as n from ai.generations group by status")
        return {row["status"]: row["n"] for row in rows}

    def wait_until_all_ended(self, seconds: float = 120) -> None:
        # Not by ai.generations: to look for one that has not ended reads all that have, twenty times a second.
        waiting.until(
            lambda: not self.database.value(_AT_WORK), "the end of all that waits or runs", seconds, every=0.05
        )
        assert not self.database.value("select exists (select from ai.generations where finished_at is null)")


def run_bench(load: str, *arguments: object, url: str = "", **options: object) -> dict[str, Any]:
    """`martlet bench LOAD`, which prints one JSON object."""
    command = [MARTLET, "bench", load, *map(str, arguments), *flags(options)]
    limit = float(options.get("seconds", 120)) + 90  # type: ignore[arg-type]
    environment = {**os.environ, "DATABASE_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == 0, f"{' '.join(command[1:])} failed:\n{done.stderr}"
    return json.loads(done.stdout)


@contextlib.contextmanager
def opened(server: str, folder: Path) -> Iterator[Installation]:
    """A migrated database of its own with its processes, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with databases.temporary(server) as database, contextlib.ExitStack() as stack:
        environment = {**os.environ, "DATABASE_URL": database.url}
        subprocess.run([MARTLET, "migrate"], env=environment, check=True, timeout=120, stdout=subprocess.DEVNULL)
        yield Installation(database, folder, stack)


def settle_down(database: Database) -> None:
    """What one round leaves behind must not be written during the next."""
    database.execute("checkpoint")
    time.sleep(0.2)
