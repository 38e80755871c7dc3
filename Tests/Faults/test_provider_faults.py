"""Whatever a provider does wrong is a clear end or another attempt, and a row on the books."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, books_are_consistent, calls, ended

ALL = ("openai", "anthropic", "gemini", "ollama")
EITHER_WAY = (False, True)


@dataclass
class Fault:
    """What the simulator is told, and what must come of it.

    A call is (status, HTTP status where it failed, class, estimated).
    """

    directives: str
    status: str
    books: list[tuple[str, int | None, str | None, bool]]
    dialects: tuple[str, ...] = ALL
    streams: tuple[bool, ...] = EITHER_WAY
    columns: dict[str, object] = field(default_factory=dict)


OK = ("succeeded", None, None, False)
FAULTS = [
    # Tried again, and then it works.
    Fault("status=500;times=1", "succeeded", [("failed", 500, "transient", True), OK]),
    Fault("status=503;times=2", "succeeded", [("failed", 503, "transient", False)] * 2 + [OK]),
    Fault("status=529;times=1", "succeeded", [("failed", 529, "transient", False), OK]),
    Fault("status=408;times=1", "succeeded", [("failed", 408, "transient", False), OK]),
    Fault("status=429;retry_after=0;times=1", "succeeded", [("failed", 429, "rate", False), OK]),
    Fault("status=429;retry_after_ms=300;times=1", "succeeded", [("failed", 429, "rate", False), OK]),
    Fault("status=502;html;times=1", "succeeded", [("failed", 502, "transient", False), OK]),
    Fault("status=503;malformed;times=1", "succeeded", [("failed", 503, "transient", False), OK]),
    Fault("status=503;empty;times=1", "succeeded", [("failed", 503, "transient", False), OK]),
    Fault("reset;times=1", "succeeded", [("failed", None, "unknown", True), OK]),
    Fault("empty;times=1", "succeeded", [("failed", 200, "malformed", True), OK]),
    Fault(
        "embedded_error=0;times=1",
        "succeeded",
        [("failed", 200, "transient", True), OK],
        ("openai", "anthropic", "ollama"),
    ),
    # An error that names its status in the place of an answer is one with that status.
    Fault("embedded_error=0;times=1", "succeeded", [("failed", 503, "transient", False), OK], ("gemini",)),
    Fault("embedded_error=0;code=429;times=1", "succeeded", [("failed", 429, "rate", False), OK], ("openai",)),
    Fault("embedded_error=0;code=401", "failed", [("failed", 401, "credentials", False)], ("openai",)),
    Fault("status=400;should_retry=true;times=1", "succeeded", [("failed", 400, "permanent", False), OK]),
    # A whole answer that breaks off has been seen by nobody.
    Fault("reset_after=3;times=1", "succeeded", [("failed", 200, "unknown", True), OK], streams=(False,)),
    Fault("truncate_after=3;times=1", "succeeded", [("failed", 200, "unknown", True), OK], streams=(False,)),
    # Not tried again.
    Fault("status=400", "failed", [("failed", 400, "permanent", False)]),
    Fault("status=401", "failed", [("failed", 401, "credentials", False)]),
    Fault("status=403", "failed", [("failed", 403, "credentials", False)]),
    Fault("status=404", "failed", [("failed", 404, "permanent", False)]),
    Fault("status=413", "failed", [("failed", 413, "context", False)]),
    Fault("status=402", "failed", [("failed", 402, "money_out", False)]),
    Fault("status=429;retry_after=none", "failed", [("failed", 429, "money_out", False)], ("anthropic",)),
    Fault("status=429;code=insufficient_quota", "failed", [("failed", 429, "money_out", False)], ("openai",)),
    Fault("status=429;code=RequestsPerDay", "failed", [("failed", 429, "money_out", False)], ("gemini",)),
    Fault("status=400;code=API_KEY_INVALID", "failed", [("failed", 400, "credentials", False)], ("gemini",)),
    Fault("finish=blocked_prompt", "failed", [("failed", 200, "permanent", False)], ("gemini",)),
    Fault("finish=MISSING_THOUGHT_SIGNATURE;answer=", "failed", [("failed", 200, "permanent", False)], ("gemini",)),
    Fault("status=503;should_retry=false", "failed", [("failed", 503, "transient", False)]),
    Fault("status=429;retry_after=3600", "failed", [("failed", 429, "rate", False)]),
    Fault("html", "failed", [("failed", 200, "malformed", True)]),
    Fault("malformed", "failed", [("failed", 200, "malformed", True)], streams=(False,)),
    # Text was shown: a second answer would contradict it.
    Fault("reset_after=3", "failed", [("failed", 200, "partial", True)], streams=(True,)),
    Fault("truncate_after=3", "failed", [("failed", 200, "partial", True)], streams=(True,)),
    Fault("end_after=3", "failed", [("failed", 200, "partial", True)], streams=(True,)),
    Fault("embedded_error=3", "failed", [("failed", 200, "partial", True)], streams=(True,)),
    # Slow, but right.
    Fault("drip=1;tokens=20", "succeeded", [OK]),
]


@pytest.mark.parametrize("stream", EITHER_WAY, ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", ALL)
def test_a_fault_has_a_clear_end_and_is_on_the_books(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dialect: str,
    stream: bool,
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    asked = []
    for fault in FAULTS:
        if dialect in fault.dialects and stream in fault.streams:
            model = providers.model(fault.directives, dialect)
            row = app.execute(
                "insert into ai.generations (prompt, model, stream) values (%s, %s, %s) returning id",
                [f"What is {fault.directives}?", model, stream],
            ).fetchone()
            asked.append((fault, row["id"]))
    wrong = []
    for fault, generation_id in asked:
        row = ended(database, generation_id)
        books = [
            (
                call["status"],
                call["http_status"] if call["status"] == "failed" else None,
                call["error_class"],
                call["estimated"],
            )
            for call in calls(database, generation_id)
        ]
        if (row["status"], books) != (fault.status, fault.books):
            wrong.append(f"{fault.directives}: {row['status']}, {books}; expected {fault.status}, {fault.books}")
        if row["status"] == "failed" and not (row["error"] or {}).get("message"):
            wrong.append(f"{fault.directives}: the error says nothing: {row['error']}")
        if row["attempts"] != len(books):
            wrong.append(f"{fault.directives}: {row['attempts']} attempts, {len(books)} calls")
    assert not wrong, "\n".join(wrong)
    books_are_consistent(database)
    # Each request that the provider saw was an attempt, and each attempt a request.
    assert len(simulator.requests()) == database.value("select count(*) from ai.llm_calls")


@pytest.mark.parametrize("dialect", ALL)
def test_what_had_arrived_before_a_stream_broke_is_kept_and_paid_for_as_an_estimate(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    model = providers.model("answer=one+two+three+four+five;truncate_after=3", dialect)
    app = database.connect(user=member)
    generation_id = app.execute(
        "insert into ai.generations (prompt, model, stream) values ('Count!', %s, true) returning id", [model]
    ).fetchone()["id"]
    row = ended(database, generation_id)
    assert row["status"] == "failed"
    assert row["output"] == "one two three"
    shown = app.execute("select data ->> 'text' as text from ai.read_stream(%s) where type = 'delta'", [generation_id])
    assert "".join(part["text"] for part in shown) == "one two three"
    (call,) = calls(database, generation_id)
    assert call["estimated"]
    assert call["output_tokens"] > 0
    assert call["cost"] > 0


@pytest.mark.parametrize("stream", EITHER_WAY, ids=["whole", "streamed"])
@pytest.mark.parametrize("directives", ["hang", "hang_after=2", "drip=200"])
def test_a_provider_that_never_finishes_is_given_up_at_the_deadline(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    directives: str,
    stream: bool,
) -> None:
    providers = Providers(database, simulator)
    process = worker(database)
    app = database.connect(user=member)
    generation_id = app.execute(
        "insert into ai.generations (prompt, model, stream, deadline_ms) values ('Well?', %s, %s, 5000) returning id",
        [providers.model(directives), stream],
    ).fetchone()["id"]
    row = ended(database, generation_id)
    assert row["status"] == "failed"
    assert (row["error"]["class"], row["error"]["code"], row["error"]["signal"]) == ("deadline", "PT504", "timeout")
    assert row["latency_ms"] >= 5000
    (call,) = calls(database, generation_id)
    assert (call["status"], call["estimated"]) == ("failed", True)
    assert process.running
    books_are_consistent(database)


def test_a_provider_that_hangs_does_not_hold_up_the_others(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database, concurrency=64)
    hanging, quick = providers.model("hang"), providers.model()
    app = database.connect(user=member)
    app.execute(
        "insert into ai.generations (prompt, model, deadline_ms)"
        " select 'x' || n, %s, 600000 from generate_series(1, 20) n",
        [hanging],
    )
    ids = [
        row["id"]
        for row in app.execute(
            "insert into ai.generations (prompt, model) select 'y' || n, %s from generate_series(1, 50) n returning id",
            [quick],
        )
    ]
    for generation_id in ids:
        assert ended(database, generation_id)["status"] == "succeeded"
    assert database.value("select count(*) from ai.generations where status = 'running'") == 20


def test_a_provider_that_is_not_there_is_tried_until_the_attempts_are_used_up_and_costs_nothing(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    Providers(database, simulator, max_attempts=4)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
        nowhere = database.provider("nowhere", f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        database.model(nowhere, "nowhere/model")
        worker(database)
        app = database.connect(user=member)
        generation_id = app.execute(
            "select ai.generate(prompt => 'Hello?', model => 'nowhere/model') as id"
        ).fetchone()["id"]
        row = ended(database, generation_id)
    assert row["status"] == "failed"
    assert row["error"]["class"] == "unreachable"
    books = calls(database, generation_id)
    assert [(call["error_class"], call["cost"]) for call in books] == [("unreachable", Decimal(0))] * 4


def test_a_retry_waits_as_long_as_the_provider_asks(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    generation_id = app.execute(
        "select ai.generate(prompt => 'x', model => %s) as id", [providers.model("status=429;retry_after=2;times=1")]
    ).fetchone()["id"]
    assert ended(database, generation_id)["status"] == "succeeded"
    first, second = simulator.requests()
    assert second["time_ms"] - first["time_ms"] >= 2000


def test_the_next_model_of_a_route_answers_when_the_first_refuses(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    for position, directives in enumerate(["status=400", "malformed", "answer=the+third"], 1):
        database.execute(
            "insert into ai.routes (profile, position, model_id) select 'chain', %s, id from ai.models where name = %s",
            position,
            providers.model(directives),
        )
    worker(database)
    app = database.connect(user=member)
    generation_id = app.execute("select ai.generate(prompt => 'x', profile => 'chain') as id").fetchone()["id"]
    row = ended(database, generation_id)
    assert (row["status"], row["output"], row["attempts"]) == ("succeeded", "the third", 3)
    assert [call["status"] for call in calls(database, generation_id)] == ["failed", "failed", "succeeded"]
    books_are_consistent(database)


@pytest.mark.parametrize("dialect", [dialect for dialect in ALL if dialect != "ollama"])  # which has no classes
@pytest.mark.parametrize("stream", EITHER_WAY, ids=["whole", "streamed"])
def test_tokens_of_every_class_cost_what_a_hand_calculation_says(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dialect: str,
    stream: bool,
) -> None:
    providers = Providers(database, simulator)
    rates = {
        "input": 2.5,
        "cache_read": 0.31,
        "cache_write": 3.13,
        "cache_write_1h": 5.01,
        "output": 10.07,
        "reasoning": 11.9,
    }
    # On Anthropic's wire the classes of input are beside each other, on others the cached ones are inside. Gemini's has
    # no tokens written to a cache.
    usage = "input:1009,cached:401,write:203,output:307,reasoning:101"
    model = providers.model(f"usage={usage}", dialect, rates=json.dumps(rates))
    worker(database)
    app = database.connect(user=member)
    generation_id = app.execute(
        "insert into ai.generations (prompt, model, stream) values ('x', %s, %s) returning id", [model, stream]
    ).fetchone()["id"]
    row = ended(database, generation_id)
    assert row["status"] == "succeeded", row["error"]
    (call,) = calls(database, generation_id)
    written = 0 if dialect == "gemini" else 203
    inputs = 1009 + 401 + written if dialect == "anthropic" else 1009
    uncached = inputs - 401 - written
    assert (call["input_tokens"], call["cached_tokens"], call["cache_write_tokens"]) == (inputs, 401, written)
    assert (call["output_tokens"], call["reasoning_tokens"]) == (307, 101)
    price = {name: Decimal(str(rate)) / 1_000_000 for name, rate in rates.items()}
    expected = (
        uncached * price["input"]
        + 401 * price["cache_read"]
        + written * price["cache_write"]
        + (307 - 101) * price["output"]
        + 101 * price["reasoning"]
    )
    assert call["cost"] == expected
    assert row["cost"] == expected
    assert app.execute("select sum(cost) as cost from ai.usage_report()").fetchone()["cost"] == expected
