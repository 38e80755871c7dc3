"""The least that a queue in PostgreSQL can do. Prints JSON.

minimal_jobs.py URL install|pickup COUNT, minimal_jobs.py URL answers COUNT PROVIDER MODEL

One narrow table, hand-written statements, prepared, with asyncpg and uvloop; whoever inserts and whoever works wait for
each other in one process. Nothing is limited, priced, booked or protected. What Martlet does durably is durable here as
well, in as many commits: the insert that notifies, the claim that notifies, and for `answers` the answer that notifies.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import uvloop
from times import answer, now_ms, percentile

PROMPT = "What is a swift? " * 12
WARM_UP = 20
# Seconds that an event may take.
PATIENCE = 10

INSTALL = """
create table minimal_jobs (
  id bigint generated always as identity primary key, payload text not null, state smallint not null default 0,
  output text
) with (fillfactor = 50);
create index minimal_jobs_queued on minimal_jobs (id) where state = 0;
"""
INSERT = """
with inserted as (insert into minimal_jobs (payload) values ($1) returning id)
select pg_notify('minimal_asked', '') from inserted
"""
CLAIM = """
with claimed as (
  update minimal_jobs set state = 1
   where id = any (array(select id from minimal_jobs where state = 0 order by id limit 1 for update skip locked))
  returning id, payload
) select id, payload, pg_notify('minimal_claimed', id::text) from claimed
"""
ANSWER = """
with answered as (update minimal_jobs set state = 2, output = $2 where id = $1 returning id)
select pg_notify('minimal_answered', id::text) from answered
"""


class Provider:
    """Chats over one connection that stays open."""

    def __init__(self, base_url: str, model: str) -> None:
        self._address, self._model = urlsplit(base_url), model

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._address.hostname, self._address.port)

    async def chat(self, prompt: str) -> str:
        body = json.dumps({"model": self._model, "messages": [{"role": "user", "content": prompt}]}).encode()
        head = (
            f"POST {self._address.path}/chat/completions HTTP/1.1\r\nHost: {self._address.netloc}\r\n"
            f"Authorization: Bearer any\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200"), head
        [length] = [line.split(":")[1] for line in head.splitlines() if line.startswith("content-length:")]
        return json.loads(await self._reader.readexactly(int(length)))["choices"][0]["message"]["content"]


async def one_after_the_other(
    url: str, count: int, channel: str, pause_ms: float, work: Callable[[str], Awaitable[str]] | None
) -> dict[str, float]:
    """Milliseconds from the return of each insert to a notification on `channel`."""
    app, ear, worker = [await asyncpg.connect(url) for _ in range(3)]
    wake, told = asyncio.Event(), asyncio.Event()
    await worker.add_listener("minimal_asked", lambda *_: wake.set())
    await ear.add_listener(channel, lambda *_: told.set())
    insert, claim, settle = [await c.prepare(s) for c, s in ((app, INSERT), (worker, CLAIM), (worker, ANSWER))]
    # asyncpg leaves the session within a transaction after it has prepared something: it would be told nothing.
    await settle.fetch(0, "")

    times = []

    async def insert_all() -> None:
        began = now_ms()
        for number in range(count + WARM_UP):
            await asyncio.sleep(max(0, began + number * pause_ms - now_ms()) / 1000)
            told.clear()
            await insert.fetch(PROMPT)
            committed = now_ms()
            await asyncio.wait_for(told.wait(), PATIENCE)
            times.append(now_ms() - committed)

    async def work_on_all() -> None:
        for _ in range(count + WARM_UP):
            await wake.wait()
            wake.clear()
            for job in await claim.fetch():
                if work:
                    await settle.fetch(job["id"], await work(job["payload"]))

    await asyncio.gather(insert_all(), work_on_all())
    return {"p50": percentile(times[WARM_UP:], 0.50), "p99": percentile(times[WARM_UP:], 0.99)}


async def main() -> None:
    url, what, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "install":
        await (await asyncpg.connect(url)).execute(INSTALL)
    elif what == "pickup":
        answer(**await one_after_the_other(url, count, "minimal_claimed", 20, None))
    else:
        provider = Provider(sys.argv[4], sys.argv[5])
        await provider.connect()
        answer(**await one_after_the_other(url, count, "minimal_answered", 0, provider.chat))


if __name__ == "__main__":
    uvloop.run(main())
