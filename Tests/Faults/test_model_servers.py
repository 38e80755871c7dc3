"""Ollama, Text Generation Inference, Text Embeddings Inference and Hugging Face, from a row to a row."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, books_are_consistent, calls, ended


def insert(app, kind: str, model: str, prompt: str, params: dict | None = None, stream: bool = False):
    return app.execute(
        "insert into ai.generations (kind, prompt, model, params, stream) values (%s, %s, %s, %s, %s) returning id",
        [kind, prompt, model, json.dumps(params or {}), stream],
    ).fetchone()["id"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", ["ollama", "tgi", "huggingface"])
def test_completions_are_answered_counted_and_paid(
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
    if dialect == "tgi":
        model = providers.server(dialect, "answer=or+not+to+be", kind="completion")
    else:
        model = providers.model("answer=or+not+to+be", dialect, kind="completion")
    generation = insert(app, "completion", model, "To be", {"max_tokens": 9, "logit_bias": {"1": 2}}, stream)
    row = ended(database, generation)
    assert (row["status"], row["output"], row["finish_reason"]) == ("succeeded", "or not to be", "stop")
    assert row["dropped_params"] == ["logit_bias"]
    assert row["output_message"]["content"] == "or not to be"
    (call,) = calls(database, generation)
    # Of the router's whole answers nobody counts the input.
    assert call["estimated"] == (dialect == "huggingface" and not stream)
    assert call["cost"] > 0
    if stream:
        shown = app.execute("select data ->> 'text' as t from ai.read_stream(%s) where type = 'delta'", [generation])
        assert "".join(part["t"] for part in shown) == "or not to be"
    short = ended(database, insert(app, "completion", model, "To be too", {"max_tokens": 2}, stream))
    assert (short["output"], short["finish_reason"]) == ("or not", "length")
    books_are_consistent(database)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("dialect", ["ollama", "tgi", "huggingface"])
def test_chats_call_tools_and_are_answered(
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
    model = providers.model('tool=find,other;args={"n":[1]}', dialect)
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find", "other")]
    row = ended(database, insert(app, "chat", model, "Where?", {"tools": tools}, stream))
    assert (row["status"], row["finish_reason"]) == ("succeeded", "tool_calls")
    made = row["output_message"]["tool_calls"]
    assert [call["function"] for call in made] == [
        {"name": "find", "arguments": '{"n":[1]}'},
        {"name": "other", "arguments": '{"n":[1]}'},
    ]
    # What the tools said goes back with what the model had asked for.
    follow_up = [
        {"role": "user", "content": "Where?"},
        row["output_message"],
        *({"role": "tool", "tool_call_id": call["id"], "content": "north"} for call in made),
    ]
    generation = app.execute(
        "insert into ai.generations (messages, model, params, stream) values (%s, %s, %s, %s) returning id",
        [json.dumps(follow_up), model, json.dumps({"tools": tools}), stream],
    ).fetchone()["id"]
    row = ended(database, generation)
    assert (row["status"], row["finish_reason"]) == ("succeeded", "stop")
    assert row["output"]
    (call,) = calls(database, generation)
    assert not call["estimated"]
    books_are_consistent(database)


@pytest.mark.parametrize("dialect", ["ollama", "tei", "huggingface"])
def test_texts_are_embedded_by_every_server(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    columns = {"kind": "embedding", "dimensions": 8}
    if dialect == "tei":
        model = providers.server(dialect, "dims=8", **columns)
    else:
        model = providers.model("dims=8", dialect, **columns)
    generation = insert(app, "embedding", model, "a bird")
    row = ended(database, generation)
    assert row["status"] == "succeeded"
    assert database.value("select vector_dims(embedding) from ai.generations where id = %s", generation) == 8
    (call,) = calls(database, generation)
    assert not call["estimated"]
    assert call["input_tokens"] == simulator.requests()[0]["usage"]["input"]
    if dialect == "huggingface":
        tokens = providers.model("dims=8;tag=tokens", dialect, **columns)
        assert ended(database, insert(app, "embedding", tokens, "a bird"))["status"] == "succeeded"
        near = database.value(
            "select min(e.embedding <=> f.embedding) from ai.generations e, ai.generations f where e.id <> f.id"
        )
        assert near < 0.001


@pytest.mark.parametrize("dialect", ["tei", "huggingface"])
def test_reranks_and_classifications_give_their_lists(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], dialect: str
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)

    def model(kind: str) -> str:
        if dialect == "tei":
            return providers.server(dialect, "", kind=kind)
        return providers.model("tag=classifier" if kind == "classification" else "", dialect, kind=kind)

    documents = ["a stone", "a swift bird", "a bird"]
    row = ended(database, insert(app, "rerank", model("rerank"), "a swift bird", {"documents": documents, "top_n": 2}))
    assert row["status"] == "succeeded"
    assert [rank["index"] for rank in row["output_message"]] == [1, 2]
    row = ended(database, insert(app, "classification", model("classification"), "What a day"))
    assert row["status"] == "succeeded"
    assert {entry["label"] for entry in row["output_message"]} == {"POSITIVE", "NEGATIVE"}
    assert row["output"] == row["output_message"][0]["label"]
    labelled = insert(app, "classification", model("classification"), "a swift bird", {"labels": ["a bird", "the sea"]})
    row = ended(database, labelled)
    if dialect == "tei":
        assert (row["status"], row["error"]["class"]) == ("failed", "unsendable")
    else:
        assert (row["status"], row["output"]) == ("succeeded", "a bird")
    books_are_consistent(database)


# (directives, status, [(status, HTTP status, class, estimated)])
FAULTS = [
    ("status=424;times=1", "succeeded", [("failed", 424, "transient", True), ("succeeded", None, None, False)]),
    ("status=429;times=1", "succeeded", [("failed", 429, "rate", False), ("succeeded", None, None, False)]),
    (
        "status=503;retry_after=0;times=1",
        "succeeded",
        [("failed", 503, "transient", False), ("succeeded", None, None, False)],
    ),
    ("status=422", "failed", [("failed", 422, "permanent", False)]),
    ("status=413", "failed", [("failed", 413, "context", False)]),
    ("status=401", "failed", [("failed", 401, "credentials", False)]),
    ("status=402", "failed", [("failed", 402, "money_out", False)]),
    # Half of a body, but its head says what it cost.
    ("malformed", "failed", [("failed", 200, "malformed", False)]),
    ("html", "failed", [("failed", 200, "malformed", True)]),
    ("embedded_error=0;times=1", "succeeded", [("failed", 200, "transient", True), ("succeeded", None, None, False)]),
]


@pytest.mark.parametrize(
    ("dialect", "kind"), [("tgi", "completion"), ("tei", "rerank"), ("tei", "embedding"), ("huggingface", "embedding")]
)
def test_a_fault_of_a_server_has_a_clear_end(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dialect: str,
    kind: str,
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    params = {"documents": ["a", "b"]} if kind == "rerank" else {}
    asked = [
        (
            fault,
            insert(app, kind, providers.server(dialect, fault[0] + ";dims=4", kind=kind), f"Is it {fault[0]}?", params),
        )
        if dialect != "huggingface"
        else (fault, insert(app, kind, providers.model(fault[0] + ";dims=4", dialect, kind=kind), f"Is it {fault[0]}?"))
        for fault in FAULTS
    ]
    wrong = []
    for (directives, status, books), generation in asked:
        row = ended(database, generation)
        got = [
            (c["status"], c["http_status"] if c["status"] == "failed" else None, c["error_class"], c["estimated"])
            for c in calls(database, generation)
        ]
        if (row["status"], got) != (status, books):
            wrong.append(f"{directives}: {row['status']}, {got}; expected {status}, {books}")
    assert not wrong, "\n".join(wrong)
    books_are_consistent(database)
    assert len(simulator.requests()) == database.value("select count(*) from ai.llm_calls")


def test_a_cold_model_is_asked_again_when_it_says_it_is_loaded(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    app = database.connect(user=member)
    model = providers.model("status=503;retry_after=2;times=1;dims=4", "huggingface", kind="embedding")
    generation = insert(app, "embedding", model, "a bird")
    assert ended(database, generation)["status"] == "succeeded"
    first, second = simulator.requests()
    assert second["time_ms"] - first["time_ms"] >= 2000
