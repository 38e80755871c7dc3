"""pgqueuer as a peer: pgqueuer_jobs.py URL install|enqueue|drain|pickup|enqueue-slowly COUNT. Prints JSON.

With asyncpg and uvloop, batches of 100, as its own benchmark runs it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from times import answer, enqueuer, now_ms, of_pickups

PROMPT = b"What is a swift? " * 12
WARM_UP = 10


async def enqueue(url: str, count: int, each: int = 1_000) -> float:
    """Jobs a second."""
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    began = now_ms()
    for first in range(0, count, each):
        n = min(each, count - first)
        await queries.enqueue(["job"] * n, [PROMPT] * n, [0] * n)
    took = now_ms() - began
    await connection.close()
    return count / took * 1000


async def drain(url: str, count: int) -> float:
    """Jobs a second from the first that was started until the queue is empty."""
    await enqueue(url, count)
    connection = await asyncpg.connect(url)
    manager = QueueManager(Queries(AsyncpgDriver(connection)))
    times: list[float] = []

    @manager.entrypoint("job")
    async def job(job: Job) -> None:
        times.append(now_ms())

    await manager.run(mode=QueueExecutionMode.drain, batch_size=100)
    took = now_ms() - times[0]
    assert len(times) == count, f"{len(times)} done, {count} enqueued"
    return count / took * 1000


async def enqueue_slowly(url: str, count: int) -> None:
    """Fifty a second."""
    connection = await asyncpg.connect(url)
    queries = Queries(AsyncpgDriver(connection))
    committed = {}
    began = now_ms()
    for number in range(count):
        await asyncio.sleep(max(0, began + number * 20 - now_ms()) / 1000)
        await queries.enqueue("job", str(number).encode())
        committed[str(number)] = now_ms()
    print(json.dumps(committed), flush=True)


async def pickup(url: str, count: int) -> dict[str, float]:
    connection = await asyncpg.connect(url)
    manager = QueueManager(Queries(AsyncpgDriver(connection)))
    started: dict[str, float] = {}
    everything = asyncio.Event()

    @manager.entrypoint("job")
    async def job(job: Job) -> None:
        started[(job.payload or b"").decode()] = now_ms()
        if len(started) == count + WARM_UP:
            everything.set()

    working = asyncio.create_task(manager.run(dequeue_timeout=timedelta(seconds=30)))
    await asyncio.sleep(1)
    process = enqueuer(url, "enqueue-slowly", count + WARM_UP)
    await asyncio.wait_for(everything.wait(), 60)
    committed = json.loads(process.communicate()[0])
    manager.shutdown.set()
    await working
    return of_pickups(committed, started, WARM_UP)


async def main() -> None:
    url, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "install":
        connection = await asyncpg.connect(url)
        await Queries(AsyncpgDriver(connection)).install()
    elif what == "enqueue":
        answer(rate=await enqueue(url, count))
    elif what == "drain":
        answer(rate=await drain(url, count))
    elif what == "pickup":
        answer(**await pickup(url, count))
    else:
        await enqueue_slowly(url, count)


if __name__ == "__main__":
    uvloop.run(main())
