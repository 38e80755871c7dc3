"""A provider that is the attacker: where it leads, what it says, and what of it gets into logs. Real workers; Tests/Faults has more of their defences."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from databases import Database, Member
from processes import Worker
from simulated import QUICK, ended

FORGED = "2026-11-21T00:00:00.000Z error forged by=provider"
HOSTILE = f"'; drop table ai.tenants; --\r\n{FORGED}\x1b[31m\u2028\u202e\x00"


class Rogue:
    """A provider on a port of its own that answers as it is told and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[str], tuple[int, dict[str, str], bytes]] = lambda path: (500, {}, b"")
        rogue = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                rogue.asked.append(self.path)
                status, headers, body = rogue.answer(self.path)
                self.send_response(status)
                for name, value in {
                    "content-length": str(len(body)),
                    "content-type": "application/json",
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def rogue() -> Iterator[Rogue]:
    provider = Rogue()
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


def said(text: str) -> bytes:
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "model": text,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        }
    ).encode()


def ask(database: Database, member: Member, rogue: Rogue, model: str = "rogue/m") -> dict[str, Any]:
    if not database.execute("select id from ai.providers where name = 'rogue'"):
        settings = {**QUICK, "max_attempts": 1}
        database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
        database.model(database.provider("rogue", rogue.url + "/v1"), model)
    asked = (
        database.connect(user=member)
        .execute("select ai.generate(prompt => 'x', model => %s) as id", [model])
        .fetchone()
    )
    assert asked is not None
    return ended(database, asked["id"])


def test_a_redirect_is_not_followed(
    database: Database, member: Member, rogue: Rogue, worker: Callable[..., Worker]
) -> None:
    """To another path of the same host, so that it could be seen: never asked, and the generation fails."""
    worker(database)
    for status in (301, 302, 307, 308):
        rogue.answer = lambda path, status=status: (
            (status, {"location": f"{rogue.url}/internal"}, b"")
            if path.startswith("/v1")
            else (200, {}, said("internal"))
        )
        row = ask(database, member, rogue)
        assert row["status"] == "failed"
    assert not [path for path in rogue.asked if "internal" in path]


def test_a_bomb_of_zeros_is_not_unpacked(
    database: Database, member: Member, rogue: Rogue, worker: Callable[..., Worker]
) -> None:
    """200 MB in 200 KB: the generation fails, and the worker answers the next."""
    process = worker(database)
    bomb = gzip.compress(b'{"choices": [' + b" " * 200_000_000, 9)
    rogue.answer = lambda path: (200, {"content-encoding": "gzip"}, bomb)
    assert ask(database, member, rogue)["status"] == "failed"
    rogue.answer = lambda path: (200, {}, said("fine"))
    assert ask(database, member, rogue)["output"] == "fine"
    assert process.running


@pytest.mark.parametrize("how", ["answer", "error", "header"])
def test_what_a_provider_says_is_never_sql_nor_a_line_of_a_log(
    database: Database, member: Member, rogue: Rogue, worker: Callable[..., Worker], how: str
) -> None:
    """SQL, line ends, escapes of terminals, NUL, in the text, the error, the model's name, a request id: data in the row, and no line of the worker's log is forged."""
    process = worker(database, log_level="trace")
    body = json.dumps({"error": {"message": HOSTILE, "type": HOSTILE, "code": HOSTILE}}).encode()
    header = HOSTILE.replace("\r\n", "\r\n ").split("\x1b", 1)[0].replace("\r\n", "%0d%0a")
    rogue.answer = lambda path: (
        (200, {}, said(HOSTILE))
        if how == "answer"
        else (400, {}, body)
        if how == "error"
        else (200, {"x-request-id": header}, said("x"))
    )
    row = ask(database, member, rogue)
    assert row["status"] == ("failed" if how == "error" else "succeeded")
    assert database.value("select count(*) from ai.tenants") == 1
    assert process.terminate() == 0
    lines = process.text.splitlines()
    assert not [line for line in lines if line.startswith(FORGED[:30])]
    assert "\x1b" not in process.text
    assert "\x00" not in process.text
