"""A worker without a provider: says to the database what docs/worker-protocol.md allows, one call at a time.

Races are made with these, because a test decides when each of them does what; the real worker is tested beside.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from databases import Database


@dataclass(frozen=True)
class Attempt:
    """The fence: a generation, and the number of the attempt at it."""

    generation_id: uuid.UUID
    attempt: int


class PlainWorker:
    """One registered worker on one connection."""

    def __init__(self, database: Database, name: str = "plain") -> None:
        self.connection = database.connect(user=database.worker)
        self.cursor: str | None = None
        self.wait_ms: int | None = None
        row = self._rows("select * from ai.worker_register(%s, 'test', 4)", name)[0]
        self.id: uuid.UUID = row["worker_id"]
        self.channel: str = row["channel"]

    def _rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return self.connection.execute(query, arguments).fetchall()

    def claim(self, limit: int = 64, look_at_everything: bool = False) -> list[Attempt]:
        """Claims up to `limit`, from where the last claim ended or from the beginning."""
        cursor = None if look_at_everything else self.cursor
        *calls, header = self._rows("select * from ai.worker_claim(%s, %s, %s)", self.id, limit, cursor)
        self.cursor = header["cursor"]
        if cursor is None:
            self.wait_ms = header["wait_ms"]
        return [Attempt(call["generation_id"], call["attempt"]) for call in calls]

    def claim_one(self) -> tuple[list[Attempt], dict[str, Any]]:
        """Claims the next one alone; gives it, and the header."""
        *calls, header = self._rows("select * from ai.worker_claim_one(%s)", self.id)
        return [Attempt(call["generation_id"], call["attempt"]) for call in calls], header

    def settle(self, attempts: list[Attempt], **result: Any) -> dict[Attempt, str]:
        """Reports the same result for each, by default a success; returns what became of them."""
        result = {"outcome": "succeeded", "output": "yes", "sent": True, **result}
        results = [{"id": str(one.generation_id), "attempt": one.attempt, **result} for one in attempts]
        rows = self._rows("select * from ai.worker_settle(%s, %s)", self.id, json.dumps(results))
        return {Attempt(row["generation_id"], row["attempt"]): row["result"] for row in rows}

    def publish(self, attempt: Attempt, text: str) -> list[Attempt]:
        """Publishes text; returns the attempts that are no longer this worker's."""
        deltas = [{"id": str(attempt.generation_id), "attempt": attempt.attempt, "text": text}]
        rows = self._rows("select * from ai.worker_publish(%s, %s)", self.id, json.dumps(deltas))
        return [Attempt(row["generation_id"], row["attempt"]) for row in rows]

    def cancellations(self) -> list[Attempt]:
        rows = self._rows("select * from ai.worker_cancellations(%s)", self.id)
        return [Attempt(row["generation_id"], row["attempt"]) for row in rows]

    def heartbeat(self) -> bool:
        return self._rows("select ai.worker_heartbeat(%s) as alive", self.id)[0]["alive"]

    def maintain(self) -> dict[str, Any]:
        return self._rows("select ai.worker_maintain(%s) as done", self.id)[0]["done"]

    def stop(self) -> int:
        return self._rows("select ai.worker_stop(%s) as held", self.id)[0]["held"]

    def sleep(self) -> None:
        """Takes the handshake lock; waits for inserts in flight, asking again as often as it takes."""
        while not self._rows("select ai.worker_sleep() as held")[0]["held"]:
            pass

    def wake(self) -> None:
        self._rows("select ai.worker_wake()")
