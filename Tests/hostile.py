"""A provider on raw sockets, whose path names the way in which it misbehaves."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable

# A flood ends when the other side has had enough, and at the latest here.
FLOOD = 512 << 20


class Visitor:
    """One connection, after its request was read."""

    def __init__(self, connection: socket.socket, streams: bool) -> None:
        self.connection = connection
        self.streams = streams

    def send(self, data: str | bytes) -> None:
        self.connection.sendall(data.encode() if isinstance(data, str) else data)

    def head(self, *fields: str, status: str = "200 OK", chunked: bool = False) -> None:
        kind = "text/event-stream" if self.streams else "application/json"
        lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", *fields]
        lines += ["transfer-encoding: chunked"] if chunked else ["connection: close"]
        self.send("\r\n".join(lines) + "\r\n\r\n")

    def flood(self, piece: str | bytes) -> None:
        data = piece.encode() if isinstance(piece, str) else piece
        data *= max(1, 65_536 // len(data))
        for _ in range(FLOOD // len(data)):
            self.connection.sendall(data)

    def drip(self, piece: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.send(piece)
            time.sleep(0.02)

    def event(self, text: str) -> str:
        return "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + "\n\n"


def bomb() -> bytes:
    """128 MiB of spaces, twice compressed: a few kilobytes."""
    once = zlib.compressobj(1, zlib.DEFLATED, 31)
    data = b"".join([*(once.compress(b" " * (1 << 20)) for _ in range(128)), once.flush()])
    twice = zlib.compressobj(1, zlib.DEFLATED, 31)
    return twice.compress(data) + twice.flush()


def redirect(status: int) -> Callable[[Visitor], None]:
    def answer(to: Visitor) -> None:
        to.head("location: http://169.254.169.254/latest/meta-data/", status=f"{status} Moved")

    return answer


def reset(to: Visitor) -> None:
    to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def gzipped(to: Visitor) -> None:
    to.head("content-encoding: gzip, gzip")
    to.send(bomb())


def transfer_gzipped(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: gzip\r\n\r\n")
    to.send(bomb())


def endless_body(to: Visitor) -> None:
    to.head()
    to.send("" if to.streams else '{"choices": [{"message": {"content": "')
    to.flood(": comment\n" if to.streams else "lorem ipsum ")


def endless_unit(to: Visitor) -> None:
    to.head()
    to.flood("data: " if to.streams else '[{"a":')


def endless_whites(to: Visitor) -> None:
    to.head()
    to.flood("\n")


def endless_nulls(to: Visitor) -> None:
    to.head()
    to.send("data: " if to.streams else "")
    to.flood(b"\0")


def many_numbers(to: Visitor) -> None:
    """Twelve megabytes of the smallest values there are: as trees they would take hundreds."""
    to.head()
    body = b'{"choices": [' + b"0," * (6 << 20) + b"0]}"
    to.send(b"data: " + body + b"\n\n" if to.streams else body)


def deep(to: Visitor) -> None:
    to.head()
    body = b'{"choices":' + b"[" * 1_000_000
    to.send(b"data: " + body + b"\n\n" if to.streams else body)


def endless_text(to: Visitor) -> None:
    to.head()
    to.flood(to.event("x" * 60_000) if to.streams else "x")


def endless_head(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\n")
    to.flood("x-more: and more\r\n")


def endless_field(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\nx-long: ")
    to.flood("y")


def informational(to: Visitor) -> None:
    to.flood("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")


def endless_trailers(to: Visitor) -> None:
    to.head(chunked=True)
    to.send("1\r\n{\r\n0\r\n")
    to.flood("x-trailer: y\r\n")


def slow_head(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\n")
    to.drip("x-slow: y\r\n")


def slow_body(to: Visitor) -> None:
    to.head()
    to.drip(":\n" if to.streams else " ")


def silent(to: Visitor) -> None:
    time.sleep(60)


def no_http(to: Visitor) -> None:
    to.send('{"choices": [{"message": {"content": "of HTTP/0.9"}}]}')


def other_protocol(to: Visitor) -> None:
    to.send("SSH-2.0-OpenSSH_9.2\r\n")


def short(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9000000000\r\n\r\n{")


def negative(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}")


def bad_chunks(to: Visitor) -> None:
    to.head(chunked=True)
    to.send("zz\r\nhello\r\n")


def long_chunk(to: Visitor) -> None:
    to.head(chunked=True)
    to.send("7fffffffffffffff\r\n{")


def error_page(to: Visitor) -> None:
    to.head(status="500 Internal Server Error")
    to.flood("<html>so many words ")


def error_of_lies(to: Visitor) -> None:
    """An error that would be read as a log line, as colours, as text from right to left."""
    message = "\n2026-01-01T00:00:00Z critical forged\r\x1b[2J\x1b[31m\x00\u202eevil\u2028\x9b1m"
    error = {"error": {"message": message, "type": "x\n" + message, "code": message}}
    to.head("x-request-id: \x1b]0;title\x07", status="400 Bad\x1b[31m")
    to.send(json.dumps(error))


def wrong_kind(to: Visitor) -> None:
    to.send("HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\nconnection: close\r\n\r\n")
    to.send(bytes(range(256)) * 64)


def empty(to: Visitor) -> None:
    to.head()


def no_status(to: Visitor) -> None:
    to.send("HTTP/1.1 \r\n\r\n")


def upgrade(to: Visitor) -> None:
    to.send("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n")
    to.flood("\0\0\0\0")


class HostileProvider:
    """Its base URL is `at(behaviour)`; every connection gets one answer. Until the block ends."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def at(self, behaviour: Callable[[Visitor], None], name: str) -> str:
        self.behaviours[name] = behaviour
        return f"http://127.0.0.1:{self.port}/{name}"

    behaviours: dict[str, Callable[[Visitor], None]] = {}  # noqa: RUF012

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(65_536)
            head, _, body = data.partition(b"\r\n\r\n")
            lines = head.decode().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
            while len(body) < length:
                body += connection.recv(65_536)
            path = lines[0].split(" ")[1]
            self.requests.append(path)
            self.behaviours[path.split("/")[1]](Visitor(connection, bool(json.loads(body).get("stream"))))

    def __enter__(self) -> HostileProvider:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
