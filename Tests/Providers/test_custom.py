"""Providers that nothing but rows describe, against a server whose protocol is nobody's: first the documented one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from databases import Database, Member
from processes import Worker
from simulated import QUICK, books_are_consistent, calls, ended

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 🐦"}]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "custom-providers.md"


class _Quill(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Quill

    def answer(self, body: object, status: int = 200, kind: str = "application/json") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        with self.server.lock:
            self.server.seen.append((self.command, self.path, dict(self.headers), body))
            reply = self.server.replies.pop(0) if self.server.replies else self.server.usual(self.path, body)
        self.answer(*reply)

    def do_GET(self) -> None:
        self.handle_any()

    def do_POST(self) -> None:
        self.handle_any()

    def do_DELETE(self) -> None:
        self.handle_any()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Quill(ThreadingHTTPServer):
    """The provider of docs/custom-providers.md, until the block ends. `replies` come before what it usually says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Quill)
        self.lock = threading.Lock()
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        self.replies: list[tuple[Any, ...]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @staticmethod
    def usual(path: str, body: Any) -> tuple[Any, ...]:
        said = f"Written: {body['turns'][-1]['content']}" if body else ""
        meter = {"read": 12, "written": 7}
        if "live=1" in path:
            lines = [{"piece": said[:6]}, {"piece": said[6:]}, {"why": "eos", "end": True, "meter": meter}]
            return "".join(json.dumps(line) + "\n" for line in lines).encode(), 200, "text/plain"
        return {"result": {"text": said, "why": "eos"}, "meter": meter}, 200

    def __enter__(self) -> Quill:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def quill() -> Iterator[Quill]:
    with Quill() as server:
        yield server


@pytest.fixture
def documented(database: Database, quill: Quill) -> Database:
    """A database after the one statement of the documentation, which leads to the test's own server."""
    statement = re.search(r"```sql\n(with quill.*?)```", DOCUMENT.read_text(), re.DOTALL).group(1)
    assert statement.count("https://quill.example") == 1
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in QUICK)}", *QUICK.values())
    database.execute(
        statement.replace("https://quill.example", quill.base_url)
        .replace("QUILL_API_KEY", "SIM_API_KEY")
        .replace("%", "%%")
    )
    database.execute(
        """insert into ai.prices (model_id, rates)
           select id, '{"input": 2, "output": 10}' from ai.models where name = 'quill/q1'"""
    )
    return database


def ask(database: Database, member: Member, stream: bool = False, params: str = "{}") -> dict[str, Any]:
    app = database.connect(user=member)
    row = app.execute(
        "insert into ai.generations (messages, model, stream, params) values (%s, 'quill/q1', %s, %s) returning id",
        [json.dumps(MESSAGES), stream, params],
    ).fetchone()
    return ended(database, row["id"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_statement_of_the_documentation_is_all_it_takes(
    documented: Database, member: Member, worker: Callable[..., Worker], quill: Quill, stream: bool
) -> None:
    worker(documented)
    row = ask(documented, member, stream, '{"max_tokens": 50, "temperature": 0.5, "seed": 7}')
    assert (row["status"], row["output"], row["finish_reason"]) == ("succeeded", "Written: Grüße 🐦", "stop"), row[
        "error"
    ]
    assert row["dropped_params"] == ["seed"]
    (seen,) = quill.seen
    assert seen[:2] == ("POST", "/v2/generate?live=1" if stream else "/v2/generate")
    assert seen[2]["authorization"].startswith("Bearer ")
    assert seen[3] == {
        "engine": "q-1",
        "system": "Be brief.",
        "turns": [{"role": "user", "content": "Grüße 🐦"}],
        "settings": {"limit": 50, "heat": 0.5},
    }
    (call,) = calls(documented, row["id"])
    assert (call["input_tokens"], call["output_tokens"], call["estimated"]) == (12, 7, False)
    assert row["cost"] == Decimal("0.000094")
    books_are_consistent(documented)


def test_its_failures_are_retried_or_not_like_any_others(
    documented: Database, member: Member, worker: Callable[..., Worker], quill: Quill
) -> None:
    worker(documented)
    busy = {"problem": {"says": "busy", "code": "b1"}}
    quill.replies = [(busy, 503), (busy, 429), (busy, 200)]
    row = ask(documented, member)
    assert (row["status"], row["attempts"]) == ("succeeded", 4)
    assert [call["error_class"] for call in calls(documented, row["id"])] == ["transient", "rate", "transient", None]
    quill.replies = [({"problem": {"says": "no such engine", "code": "e404"}}, 404)]
    row = ask(documented, member)
    assert row["status"] == "failed"
    assert (row["error"]["message"], row["error"]["code"]) == ("no such engine", "e404")
    books_are_consistent(documented)


@pytest.mark.parametrize("pieces", [0, 1, 2])
def test_a_stream_without_its_end_is_an_answer_that_broke_off(
    documented: Database, member: Member, worker: Callable[..., Worker], quill: Quill, pieces: int
) -> None:
    worker(documented)
    documented.execute("update ai.settings set max_attempts = 1")
    lines = b"".join(line for line in [b'{"piece":"one "}\n', b'{"piece":"two"}\n'][:pieces]) or b'{"pi'
    quill.replies = [(lines, 200, "application/x-ndjson")]
    row = ask(documented, member, stream=True)
    assert row["status"] == "failed"
    assert (row["output"] or "") == ["", "one ", "one two"][pieces]
    (call,) = calls(documented, row["id"])
    assert call["estimated"]
    books_are_consistent(documented)


def test_a_job_is_polled_until_it_is_done_and_paid_for_once(
    documented: Database, member: Member, worker: Callable[..., Worker], quill: Quill
) -> None:
    job = {
        "body": {"text": "${input}"},
        "path": "/jobs",
        "text": "output[*]",
        "usage": {"input": "in", "output": "out"},
        "poll": {
            "path": "/jobs/${id}",
            "id": "id",
            "status": "state",
            "done": ["ready"],
            "failed": ["broken"],
            "cancel_path": "/jobs/${id}",
            "cancel_method": "DELETE",
        },
    }
    documented.execute(
        "update ai.providers set options = %s where name = 'quill'",
        json.dumps({"poll_ms": 10, "custom": {"chat": job}}),
    )
    worker(documented)
    quill.replies = [
        ({"id": "j7", "state": "queued"}, 201),
        ({"id": "j7", "state": "busy"}, 200),
        ({"id": "j7", "state": "ready", "output": ["o", "k"], "in": 3, "out": 2}, 200),
    ]
    row = ask(documented, member)
    assert (row["status"], row["output"], row["attempts"]) == ("succeeded", "ok", 1), row["error"]
    assert [seen[:2] for seen in quill.seen] == [("POST", "/jobs"), ("GET", "/jobs/j7"), ("GET", "/jobs/j7")]
    assert row["cost"] == Decimal("0.000026")
    books_are_consistent(documented)


def test_what_cannot_be_followed_is_refused_with_its_place(database: Database) -> None:
    with pytest.raises(psycopg.Error) as caught:
        database.execute(
            """insert into ai.providers (name, dialect, base_url, options) values ('q', 'custom', 'https://q.example',
               '{"custom": {"chat": {"body": {"a": ["${nothing}"]}, "text": "x"}}}')"""
        )
    assert caught.value.sqlstate == "PT400"
    assert "options.custom.chat" in str(caught.value)
    assert "nothing" in str(caught.value)
