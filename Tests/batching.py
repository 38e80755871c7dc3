"""A provider with a batch interface that is only a data structure, and a worker that does the steps of provider
batches by talking to it: every moment at which a worker may die is a call of `moment`."""

from __future__ import annotations

import itertools
import json
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from databases import Database
from protocol import PlainWorker

SETTINGS = {
    "provider_batch_gather_ms": 0,
    "provider_batch_poll_ms": 10,
    "provider_batch_settle_ms": 10,
    "backoff_base_ms": 1,
    "backoff_cap_ms": 2,
    "max_attempts": 20,
}


class StaleError(Exception):
    """The step is not this worker's any more."""


class DiedError(Exception):
    """The worker is dead."""


@dataclass
class Job:
    """A batch at the provider."""

    name: str | None
    members: list[str]
    created: float
    results: list[dict[str, Any]] | None = None


@dataclass
class Provider:
    """Keeps names of batches, as OpenAI and Gemini do, or none, as Anthropic. It bills what it answers."""

    names: bool
    files: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    billed: Counter[str] = field(default_factory=Counter)
    # What becomes of a member, by its name; by default it is answered.
    fates: Callable[[str], dict[str, Any] | None] = lambda member: {}
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def upload(self, name: str, members: list[str]) -> str:
        file_id = f"file-{next(self._numbers)}"
        self.files[file_id] = (name, members)
        return file_id

    def create(self, name: str, members: list[str], now: float) -> str:
        job_id = f"batch-{next(self._numbers)}"
        self.jobs[job_id] = Job(name if self.names else None, members, now)
        return job_id

    def finish(self, job: Job) -> None:
        """Answers every member, in reverse order."""
        if job.results is not None:
            return
        job.results = []
        for member in reversed(job.members):
            fate = self.fates(member)
            if fate is None:
                continue
            generation, _, attempt = member.partition("_")
            result = {
                "id": generation,
                "attempt": int(attempt),
                "outcome": "succeeded",
                "output": "yes",
                "sent": True,
                "usage": {"input": 10, "output": 5},
                **fate,
            }
            if result["outcome"] == "succeeded":
                self.billed[member] += 1
            job.results.append(result)


class BatchWorker(PlainWorker):
    """Claims, and does the steps of provider batches."""

    def __init__(self, database: Database, provider: Provider, moment: Callable[[str], None]) -> None:
        super().__init__(database)
        self.provider, self.moment = provider, moment

    def steps(self, limit: int = 4) -> list[dict[str, Any]]:
        *steps, self.header = self._rows("select * from ai.worker_batch_steps(%s, %s)", self.id, limit)
        return steps

    def members(self, step: dict[str, Any]) -> list[str]:
        members: list[str] = []
        after = None
        while rows := self._rows(
            "select * from ai.worker_batch_requests(%s, %s, %s, %s, 3)", self.id, step["batch_id"], step["step"], after
        ):
            members += [f"{row['generation_id']}_{row['attempt']}" for row in rows]
            after = rows[-1]["generation_id"]
        return members

    def tell(self, step: dict[str, Any], results: list[dict[str, Any]]) -> str:
        row = self._rows(
            "select ai.worker_batch_results(%s, %s, %s, %s) as said",
            self.id,
            step["batch_id"],
            step["step"],
            json.dumps(results),
        )[0]
        return row["said"]

    def report(self, step: dict[str, Any], **report: Any) -> str:
        row = self._rows(
            "select ai.worker_batch_report(%s, %s, %s, %s) as said",
            self.id,
            step["batch_id"],
            step["step"],
            json.dumps({"outcome": "done", **report}),
        )[0]
        return row["said"]

    def do(self, step: dict[str, Any]) -> None:
        """Does one step, with a moment to die before the provider is asked, after it, and after each portion."""
        action, details, name = step["action"], step["details"], str(step["batch_id"])
        self.moment(f"before {action}")
        try:
            report = getattr(self, action)(step, details, name)
        except StaleError:
            return
        self.moment(f"after {action}")
        assert self.report(step, **report) == "taken"
        self.moment(f"after the report of {action}")

    def upload(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        return {"file_id": self.provider.upload(name, self.members(step))}

    def find_file(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        return {"file_id": next((one for one, (known, _) in self.provider.files.items() if known == name), None)}

    def create(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        members = self.provider.files[details["file_id"]][1] if details["file_id"] else self.members(step)
        return {"external_id": self.provider.create(name, members, details["since"])}

    def find(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        found = [
            {"id": one, "name": job.name, "requests": len(job.members), "created": job.created}
            for one, job in self.provider.jobs.items()
        ]
        return {"found": found, "complete": True}

    def poll(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        self.provider.finish(self.provider.jobs[details["external_id"]])
        return {"status": "ended", "ending": "completed", "word": "completed", "has_results": True}

    def cancel(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        return {}

    def collect(self, step: dict[str, Any], details: dict[str, Any], name: str) -> dict[str, Any]:
        results = self.provider.jobs[details["external_id"]].results or []
        for at in range(0, len(results), 2):
            if self.tell(step, results[at : at + 2]) != "taken":
                raise StaleError
            self.moment("between two portions")
        return {}


def batch_model(database: Database, dialect: str, name: str = "batch/model") -> str:
    """A model of a provider of this dialect that has a batch interface, at half the price; returns its name."""
    provider = database.provider(f"batch-{dialect}-{uuid.uuid4().hex[:8]}", "http://127.0.0.1:1/v1", dialect)
    database.model(
        provider,
        name,
        capabilities='{"batch": true}',
        max_output_tokens=100,
        rates='{"input": 3, "output": 15, "service": {"batch": {"input": 1.5, "output": 7.5}}}',
    )
    return name


def quick(database: Database, **settings: object) -> None:
    settings = {**SETTINGS, **settings}
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
