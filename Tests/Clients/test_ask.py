"""`martlet ask`: what a person at a prompt, and a script, sees of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import waiting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers

Ask = Callable[..., subprocess.Popen[str]]
SLOW = "ttft=50;rate=20;tokens=60"


@pytest.fixture
def ask(martlet_bin: Path, member: Member) -> Iterator[Ask]:
    """Starts `martlet ask` as the member; standard output and standard error are pipes."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [martlet_bin, "ask", *map(str, arguments)],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "DATABASE_URL": member.url, **options},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen[str], given: str | None = None) -> tuple[int, str, str]:
    """Exit code, what it has printed that was not read yet, and its errors."""
    if given is not None:
        out, err = process.communicate(given, timeout=60)
        return process.returncode, out, err
    # Not communicate(): it would pass over what an earlier read has left in the buffer.
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.read()
    return process.wait(60), out, process.stderr.read()


def only_generation(database: Database) -> dict[str, Any]:
    (row,) = database.execute("select * from ai.generations")
    return row


def test_the_answer_is_printed_while_it_is_written(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model(SLOW)
    worker(database)
    process = ask("What is a martlet? 🐦", "--model", model)
    assert process.stdout is not None
    first = process.stdout.read(1)
    assert database.value("select finished_at is null from ai.generations")
    code, rest, err = result(process)
    assert (code, err) == (0, "")
    row = only_generation(database)
    assert first + rest == row["output"].removesuffix("\n") + "\n"
    assert (row["prompt"], row["stream"], row["status"]) == ("What is a martlet? 🐦", True, "succeeded")


def test_ctrl_c_cancels_the_generation(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model("rate=5;tokens=1000")
    worker(database)
    process = ask("Go on and on.", "--model", model)
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    code, _, err = result(process)
    assert code == 130
    assert "cancelled" in err
    waiting.until(lambda: only_generation(database)["status"] == "cancelled", "the end")


def test_a_reader_that_goes_away_cancels_the_generation(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model("rate=10;tokens=1000")
    worker(database)
    process = ask("Go on and on.", "--model", model)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141
    waiting.until(lambda: only_generation(database)["status"] == "cancelled", "the end")


def test_connections_that_break_lose_no_text(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model(SLOW)
    worker(database)
    process = ask("Tell!", "--model", model)
    assert process.stdout is not None
    text = process.stdout.read(1)
    for _ in range(3):
        ended = waiting.until(
            lambda: database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
                " and application_name = 'martlet ask'",
                database.name,
            ),
            "a connection to break",
        )
        assert ended
        text += process.stdout.read(10)
    code, rest, _ = result(process)
    assert code == 0
    assert text + rest == only_generation(database)["output"].removesuffix("\n") + "\n"


def test_a_failure_is_told_on_standard_error(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model("status=400;message=no,thanks")
    worker(database)
    code, out, err = result(ask("Please?", "--model", model))
    assert (code, out) == (1, "")
    assert "failed: permanent" in err


@pytest.mark.parametrize("model", ["no/such-model"])
def test_a_refusal_tells_detail_and_hint(ask: Ask, model: str) -> None:
    code, out, err = result(ask("Please?", "--model", model))
    assert (code, out) == (1, "")
    assert "PT404" in err
    assert "detail: " in err
    assert "hint: " in err


def test_json_is_one_line_with_the_bill(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model("usage=input:7,output:3;answer=Four.")
    worker(database)
    code, out, err = result(ask("2 + 2?", "--system", "Be brief.", "--model", model, "--json"))
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert out.count("\n") == 1
    assert (answer["status"], answer["output"], answer["finish_reason"]) == ("succeeded", "Four.", "stop")
    assert (answer["input_tokens"], answer["output_tokens"], answer["cost"]) == (7, 3, 0.000066)
    assert [message["role"] for message in only_generation(database)["messages"]] == ["system", "user"]


def test_without_streaming_the_answer_comes_whole(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], ask: Ask
) -> None:
    model = Providers(database, simulator).model("answer=Four.")
    worker(database)
    assert result(ask("2 + 2?", "--model", model, "--no-stream")) == (0, "Four.\n", "")
    assert only_generation(database)["stream"] is False


@pytest.mark.parametrize("text", ["größer\n🐦\n", "x" * 1_000_000, "'; drop table x; --\\"])
def test_a_question_from_standard_input_arrives_as_it_is(
    database: Database, worker: Callable[..., Worker], ask: Ask, text: str
) -> None:
    worker(database)
    code, _, _ = result(ask("-", stdin=subprocess.PIPE), text)
    assert code == 0
    assert only_generation(database)["prompt"] == text


@pytest.mark.parametrize("text", ["", " \n", "a\0b"])
def test_questions_that_are_none_are_a_wrong_call(ask: Ask, text: str) -> None:
    code, out, err = result(ask("-", stdin=subprocess.PIPE), text)
    assert (code, out) == (2, "")
    assert err


def test_without_a_worker_it_says_so_and_gives_up_in_time(database: Database, ask: Ask) -> None:
    code, out, err = result(ask("Anybody?", "--timeout", "1"))
    assert (code, out) == (1, "")
    assert "worker" in err
    assert only_generation(database)["status"] in ("cancelled", "failed")


def test_an_unreachable_database_is_an_error_without_a_password(ask: Ask) -> None:
    code, out, err = result(ask("Hello?", DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/x"))
    assert (code, out) == (1, "")
    assert "hint: " in err
    assert "hunter2" not in err
