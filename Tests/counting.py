"""What a generation costs, in numbers that are the same on every machine: bytes, buffers, statements."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
from databases import Database, Member
from protocol import Attempt, PlainWorker

PAGE = Path(__file__).resolve().parent.parent / "docs/counts.md"
ANSWER = "They sleep on the wing, say the heralds, for a martlet has no feet to land on. Ask the painter, not the bird."
# What a provider says beside its answer.
FACTS: dict[str, Any] = {
    "output": ANSWER,
    "message": {"role": "assistant", "content": ANSWER},
    "finish_reason": "stop",
    "usage": {"input": 52, "output": 26},
    "model": "counted-2026-11-01",
    "http_status": 200,
    "request_id": "chatcmpl-0123456789abcdef01234567",
    "ttft_ms": 1.5,
    "latency_ms": 2.5,
}


def bound(count: str) -> float:
    """The bound of a count: the last column of the row of docs/counts.md that begins with the count's name."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == count:
            return float(re.sub(r"[^0-9.]", "", cells[-1]))
    raise AssertionError(f"{PAGE.name} has no row {count!r}")


def buffers(connection: psycopg.Connection[Any], query: str, *arguments: Any) -> int:
    """Pages that a statement looks at, which is carried out."""
    explain = f"explain (analyze, buffers, timing off, format json) {query}"
    row = connection.execute(explain, arguments).fetchone()
    assert row is not None
    plan = row["QUERY PLAN"][0]["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


class Load:
    """One member who asks and one worker who answers, in batches, on a database in which nothing else goes on."""

    def __init__(self, database: Database, dice: random.Random | None = None) -> None:
        self.database = database
        self.dice = dice or random.Random(1)
        self.member: Member = database.member()
        provider = database.provider("counted", "http://127.0.0.1:9/v1")
        self.model_id = database.model(provider, "counted/model")
        self.app = database.connect(user=self.member)
        self.worker = PlainWorker(database)

    def insert(self, count: int, length: int | None = None) -> None:
        """One statement of so many questions, of `length` characters or of 100 to 300."""
        prompts = [
            "Why? " + self.dice.randbytes(300).hex()[: (length or self.dice.randint(100, 300)) - 5]
            for _ in range(count)
        ]
        self.app.execute(
            "insert into ai.generations (prompt, model) select p, 'counted/model' from unnest(%s::text[]) p", [prompts]
        )

    def claim(self, count: int) -> list[Attempt]:
        """Claims so many, all that there are."""
        claimed = self.worker.claim(count)
        assert len(claimed) == count, f"{len(claimed)} of {count} were claimed"
        return claimed

    def settle(self, claimed: list[Attempt]) -> None:
        """Answers all of them."""
        assert set(self.worker.settle(claimed, **FACTS).values()) == {"ended"}

    def round(self, count: int) -> None:
        """So many questions, asked, claimed and answered at once."""
        self.insert(count)
        self.settle(self.claim(count))

    def logged(self, action: Callable[[], Any]) -> int:
        """Bytes that an action adds to the write-ahead log."""
        before = self.database.value("select pg_current_wal_insert_lsn()::text")
        action()
        return int(self.database.value("select pg_current_wal_insert_lsn() - %s::pg_lsn", before))

    def stored(self) -> int:
        """Bytes of all tables of the schema, with their indexes."""
        return int(
            self.database.value(
                "select sum(pg_total_relation_size(oid)) from pg_class"
                " where relnamespace = 'ai'::regnamespace and relkind = 'r'"
            )
        )

    def vacuum(self) -> None:
        """What autovacuum would do, were it on."""
        for table in ("generations", "llm_calls", "queue", "leases"):
            self.database.execute(f"vacuum ai.{table}")

    def buffers_of_claim(self, count: int, cursor: str | None) -> int:
        """Pages that a claim looks at; what it claims stays claimed."""
        return buffers(
            self.worker.connection, "select * from ai.worker_claim(%s, %s, %s)", self.worker.id, count, cursor
        )

    def buffers_of_settle(self, claimed: Iterable[Attempt]) -> int:
        """Pages that a settle looks at."""
        results = [
            {"id": str(one.generation_id), "attempt": one.attempt, "outcome": "succeeded", "sent": True, **FACTS}
            for one in claimed
        ]
        return buffers(
            self.worker.connection, "select * from ai.worker_settle(%s, %s)", self.worker.id, json.dumps(results)
        )

    def leased(self) -> list[Attempt]:
        """All that the worker holds."""
        rows = self.worker.connection.execute("select * from ai.worker_leases(%s)", [self.worker.id]).fetchall()
        return [Attempt(row["generation_id"], row["attempt"]) for row in rows]


def ask_for_many(load: Load, tenants: int, each: int) -> list[uuid.UUID]:
    """So many new tenants with so many queued generations each, in one statement."""
    rows = load.database.execute(
        "insert into ai.tenants (name) select 'crowd ' || gen_random_uuid() from generate_series(1, %s) returning id",
        tenants,
    )
    ids = [row["id"] for row in rows]
    load.database.execute("insert into ai.members (tenant_id, user_id) select t, 'one' from unnest(%s::uuid[]) t", ids)
    load.database.execute(
        "insert into ai.generations (tenant_id, user_id, prompt, model)"
        " select t, 'one', 'Why?', 'counted/model' from generate_series(1, %s), unnest(%s::uuid[]) t",
        each,
        ids,
    )
    return ids


def have_ended(load: Load, tenant: uuid.UUID, count: int) -> None:
    """So many generations that ended before, as a restore would bring them."""
    load.database.execute(
        "insert into ai.generations (tenant_id, user_id, prompt, model, status, output, attempts, finished_at)"
        " select %s, 'one', 'Why?', 'counted/model', 'succeeded', 'So.', 1, now() from generate_series(1, %s)",
        tenant,
        count,
    )
    load.database.execute(
        "insert into ai.llm_calls"
        " (tenant_id, generation_id, attempt, created_at, user_id, provider, model, kind, status)"
        " select g.tenant_id, g.id, 1, now(), 'one', 'counted', 'counted/model', 'chat', 'succeeded'"
        "   from ai.generations g where g.tenant_id = %s and g.status = 'succeeded'",
        tenant,
    )
