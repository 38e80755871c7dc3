"""A worker of an earlier version, as far as the database can tell: the statements that its binary sends, word for word.

An old binary cannot be built where tests run, and need not be: its only SQL is these, prepared once a connection, with
every column that it reads named. What it does between them, the worker of now does too. A version whose protocol number
is the same must find a schema of now that answers each of them; when the number goes up, this file goes with it.
"""

from __future__ import annotations

import json
import threading
import uuid
from contextlib import closing
from typing import Any

import psycopg
from databases import Database
from psycopg.rows import dict_row

PROTOCOL = 4

REGISTER = "select worker_id, channel, heartbeat_ms, maintain_ms, publish_ms from ai.worker_register(%s, %s, %s)"
CLAIM = """
select generation_id, attempt, kind, dialect, base_url, secret, headers, options, model, stream, request, timeout_ms,
       cursor, wait_ms, retries, secret_ref, tenant_only, public_only, seal
  from ai.worker_claim(%s, %s, %s)
"""
PUBLISH = "select generation_id, attempt from ai.worker_publish(%s, %s)"
SETTLE = "select generation_id, attempt, result from ai.worker_settle(%s, %s)"
CANCELLATIONS = "select generation_id, attempt from ai.worker_cancellations(%s)"
LEASES = "select generation_id, attempt from ai.worker_leases(%s)"
HEARTBEAT = "select ai.worker_heartbeat(%s)"
MAINTAIN = "select ai.worker_maintain(%s)"
SLEEP = "select ai.worker_sleep()"
WAKE = "select ai.worker_wake()"
STOP = "select ai.worker_stop(%s)"
# What it asks beside, once here, so that each of them is answered.
BESIDE = (
    (
        "select ref, tenant_id, name, sealed, value, data_key_id, wrapped, master_key_id from ai.worker_secret(%s, %s)",
        "{1}",
    ),
    ("select data_key_id, tenant_id, wrapped, master_key_id from ai.worker_data_keys(%s, %s)", "{}"),
    ("select call_id, ticket, timeout_ms from ai.worker_tools(%s, %s)", 8),
    ("select ai.worker_tools_done(%s, %s)", "[]"),
    (
        "select job, tenant_id, id, artifact_id, bytes, sha256, object, upload_ms from ai.worker_artifact_jobs(%s, %s)",
        8,
    ),
    (
        "select batch_id, step, action, dialect, base_url, secret, headers, options, model, kind, secret_ref,"
        " tenant_only, public_only, details, timeout_ms, wait_ms from ai.worker_batch_steps(%s, 8, %s)",
        "[]",
    ),
)


class EarlierWorker(threading.Thread):
    """Claims, streams and settles until told to finish. Answers at once, with `answer`.

    `ended` has the fences of what it settled as ended; `fault` what went wrong, which nothing may, but for what is in
    `outdated`: a function that was waiting for a table when an upgrade committed goes on as it was before, and fails if
    it calls what is gone. It has changed nothing then, and is called again, as the binary does after any error.
    """

    answer = "yes, twice"

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.url = database.worker.url
        self.ended: list[tuple[uuid.UUID, int]] = []
        self.stale = 0
        self.fault: BaseException | None = None
        self.outdated: list[str] = []
        self._enough = threading.Event()

    def finish(self) -> None:
        """Stops as after SIGTERM."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive(), "the worker waits for the database for ever"
        if self.fault:
            raise self.fault

    def run(self) -> None:
        try:
            with closing(psycopg.connect(self.url, autocommit=True, row_factory=dict_row)) as connection:
                connection.prepare_threshold = 0
                self._live(connection)
        except BaseException as fault:
            self.fault = fault

    def _live(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        def rows(query: str, *arguments: Any) -> list[dict[str, Any]]:
            try:
                return connection.execute(query, arguments).fetchall()
            except (psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedColumn) as gone:
                self.outdated.append(str(gone))
                assert len(self.outdated) == 1, "one upgrade finds one statement of this connection under way"
                return connection.execute(query, arguments).fetchall()

        me = rows(REGISTER, "earlier", "0.1", PROTOCOL)[0]["worker_id"]
        for query, argument in BESIDE:
            rows(query, me, argument)
        cursor = None
        rounds = 0
        while not self._enough.is_set():
            if rounds % 16 == 0:
                cursor = None
                assert rows(HEARTBEAT, me)[0]["worker_heartbeat"], "it was declared dead"
                rows(MAINTAIN, me)
                assert rows(LEASES, me) == []
                assert rows(CANCELLATIONS, me) == []
            rounds += 1
            *calls, header = rows(CLAIM, me, 16, cursor)
            cursor = header["cursor"]
            if not calls:
                if rows(SLEEP)[0]["worker_sleep"]:
                    self._enough.wait(0.01)
                    rows(WAKE)
                cursor = None
                continue
            self._deltas(rows, me, [call for call in calls if call["stream"]])
            results = [self._result(call) for call in calls]
            for row in rows(SETTLE, me, json.dumps(results)):
                if row["result"] == "ended":
                    self.ended.append((row["generation_id"], row["attempt"]))
                else:
                    self.stale += 1
        rows(STOP, me)

    def _deltas(self, rows: Any, me: uuid.UUID, calls: list[dict[str, Any]]) -> None:
        if calls:
            deltas = [
                {"id": str(call["generation_id"]), "attempt": call["attempt"], "part": 1, "text": "yes, "}
                for call in calls
            ]
            rows(PUBLISH, me, json.dumps(deltas))

    def _result(self, call: dict[str, Any]) -> dict[str, Any]:
        assert call["dialect"] == "openai"
        assert call["request"]["messages"]
        return {
            "id": str(call["generation_id"]),
            "attempt": call["attempt"],
            "outcome": "succeeded",
            "tail": "twice" if call["stream"] else None,
            "output": self.answer,
            "message": {"role": "assistant", "content": self.answer},
            "finish_reason": "stop",
            "usage": {"input": 7, "output": 3},
            "model": call["model"],
            "request_id": f"earlier-{call['generation_id']}",
            "http_status": 200,
            "sent": True,
            "ttft_ms": 1,
            "latency_ms": 2,
        }
