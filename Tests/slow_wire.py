"""A wire between clients and a server on which everything can be made to take its time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 64 << 10


class SlowWire:
    """Passes on what its clients at `port` and the server say, each piece `delay` seconds after it came."""

    def __init__(self, host: str, port: int) -> None:
        self.delay = 0.0
        self._server = (host, port)
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
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
        listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        self._listening.set()
        await self._end.wait()
        listener.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for transport in list(self._transports):
            transport.abort()
        await asyncio.sleep(0.1)  # they are closed by what is called soon

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.CancelledError):
            from_server, to_server = await asyncio.open_connection(*self._server)
            self._transports.update((writer.transport, to_server.transport))
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
