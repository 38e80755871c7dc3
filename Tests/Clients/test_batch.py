"""`martlet batch`: what it shows, what it does, and that it says by its exit code what became of a batch."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import waiting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended

Batch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def batch(martlet_bin: Path, member: Member) -> Iterator[Batch]:
    """Starts `martlet batch` as the member; standard output and standard error are pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, stderr: int = subprocess.PIPE, url: str | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [martlet_bin, "batch", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "DATABASE_URL": url or member.url},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def as_json(process: subprocess.Popen[str]) -> dict[str, Any]:
    code, out, err = result(process)
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    return json.loads(out)


def filled(
    database: Database, member: Member, model: str, count: int = 3, name: str = "mine", paused: bool = False
) -> uuid.UUID:
    """A batch of the member's with so many rows."""
    connection = database.connect(user=member)
    made = connection.execute("select ai.create_batch(%s, paused => %s) as id", (name, paused)).fetchone()
    assert made
    connection.execute(
        "insert into ai.generations (prompt, model, batch_id) select 'row ' || n, %s, %s from generate_series(1, %s) n",
        (model, made["id"], count),
    )
    return made["id"]


def test_a_batch_is_shown_with_its_bill(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("usage=input:7,output:3;answer=Four.")
    ident = filled(database, member, model, 3, name="sums\tand \x1b[31mmore")
    worker(database)
    all_ended(database)
    shown = as_json(batch("show", ident, "--json"))
    assert (shown["id"], shown["state"], shown["done"]) == (str(ident), "done", 1)
    assert (shown["total"], shown["succeeded"], shown["failed"], shown["eta_seconds"]) == (3, 3, 0, 0)
    assert shown["cost"] == shown["expected_cost"] == pytest.approx(3 * 0.000066)
    code, out, err = result(batch("show", str(ident).upper()))
    assert (code, err) == (0, "")
    words = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (words["state"], words["total"], words["cost"]) == ("done", "3", "0.000198")
    assert words["progress"] == f"[{'#' * 40}] 100.0 %"
    assert words["name"].startswith("sums and")
    assert result(batch("show", ident, "--watch"))[0] == 0


def test_the_latest_are_listed_first(database: Database, member: Member, batch: Batch) -> None:
    assert result(batch()) == (0, "no batches\n", "")
    assert result(batch("list", "--json")) == (0, "[]\n", "")
    older = filled(database, member, "local/extract", 1, "older", paused=True)
    newer = filled(database, member, "local/extract", 2, "newer")
    other = database.member()
    filled(database, other, "local/extract", 1, "of another tenant")
    code, out, _ = result(batch("--json"))
    assert code == 0
    assert [(row["id"], row["name"], row["state"], row["total"]) for row in json.loads(out)] == [
        (str(newer), "newer", "running", 2),
        (str(older), "older", "paused", 1),
    ]
    code, out, _ = result(batch("list", "--limit", "1"))
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 2
    assert lines[0].split() == ["id", "state", "done", "total", "failed", "cost", "created", "name"]
    assert lines[1].startswith(str(newer))
    assert lines[1].endswith("newer")


def test_pausing_holds_it_back_and_resuming_lets_it_go(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("answer=Yes.")
    ident = filled(database, member, model, 3)
    assert as_json(batch("pause", ident, "--json")) == {"id": str(ident), "state": "paused"}
    worker(database)
    beside = (
        database.connect(user=member).execute("select ai.generate('beside', model => %s) as id", (model,)).fetchone()
    )
    assert beside
    waiting.until(
        lambda: database.value("select finished_at is not null from ai.generations where id = %s", beside["id"]),
        "what is beside the batch",
    )
    assert as_json(batch("show", ident, "--json"))["queued"] == 3
    watching = batch("show", ident, "--watch", "--json")
    assert watching.stdout is not None
    assert json.loads(watching.stdout.readline())["state"] == "paused"
    assert result(batch("resume", ident)) == (0, "resumed\n", "")
    last = [json.loads(line) for line in watching.stdout.read().splitlines()][-1]
    assert (last["state"], last["succeeded"]) == ("done", 3)
    assert watching.wait(60) == 0


def test_cancelling_ends_what_waits_and_what_runs(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("rate=5;tokens=1000")
    ident = filled(database, member, model, 5)
    worker(database, concurrency=2)
    waiting.until(lambda: database.value("select count(*) from ai.leases") == 2, "two to run")
    watching = batch("show", ident, "--watch")
    assert as_json(batch("cancel", ident, "--json")) == {
        "id": str(ident),
        "state": "cancelled",
        "cancelled": 3,
        "running": 2,
    }
    code, out, err = result(watching)
    assert (code, err) == (3, "")
    assert re.search(r"^cancelled +5$", out, re.MULTILINE)
    assert result(batch("cancel", ident)) == (0, "cancelled: 0 ended, 0 are being aborted\n", "")
    code, _, err = result(batch("resume", ident))
    assert code == 1
    assert "PT409" in err


def test_a_batch_with_failures_is_exit_code_3(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("status=400")
    ident = filled(database, member, model, 2)
    worker(database)
    code, out, _ = result(batch("show", ident, "--watch"))
    assert code == 3
    assert re.search(r"^failed +2$", out, re.MULTILINE)
    assert result(batch("show", ident))[0] == 0


def test_the_bar_is_on_a_terminal_only_and_grows(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("answer=Yes.")
    ident = filled(database, member, model, 4, paused=True)
    ours, theirs = pty.openpty()
    watching = batch("show", ident, "--watch", stderr=theirs)
    os.close(theirs)
    shown = b""
    while b" paused " not in shown:
        shown += os.read(ours, 4096)
    assert b"[--------------------]   0.0 % 0/4  paused" in shown
    worker(database)
    assert result(batch("resume", ident))[0] == 0
    while chunk := read(ours):
        shown += chunk
    assert watching.wait(60) == 0
    os.close(ours)
    lines = [line.removeprefix("\x1b[K") for line in shown.decode().split("\r")]
    assert all(len(line) < 80 for line in lines), lines
    assert any(line.startswith(f"[{'#' * 20}] 100.0 % 4/4") for line in lines)


def read(terminal: int) -> bytes:
    """What the other side wrote; nothing once it has closed the terminal."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def test_a_lost_connection_does_not_end_the_watching(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], batch: Batch
) -> None:
    model = Providers(database, simulator).model("answer=Yes.")
    ident = filled(database, member, model, 2, paused=True)
    watching = batch("show", ident, "--watch", "--json")
    assert watching.stdout is not None
    watching.stdout.readline()
    ended = database.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
        " and application_name = 'martlet batch'",
        database.name,
    )
    assert ended
    worker(database)
    assert result(batch("resume", ident))[0] == 0
    assert json.loads(watching.stdout.read().splitlines()[-1])["state"] == "done"
    assert watching.wait(60) == 0


@pytest.mark.parametrize("what", ["show", "pause", "resume", "cancel"])
def test_what_one_may_not_see_does_not_exist(database: Database, batch: Batch, what: str) -> None:
    other = database.member()
    ident = filled(database, other, "local/extract", 1)
    for unknown in (ident, uuid.uuid4()):
        code, out, err = result(batch(what, unknown))
        assert (code, out) == (1, "")
        assert "PT404" in err
        assert "hint: " in err
    assert database.value("select paused_at is null and cancelled_at is null from ai.batches")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "x"],
        ["pause", "'; drop table x"],
        ["cancel", ""],
        ["list", "--limit", "0"],
        ["list", "--limit", "1001"],
        ["fly"],
    ],
)
def test_calls_that_are_none_are_exit_code_2(batch: Batch, arguments: list[str]) -> None:
    code, out, err = result(batch(*arguments))
    assert (code, out) == (2, "")
    assert err


def test_nobody_is_told_so(database: Database, batch: Batch) -> None:
    stray = database.login("ai_user")
    code, out, err = result(batch("show", uuid.uuid4(), url=stray.url))
    assert (code, out) == (1, "")
    assert "PT401" in err
    assert result(batch("list", url=stray.url)) == (0, "no batches\n", "")


def test_an_unreachable_database_is_an_error_without_a_password(batch: Batch) -> None:
    code, out, err = result(batch("list", url="postgresql://me:hunter2@127.0.0.1:1/x"))
    assert (code, out) == (1, "")
    assert "hint: " in err
    assert "hunter2" not in err
