"""Answers that are jobs at the provider: asked for, taken up again, cancelled, and on the books once."""

from __future__ import annotations

import itertools
import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import waiting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import QUICK, books_are_consistent, calls, ended

_numbers = itertools.count(1)
USAGE = "usage=input:100,cached:20,output:50,reasoning:0"


def job(database: Database, base_url: str, dialect: str, directives: str = "", **options: object) -> str:
    """A model whose answers are jobs, asked for every 20 ms; returns the name that apps use."""
    database.execute("delete from ai.breaker_settings")
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in QUICK)}", *QUICK.values())
    name = f"job/{next(_numbers)}"
    provider = database.provider(
        name.replace("/", "-"),
        f"{base_url}/v1",
        dialect,
        secret="SIM_API_KEY",
        headers=json.dumps({"x-simulate": directives}),
        options=json.dumps({"background": True, "poll_ms": 20, "poll_max_ms": 20, "wait_s": 0, **options}),
    )
    rates = {"input": 1, "cache_read": 0.5, "output": 2} | ({"seconds": 0.25} if dialect == "replicate" else {})
    database.model(provider, name, "acme/llama", max_output_tokens=4096, rates=json.dumps(rates))
    return name


def ask(database: Database, member: Member, model: str, **columns: Any) -> uuid.UUID:
    names = "".join(f", {name}" for name in columns)
    (row,) = database.connect(user=member).execute(
        f"insert into ai.generations (prompt, model{names})"
        f" values ('question ' || gen_random_uuid(), %s{', %s' * len(columns)}) returning id",
        [model, *columns.values()],
    )
    return row["id"]


def stream_is_whole(database: Database, member: Member, generation_id: uuid.UUID) -> None:
    """Its events are numbered without a gap, nothing was taken back, and the text is the output."""
    app = database.connect(user=member)
    events = app.execute("select * from ai.read_stream(%s)", [generation_id]).fetchall()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert {event["type"] for event in events} <= {"running", "delta", "end"}
    text = "".join(event["data"]["text"] for event in events if event["type"] == "delta")
    (row,) = app.execute("select output, stream from ai.generations where id = %s", [generation_id]).fetchall()
    assert text == (row["output"] if row["stream"] else "")


def endpoints(simulator: Simulator) -> Counter[str]:
    return Counter(entry["endpoint"] for entry in simulator.requests())


@pytest.mark.parametrize("dialect", ["openai_responses", "replicate"])
def test_a_job_is_asked_for_until_it_is_done_and_is_on_the_books_once(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    model = job(database, simulator.base_url, dialect, f"polls=3;answer=one+two+three;{USAGE}")
    worker(database)
    for stream in (False, True):
        generation_id = ask(database, member, model, stream=stream)
        row = ended(database, generation_id)
        assert (row["status"], row["output"]) == ("succeeded", "one two three")
        (call,) = calls(database, generation_id)
        assert (call["input_tokens"], call["output_tokens"], call["estimated"]) == (100, 50, False)
        if dialect == "replicate":
            # Half a second of machine time, by the simulator's count.
            assert str(call["units"]["seconds"]) == "0.5"
            assert call["cost"] * 1_000_000 == 100 + 2 * 50 + 125_000
        else:
            assert call["cost"] * 1_000_000 == 80 + 10 + 100
        stream_is_whole(database, member, generation_id)
    if dialect == "replicate":
        assert endpoints(simulator) == {"/v1/predictions": 2, "/v1/predictions/ID": 8, "/v1/stream/ID": 1}
    else:
        assert endpoints(simulator) == {"/v1/responses": 2, "/v1/responses/ID": 4}
    books_are_consistent(database)


@pytest.mark.parametrize(("dialect", "fault"), [("openai_responses", ""), ("replicate", "at=stream;times=2;")])
def test_a_stream_that_breaks_off_goes_on_where_it_was(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dialect: str,
    fault: str,
) -> None:
    worker(database)
    for kind in ("truncate_after", "reset_after", "end_after"):
        model = job(database, simulator.base_url, dialect, f"tokens=9;rate=200;{fault}{kind}=3;{USAGE}")
        generation_id = ask(database, member, model, stream=True)
        row = ended(database, generation_id)
        assert row["status"] == "succeeded"
        assert len(row["output"].split(" ")) == 9
        (call,) = calls(database, generation_id)
        assert (call["input_tokens"], call["output_tokens"], call["estimated"]) == (100, 50, False)
        stream_is_whole(database, member, generation_id)
    assert endpoints(simulator)["/v1/responses" if dialect == "openai_responses" else "/v1/predictions"] == 3


def test_questions_that_fail_say_nothing_of_the_job(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    worker(database)
    faults = ("status=503", "status=429;retry_after=0", "reset", "html", "empty", "malformed")
    asked = [
        ask(database, member, job(database, simulator.base_url, "replicate", f"{fault};at=poll;times=2;{USAGE}"))
        for fault in faults
    ]
    for generation_id in asked:
        assert ended(database, generation_id)["status"] == "succeeded"
        (call,) = calls(database, generation_id)
        assert (call["status"], call["estimated"]) == ("succeeded", False)
    assert endpoints(simulator) == {"/v1/predictions": len(faults), "/v1/predictions/ID": 3 * len(faults)}


@pytest.mark.parametrize("dialect", ["openai_responses", "replicate"])
def test_a_cancel_between_two_questions_ends_the_job_at_the_provider(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    # After each answer it waits half as long again, and more: soon for minutes.
    model = job(database, simulator.base_url, dialect, "polls=1000000", poll_ms=500, poll_max_ms=3_600_000)
    worker(database)
    generation_id = ask(database, member, model)
    # A job that is asked for is one whose name is known.
    waiting.until(lambda: any(place.endswith("/ID") for place in endpoints(simulator)), "the job to be asked for")
    app = database.connect(user=member)
    app.execute("select ai.cancel(%s)", [generation_id])
    assert ended(database, generation_id)["status"] == "cancelled"
    (call,) = calls(database, generation_id)
    assert (call["status"], call["estimated"]) == ("cancelled", True)
    waiting.until(lambda: sum(v for k, v in endpoints(simulator).items() if k.endswith("/cancel")) == 1, "a farewell")
    books_are_consistent(database)


def test_one_time_is_for_all_questions_and_its_end_is_told_to_the_provider(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    database.execute("update ai.settings set max_attempts = 1")
    model = job(database, simulator.base_url, "openai_responses", "polls=1000000")
    worker(database)
    generation_id = ask(database, member, model, deadline_ms=6_000)
    row = ended(database, generation_id)
    assert row["status"] == "failed"
    assert all(call["status"] == "failed" for call in calls(database, generation_id))
    waiting.until(lambda: endpoints(simulator)["/v1/responses/ID/cancel"] == 1, "a farewell")
    assert endpoints(simulator)["/v1/responses"] == 1
    books_are_consistent(database)


@pytest.mark.parametrize("dialect", ["openai_responses", "replicate"])
def test_a_worker_killed_between_two_questions_leaves_an_estimate_and_another_makes_the_answer(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    model = job(database, simulator.base_url, dialect, "polls=1000000")
    victim = worker(database)
    generation_id = ask(database, member, model)
    question = "/v1/responses/ID" if dialect == "openai_responses" else "/v1/predictions/ID"
    waiting.until(lambda: endpoints(simulator)[question] > 1, "two questions")
    victim.kill()
    headers = json.dumps({"x-simulate": f"polls=1;{USAGE}"})
    database.execute("update ai.providers set headers = %s where name like 'job-%%'", headers)
    worker(database)
    assert ended(database, generation_id)["status"] == "succeeded"
    abandoned, succeeded = calls(database, generation_id)
    assert (abandoned["status"], abandoned["estimated"]) == ("abandoned", True)
    assert abandoned["input_tokens"] > 0
    assert abandoned["cost"] > 0
    assert (succeeded["status"], succeeded["estimated"], succeeded["output_tokens"]) == ("succeeded", False, 50)
    books_are_consistent(database)


def test_a_worker_that_stops_hands_its_jobs_back_and_cancels_them_there(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = job(database, simulator.base_url, "openai_responses", "polls=1000000")
    process = worker(database, grace=3)
    for _ in range(3):
        ask(database, member, model)
    waiting.until(lambda: endpoints(simulator)["/v1/responses"] == 3, "the jobs to be made")
    assert process.terminate() == 0
    assert database.value("select count(*) from ai.generations where status = 'queued'") == 3
    assert database.value("select count(*) from ai.llm_calls where status = 'abandoned'") == 3
    assert endpoints(simulator)["/v1/responses/ID/cancel"] == 3


class _Replicate(BaseHTTPRequestHandler):
    """A provider that names another server for its stream."""

    protocol_version = "HTTP/1.1"
    server: Any

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        kind, status = "application/json", 200
        if self.path == "/stream":
            body = "event: output\nid: 1:0\ndata: streamed\n\nevent: done\nid: 2:0\ndata: {}\n\n"
            kind = "text/event-stream"
        else:
            made = self.command == "POST"
            text = "streamed" if self.server.elsewhere.seen else "polled"
            prediction = {
                "id": "abc123",
                "model": "acme/llama",
                "version": "hidden",
                "status": "starting" if made else "succeeded",
                "output": None if made else text,
                "error": None,
                "metrics": {} if made else {"predict_time": 1, "input_token_count": 1, "output_token_count": 1},
                "urls": {"get": f"{self.server.elsewhere.url}/get", "stream": f"{self.server.elsewhere.url}/stream"},
            }
            body, status = json.dumps(prediction), 201 if made else 200
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Replicate)
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.elsewhere: _Server = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def servers() -> Iterator[tuple[_Server, _Server]]:
    provider, elsewhere = _Server(), _Server()
    provider.elsewhere = elsewhere
    threads = [threading.Thread(target=server.serve_forever) for server in (provider, elsewhere)]
    for thread in threads:
        thread.start()
    yield provider, elsewhere
    for server in (provider, elsewhere):
        server.shutdown()
        server.server_close()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("allowed", [False, True])
def test_an_address_that_a_provider_names_gets_no_key_and_must_be_public(
    database: Database,
    member: Member,
    servers: tuple[_Server, _Server],
    worker: Callable[..., Worker],
    allowed: bool,
) -> None:
    provider, elsewhere = servers
    model = job(database, provider.url, "replicate")
    worker(database, env={"MARTLET_ALLOWED_NETWORKS": "127.0.0.0/8"} if allowed else {})
    generation_id = ask(database, member, model, stream=True)
    row = ended(database, generation_id)
    assert (row["status"], row["output"]) == ("succeeded", "streamed" if allowed else "polled")
    assert [(method, path) for method, path, _ in elsewhere.seen] == ([("GET", "/stream")] if allowed else [])
    for _, _, headers in elsewhere.seen:
        assert "authorization" not in {name.lower() for name in headers}
        assert "x-simulate" not in {name.lower() for name in headers}
    # What it says of its own predictions is not believed where the key goes.
    asked = {path for _, path, _ in provider.seen}
    assert asked == {"/v1/models/acme/llama/predictions", "/v1/predictions/abc123"}
    assert all("authorization" in {name.lower() for name in headers} for _, _, headers in provider.seen)
