"""Provider batches with the real worker and the simulator, as OpenAI, Anthropic and Gemini speak: killed at every step,
with every fault, each generation is answered once, and what the provider bills is what the books say."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import waiting
from batching import SETTINGS
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_are_consistent

QUICK = {**SETTINGS, "provider_batch_gather_ms": 200, "provider_batch_poll_ms": 40, "provider_batch_settle_ms": 400}
DIALECTS = ["openai", "anthropic", "gemini"]
EXECUTED = ("/v1/chat/completions", "/v1/messages", ":generateContent", "/v1/embeddings")


class World:
    """One provider of a dialect at the simulator, whose steps the directives of its header spoil."""

    def __init__(self, database: Database, member: Member, simulator: Simulator, dialect: str, spoil: str = "") -> None:
        self.database, self.member, self.simulator, self.dialect = database, member, simulator, dialect
        self.providers = Providers(database, simulator, **QUICK)
        self.provider = self.providers._ids[dialect]
        if dialect == "gemini":  # /v1/batches is OpenAI's at the simulator
            database.execute(
                "update ai.providers set base_url = %s where id = %s", f"{simulator.base_url}/v1beta", self.provider
            )
        self.spoil(spoil)

    def spoil(self, directives: str) -> None:
        headers = json.dumps({"x-simulate": directives} if directives else {})
        self.database.execute("update ai.providers set headers = %s where id = %s", headers, self.provider)

    def model(self, directives: str = "tokens=5", **columns: Any) -> str:
        rates = '{"input": 3, "output": 15, "service": {"batch": {"input": 1.5, "output": 7.5}}}'
        return self.providers.model(directives, self.dialect, capabilities='{"batch": true}', rates=rates, **columns)

    def ask(self, count: int, model: str, **columns: Any) -> list[uuid.UUID]:
        columns = {"priority": "batch", "params": '{"max_tokens": 50}', **columns}
        rows = self.database.connect(user=self.member).execute(
            f"insert into ai.generations (prompt, model, {', '.join(columns)})"
            f" select 'question ' || gen_random_uuid(), %s, {', '.join(['%s'] * len(columns))}"
            " from generate_series(1, %s) returning id",
            [model, *columns.values(), count],
        )
        return [row["id"] for row in rows]

    def requests(self, ending: str) -> list[dict[str, Any]]:
        return [entry for entry in self.simulator.requests() if entry["endpoint"].endswith(ending)]

    def executed(self) -> list[dict[str, Any]]:
        return [e for e in self.simulator.requests() if e["endpoint"].endswith(EXECUTED) and e["complete"]]

    def agrees(self, count: int) -> None:
        """All was answered, each once, in batches, at the price of batches."""
        books_are_consistent(self.database)
        calls = self.database.execute("select * from ai.llm_calls where status = 'succeeded'")
        assert Counter(call["service_tier"] for call in calls) == {"batch": count}
        bodies = Counter(entry["body_hash"] for entry in self.executed())
        assert len(bodies) == count
        assert set(bodies.values()) == {1}, "each was answered once"
        used = self.database.execute(
            "select sum(input_tokens) as input, sum(output_tokens) as output, sum(cost) as cost from ai.llm_calls"
        )
        billed = [entry["usage"] for entry in self.executed()]
        assert used[0]["input"] == sum(usage["input"] for usage in billed)
        assert used[0]["output"] == sum(usage["output"] for usage in billed)
        assert used[0]["cost"] * 1_000_000 * 2 == used[0]["input"] * 3 + used[0]["output"] * 15


@pytest.fixture
def world(database: Database, member: Member, simulator: Simulator) -> Callable[..., World]:
    return lambda dialect, spoil="": World(database, member, simulator, dialect, spoil)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_hundred_questions_are_answered_in_batches(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect, "batch=ms:300,reverse")
    here.database.execute("update ai.settings set lease_ms = 15000")  # neither takes a slow one for dead
    here.ask(100, here.model())
    worker(here.database)
    worker(here.database)
    all_ended(here.database)
    here.agrees(100)
    batches = here.database.execute("select * from ai.provider_batches")
    assert {batch["ending"] for batch in batches} == {"completed"}
    assert sum(batch["succeeded"] for batch in batches) == 100
    creations = {"openai": "/v1/batches", "anthropic": "/v1/messages/batches", "gemini": ":batchGenerateContent"}
    made = [entry for entry in here.requests(creations[dialect]) if entry["body_bytes"] > 0]
    assert len(made) == len(batches), "each batch is made once, by one of the two workers"


def test_embeddings_go_in_batches_too(world: Callable[..., World], worker: Callable[..., Worker]) -> None:
    here = world("openai")
    model = here.model("dims=8", kind="embedding", dimensions=8)
    here.ask(5, model, kind="embedding", params="{}")
    worker(here.database)
    all_ended(here.database)
    assert here.database.value("select count(*) from ai.generations where vector_dims(embedding::vector) = 8") == 5
    assert here.database.value("select count(*) from ai.llm_calls where service_tier = 'batch'") == 5


STEPS = {
    "openai": ["upload", "create", "poll", "content"],
    "anthropic": ["create", "poll", "results"],
    "gemini": ["create", "poll"],
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_worker_that_is_killed_during_a_step_neither_loses_nor_repeats_anything(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect)
    model = here.model()
    victim = worker(here.database)
    rounds = 0
    for at in STEPS[dialect]:
        for moment in ("", ";late") if at == "create" else (";late",):
            here.spoil(f"at={at};hang;times=1{moment}")
            here.ask(4, model)
            here.simulator.is_asked(1)
            victim.kill()
            victim = worker(here.database)
            all_ended(here.database)
            rounds += 1
    here.agrees(4 * rounds)


FAULTS = {
    "openai": [
        *[f"at=create;{fault}" for fault in ("reset", "reset;late", "status=500", "status=500;late")],
        *[f"at=create;{fault}" for fault in ("status=429;retry_after_ms=10", "html;late", "empty;late")],
        *[f"at=upload;{fault}" for fault in ("reset;late", "status=503")],
        *[f"at=poll;{fault}" for fault in ("status=500", "malformed")],
        *[f"at=content;{fault}" for fault in ("truncate_after=40", "reset_after=30", "status=500")],
    ],
    "anthropic": [
        *[f"at=create;{fault}" for fault in ("reset", "reset;late", "status=529;late", "malformed;late")],
        *["at=poll;html", "at=results;truncate_after=40"],
    ],
    "gemini": [
        *[f"at=create;{fault}" for fault in ("reset;late", "status=503", "malformed;late")],
        *["at=poll;truncate_after=100", "at=poll;status=404"],
    ],
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_whatever_fails_once_is_done_once(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect)
    model = here.model("tokens=30")
    worker(here.database)
    for fault in FAULTS[dialect]:
        here.spoil(f"{fault};times=1")
        here.ask(3, model)
        all_ended(here.database)
    here.agrees(3 * len(FAULTS[dialect]))
    tries = here.database.value(
        "select count(*) from ai.provider_batches where step > (select min(step) from ai.provider_batches)"
    )
    assert tries > 0, "something was tried again"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_batch_that_expires_is_finished_singly(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect, "batch=end:expired,done:2")
    here.ask(5, here.model())
    worker(here.database)
    all_ended(here.database)
    books_are_consistent(here.database)
    calls = here.database.execute(
        "select status, error_class, coalesce(service_tier = 'batch', false) as batched, cost from ai.llm_calls"
    )
    assert Counter((call["status"], call["batched"]) for call in calls) == {
        ("succeeded", True): 2,
        ("failed", True): 3,
        ("succeeded", False): 3,
    }
    assert {(call["error_class"], call["cost"]) for call in calls if call["status"] == "failed"} == {("expired", 0)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_results_that_are_missing_twice_there_or_nobodys(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect, "batch=lose:2,repeat,stray:3,reverse")
    here.ask(6, here.model())
    worker(here.database)
    all_ended(here.database)
    books_are_consistent(here.database)
    batch = here.database.execute("select * from ai.provider_batches")[0]
    # Of twelve lines (each twice) two are left out, so that one member has none and another one only.
    assert batch["succeeded"] + batch["missing"] == 6
    assert batch["missing"] <= 2
    assert batch["strays"] + batch["malformed"] == 3
    unknown = here.database.execute("select * from ai.llm_calls where error_class = 'unknown'")
    assert len(unknown) == batch["missing"]
    assert all(call["estimated"] for call in unknown)
    assert here.database.value("select count(*) from ai.generations where status = 'succeeded'") == 6


@pytest.mark.parametrize("dialect", DIALECTS)
def test_members_that_fail_in_their_batch_follow_the_retry_rules(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect)
    here.ask(2, here.model("status=503;times=1;tokens=3"))
    here.ask(2, here.model("status=400"))
    worker(here.database)
    all_ended(here.database)
    books_are_consistent(here.database)
    ends = here.database.execute(
        "select status, attempts, error ->> 'http_status' as status_code from ai.generations order by attempts desc"
    )
    assert [(row["status"], row["attempts"]) for row in ends] == [("succeeded", 2)] * 2 + [("failed", 1)] * 2
    assert {row["status_code"] for row in ends[2:]} == {"400"}


def test_a_batch_that_the_provider_has_forgotten(world: Callable[..., World], worker: Callable[..., Worker]) -> None:
    here = world("openai", "batch=ms:60000,gone")
    here.ask(3, here.model())
    worker(here.database)
    all_ended(here.database)
    books_are_consistent(here.database)
    assert here.database.value("select (ending, missing) = ('lost', 3) from ai.provider_batches")
    assert here.database.value("select count(*) from ai.llm_calls where error_class = 'unknown' and estimated") == 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_cancelling_reaches_the_provider(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect, "batch=ms:600000,done:1")
    asked = here.ask(3, here.model())
    worker(here.database)
    waiting.until(
        lambda: here.database.value("select count(*) from ai.provider_batches where state = 'running'") == 1,
        "it to run",
    )
    app = here.database.connect(user=here.member)
    for one in asked:
        assert app.execute("select ai.cancel(%s) as said", [one]).fetchone() == {"said": "running"}
    all_ended(here.database)
    books_are_consistent(here.database)
    ends = Counter(row["status"] for row in here.database.execute("select status from ai.generations"))
    assert ends == {"succeeded": 1, "cancelled": 2}
    assert here.database.value("select count(*) from ai.llm_calls") == 1


def test_a_worker_that_is_stopped_leaves_its_batches_to_the_next(
    world: Callable[..., World], worker: Callable[..., Worker]
) -> None:
    here = world("openai", "batch=ms:8000")
    here.ask(3, here.model())
    first = worker(here.database)
    waiting.until(
        lambda: here.database.value("select count(*) from ai.provider_batches where state = 'running'") == 1,
        "it to run",
    )
    assert first.terminate() == 0
    assert here.database.value("select count(*) from ai.generations where status = 'running'") == 3
    worker(here.database)
    all_ended(here.database)
    here.agrees(3)


def test_a_worker_that_works_once_does_what_is_due(world: Callable[..., World], worker: Callable[..., Worker]) -> None:
    here = world("openai")
    here.ask(3, here.model())
    for _ in range(20):
        assert worker(here.database, once=True, ready=False).wait() == 0
        if here.database.value("select count(*) from ai.generations where finished_at is null") == 0:
            break
    here.agrees(3)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_worker_that_works_once_does_what_the_last_step_put_back(
    world: Callable[..., World], worker: Callable[..., Worker], dialect: str
) -> None:
    here = world(dialect, "batch=end:expired,done:2")
    here.ask(5, here.model())
    left = "select (select count(*) from ai.queue) + (select count(*) from ai.delayed)"
    for _ in range(20):
        assert worker(here.database, once=True, ready=False).wait() == 0
        assert here.database.value(left) == 0, "it went with work left"
        if here.database.value("select count(*) from ai.generations where finished_at is null") == 0:
            break
    assert here.database.value("select count(*) from ai.generations where status = 'succeeded'") == 5


def test_long_results_are_read_in_little_memory(world: Callable[..., World], worker: Callable[..., Worker]) -> None:
    here = world("openai")
    here.ask(60, here.model("big=1500000"), params="{}")
    process = worker(here.database)
    all_ended(here.database, 90)
    assert here.database.value("select count(*) from ai.generations where status = 'succeeded'") == 60
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines if ":" in line)
    # 90 MB of results.
    assert int(status["VmHWM"].split()[0]) < 120_000, status["VmHWM"]
