"""procrastinate as a peer: procrastinate_jobs.py URL install|enqueue|drain|pickup|enqueue-slowly COUNT. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys

import procrastinate
from times import answer, enqueuer, now_ms, of_pickups

PROMPT = "What is a swift? " * 12
WARM_UP, CONCURRENCY = 10, 30


def connected(url: str) -> procrastinate.App:
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))


async def enqueue(app: procrastinate.App, count: int, each: int = 1_000) -> float:
    """Jobs a second."""
    deferrer = app.configure_task("job")
    began = now_ms()
    for first in range(0, count, each):
        await deferrer.batch_defer_async(
            *({"key": str(n), "prompt": PROMPT} for n in range(first, min(first + each, count)))
        )
    return count / (now_ms() - began) * 1000


async def drain(app: procrastinate.App, count: int) -> float:
    """Jobs a second from the first that was started until the queue is empty."""
    times: list[float] = []

    @app.task(name="job")
    async def job(key: str, prompt: str) -> None:
        times.append(now_ms())

    await enqueue(app, count)
    await app.run_worker_async(wait=False, concurrency=CONCURRENCY, delete_jobs="never", install_signal_handlers=False)
    took = now_ms() - times[0]
    assert len(times) == count, f"{len(times)} done, {count} enqueued"
    return count / took * 1000


async def enqueue_slowly(app: procrastinate.App, count: int) -> None:
    """Fifty a second."""
    deferrer = app.configure_task("job")
    committed = {}
    began = now_ms()
    for number in range(count):
        await asyncio.sleep(max(0, began + number * 20 - now_ms()) / 1000)
        await deferrer.defer_async(key=str(number), prompt="")
        committed[str(number)] = now_ms()
    print(json.dumps(committed), flush=True)


async def pickup(app: procrastinate.App, url: str, count: int) -> dict[str, float]:
    started: dict[str, float] = {}
    everything = asyncio.Event()

    @app.task(name="job")
    async def job(key: str, prompt: str) -> None:
        started[key] = now_ms()
        if len(started) == count + WARM_UP:
            everything.set()

    working = asyncio.create_task(app.run_worker_async(concurrency=CONCURRENCY, install_signal_handlers=False))
    await asyncio.sleep(1)
    process = enqueuer(url, "enqueue-slowly", count + WARM_UP)
    await asyncio.wait_for(everything.wait(), 60)
    committed = json.loads(process.communicate()[0])
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return of_pickups(committed, started, WARM_UP)


async def main() -> None:
    url, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = connected(url)
    async with app.open_async():
        if what == "install":
            await app.schema_manager.apply_schema_async()
        elif what == "enqueue":
            answer(rate=await enqueue(app, count))
        elif what == "drain":
            answer(rate=await drain(app, count))
        elif what == "pickup":
            answer(**await pickup(app, url, count))
        else:
            await enqueue_slowly(app, count)


if __name__ == "__main__":
    asyncio.run(main())
