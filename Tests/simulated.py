"""Providers and models that lead to the simulator, and the comparison of its books with the database's."""

from __future__ import annotations

import itertools
import json
import uuid
from collections import Counter
from typing import Any

import waiting
from databases import Database
from processes import Simulator

_numbers = itertools.count(1)

# Quick enough for tests; the relations between them are the defaults'.
QUICK = {
    "heartbeat_ms": 200,
    "lease_ms": 1500,
    "maintain_ms": 200,
    "backoff_base_ms": 20,
    "backoff_cap_ms": 200,
    "max_attempts": 100,
}


class Providers:
    """The simulator as providers of a database, one a dialect. Without circuit breakers, unless they are asked for:
    a test that lets one model fail many times would fence off the others of the same provider."""

    def __init__(self, database: Database, simulator: Simulator, breakers: bool = False, **settings: object) -> None:
        self.database, self.simulator = database, simulator
        if not breakers:
            database.execute("delete from ai.breaker_settings")
        settings = {**QUICK, **settings}
        database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
        self._ids = {
            "openai": database.provider("sim-openai", f"{simulator.base_url}/v1", secret="SIM_API_KEY"),
            "anthropic": database.provider(
                "sim-anthropic",
                simulator.base_url,
                "anthropic",
                secret="SIM_API_KEY",
                options='{"anthropic_version": "2023-06-01"}',
            ),
            "gemini": database.provider("sim-gemini", f"{simulator.base_url}/v1", "gemini", secret="SIM_API_KEY"),
        }
        # Below the paths of docs/simulator.md.
        for dialect in ("ollama", "tgi", "tei", "huggingface"):
            self._ids[dialect] = database.provider(
                f"sim-{dialect}", f"{simulator.base_url}/{dialect}", dialect, secret="SIM_API_KEY"
            )

    def server(self, dialect: str, directives: str, **columns: Any) -> str:
        """A model of a provider of its own, for dialects that send no model's name: directives travel in a header."""
        name = f"served-{next(_numbers)}"
        provider = self.database.provider(
            name,
            f"{self.simulator.base_url}/{dialect}",
            dialect,
            secret="SIM_API_KEY",
            headers=json.dumps({"x-simulate": directives}),
        )
        self.database.model(provider, name, "sim-small", **{"max_output_tokens": 4096, **columns})
        return name

    def model(self, directives: str = "", dialect: str = "openai", **columns: Any) -> str:
        """A new model that behaves as the directives say (docs/simulator.md); returns the name that apps use."""
        name = f"sim/{next(_numbers)}"
        columns.setdefault("max_output_tokens", 4096)
        wire_name = "sim-small" + (f"+{directives}" if directives else "")
        self.database.model(self._ids[dialect], name, wire_name, **columns)
        return name


def unfinished(database: Database) -> int:
    return database.value("select count(*) from ai.generations where finished_at is null")


def all_ended(database: Database, seconds: float = 60) -> None:
    """Waits until every generation has ended."""
    waiting.until(lambda: unfinished(database) == 0, "every generation to end", seconds)


def ended(database: Database, generation_id: uuid.UUID, seconds: float = 30) -> dict[str, Any]:
    """Waits until this generation has ended, and returns its row."""

    def row() -> dict[str, Any] | None:
        rows = database.execute("select * from ai.generations where id = %s and finished_at is not null", generation_id)
        return rows[0] if rows else None

    return waiting.until(row, f"generation {generation_id} to end", seconds)


def calls(database: Database, generation_id: uuid.UUID) -> list[dict[str, Any]]:
    """The books of one generation, by attempt."""
    return database.execute("select * from ai.llm_calls where generation_id = %s order by attempt", generation_id)


def books_are_consistent(database: Database) -> None:
    """Every attempt is on the books, once; the generations' costs are the sums of their calls, to the last digit."""
    assert unfinished(database) == 0
    for table in ("queue", "delayed", "leases"):
        assert database.value(f"select count(*) from ai.{table}") == 0, f"something is left in ai.{table}"
    wrong = database.execute(
        """
        select g.id, g.status, g.purpose, g.attempts, g.cost, count(c.*) as calls, sum(c.cost) as sum,
               count(*) filter (where c.status = 'succeeded') as successes
          from ai.generations g left join ai.llm_calls c on c.tenant_id = g.tenant_id and c.generation_id = g.id
         group by g.tenant_id, g.id
        having count(c.*) <> count(distinct c.attempt)
            or max(c.attempt) > g.attempts
            or g.cost is distinct from sum(c.cost)
            or count(*) filter (where c.status = 'succeeded') <> (g.status = 'succeeded')::int
               -- A batch of texts that another took over, or whose texts are gone, ends without a call.
               and not (g.purpose in ('chunks', 'rows') and g.attempts = 0 and g.status = 'succeeded')
        """
    )
    assert wrong == []


def books_agree_with_the_provider(database: Database, simulator: Simulator) -> None:
    """What the provider answered in full is on the books once, with its tokens; what it was asked at all is there too.

    Needs prompts that all differ, which is how the provider's requests are told apart.
    """
    books_are_consistent(database)
    booked = {
        row["request_id"]: row
        for row in database.execute("select * from ai.llm_calls where status = 'succeeded' and request_id is not null")
    }
    log = simulator.requests()
    answered = {entry["request_id"]: entry for entry in log}
    assert set(booked) <= set(answered), "the books name answers that the provider never gave"
    for request_id, call in booked.items():
        usage = answered[request_id]["usage"]
        assert (call["input_tokens"], call["output_tokens"]) == (usage["input"], usage["output"]), request_id
        assert not call["estimated"]
    # Every request that reached the provider belongs to an attempt of a generation.
    asked = Counter(entry["body_hash"] for entry in log)
    by_generation = {
        row["generation_id"]: row["n"]
        for row in database.execute("select generation_id, count(*) as n from ai.llm_calls group by 1")
    }
    of_body = {answered[request_id]["body_hash"]: call["generation_id"] for request_id, call in booked.items()}
    for body, times in asked.items():
        assert body in of_body, f"the provider was asked {body}, and nobody has the answer"
        assert times <= by_generation[of_body[body]], f"{times} requests, {by_generation[of_body[body]]} on the books"
    assert len(of_body) == len(booked)
