"""A wire between clients and a server on which everything can be made to take its time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 64 << 10


class SlowWire:
    """Passes on what its clients at `port` and the server say, each piece `delay` seconds after it came."""

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        self._server = (host, port)
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._clients: set[asyncio.Task[None]] = set()
        self._transports: weakref.WeakSet[asyncio.WriteTransport] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._listening.wait(30), "the wire does not listen"

    def through(self, url: str) -> str:
        """`url`, leading to the server by way of this wire."""
        parts = urlsplit(url)
        identity = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{identity}@127.0.0.1:{self.port}"))

    def stop(self) -> None:
        """Breaks every connection."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        # Not asyncio's own server: closed, it leaves the sockets of what it has just accepted to nobody.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            self.port = listener.getsockname()[1]
            self._loop.add_reader(listener, self._accept, listener)
            self._listening.set()
            await self._end.wait()
            self._loop.remove_reader(listener)
        # Nothing is cancelled, for the same reason: what has no connection left ends by itself.
        while self._clients:
            for transport in list(self._transports):
                transport.abort()
            await asyncio.wait(self._clients, timeout=0.01)
        await asyncio.sleep(0.1)  # they are closed by what is called soon

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            client = self._loop.create_task(self._connect(listener.accept()[0]))
            self._clients.add(client)
            client.add_done_callback(self._clients.discard)

    async def _connect(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            reader, writer = await self._open(sock=client)
            with contextlib.closing(writer):
                from_server, to_server = await self._open(*self._server)
                with contextlib.closing(to_server):
                    # When one side ends, so does the other.
                    pumps = {
                        asyncio.ensure_future(self._pump(reader, to_server)),
                        asyncio.ensure_future(self._pump(from_server, writer)),
                    }
                    _, left = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                    for pump in left:
                        pump.cancel()
                    await asyncio.gather(*left, return_exceptions=True)

    async def _open(self, *address: Any, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*address, **options)
        self._transports.add(writer.transport)
        return reader, writer

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()


@contextlib.contextmanager
def slow_wire(url: str) -> Iterator[SlowWire]:
    """A wire to the server of `url`, for as long as the block runs."""
    parts = urlsplit(url)
    wire = SlowWire(parts.hostname or "127.0.0.1", parts.port or 5432)
    try:
        yield wire
    finally:
        wire.stop()
