"""Queues that are measured in the same rounds, each in a database of its own on the same server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import databases
import psycopg
from Benchmarks.installation import ANSWER, Installation
from Benchmarks.measuring import Figures
from Benchmarks.setting import Setting
from databases import Database

_PROGRAMS = Path(__file__).resolve().parent / "peers"
# What their queues keep; emptied between two rounds.
_TABLES = {"pgqueuer": "pgqueuer, pgqueuer_log", "procrastinate": "procrastinate_jobs, procrastinate_events"}


def peer_python(environment: str) -> str:
    """The Python of a peers' virtual environment, which scripts/setup-bench makes."""
    python = Path(os.environ["MARTLET_BENCH_STATE"]) / environment / "bin/python"
    assert python.exists(), f"the peers are not installed: scripts/setup-bench {environment}"
    return str(python)


@dataclass
class QueuePeer:
    """One of them."""

    name: str
    database: Database
    setting: Setting

    tables: str
    program: str

    def _run(self, what: str, count: int, *more: str) -> Figures:
        """Its program with an empty queue, as the owner of its own tables."""
        if what != "install":
            with psycopg.connect(self.database.url, autocommit=True) as connection:
                connection.execute(f"truncate {self.tables} cascade")
                connection.execute("checkpoint")
        command = [peer_python("queues"), str(_PROGRAMS / self.program), self.database.url, what, str(count), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"{self.name} {what} failed:\n{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def install(self) -> None:
        self._run("install", 0)

    def enqueue(self) -> Figures:
        return self._run("enqueue", self.setting.size(50_000, 500))

    def drain(self) -> Figures:
        """The slower one gets fewer jobs, so that its rounds are no longer than the others'."""
        most = {"pgqueuer": 20_000, "procrastinate": 3_000}[self.name]
        return self._run("drain", self.setting.size(most, 200))

    def pickup(self) -> Figures:
        return self._run("pickup", self.setting.size(300, 20))


class MinimalQueue(QueuePeer):
    """No product: hand-written SQL that does what a queue in PostgreSQL has to do, and nothing else."""

    def answers(self, installation: Installation) -> Figures:
        """The same chats as Martlet's, one after the other."""
        requests = self.setting.size(1_000, 30)
        return self._run("answers", requests, f"{installation.simulator.base_url}/v1", f"sim-small+{ANSWER}")


@contextlib.contextmanager
def minimal(setting: Setting) -> Iterator[MinimalQueue]:
    """Ready: what an insert, a claim and an answer that each commit take at the least."""
    with databases.temporary(setting.server) as database:
        peer = MinimalQueue("minimal SQL", database, setting, "minimal_jobs", "minimal_jobs.py")
        peer.install()
        yield peer


@contextlib.contextmanager
def installed(setting: Setting, installation: Installation) -> Iterator[list[QueuePeer]]:
    """All of them, ready; none where peers are not wanted."""
    with contextlib.ExitStack() as stack:
        peers = []
        for name, tables in _TABLES.items() if setting.peers else ():
            database = stack.enter_context(databases.temporary(setting.server))
            peer = QueuePeer(name, database, setting, tables, f"{name}_jobs.py")
            peer.install()
            peers.append(peer)
        yield peers
