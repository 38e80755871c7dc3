"""Hosts that speak like OpenAI, each with its deviations: a row makes one a provider with all of the dialect."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider, books_are_consistent, calls, ended

# Where each host's API is below the simulator, and the options with which it is a provider.
HOSTS = {
    "openai": ("/v1", {}),
    "azure": ("/azure/openai", {"api_version": "2026-10-01"}),
    "deepseek": ("/deepseek", {}),
    "groq": ("/groq/openai/v1", {}),
    "mistral": ("/mistral/v1", {}),
    "openrouter": ("/openrouter/api/v1", {}),
    "together": ("/together/v1", {}),
    "vllm": ("/vllm/v1", {}),
}


class Hosts(Providers):
    """The simulator as every host, a provider each."""

    def __init__(self, database: Database, simulator: Simulator) -> None:
        super().__init__(database, simulator)
        for host, (path, options) in HOSTS.items():
            self._ids[host] = database.provider(
                f"host-{host}",
                simulator.base_url + path,
                secret=None if host == "vllm" else "SIM_API_KEY",
                options=json.dumps({"variant": host, **options}),
            )


@pytest.fixture
def hosts(database: Database, simulator: Simulator, worker: Callable[..., Worker]) -> Hosts:
    found = Hosts(database, simulator)
    worker(database, concurrency=64)
    return found


def ask(member: Member, database: Database, model: str | None, prompt: str | None, **columns: Any) -> uuid.UUID:
    """Asks as the member; `params` is an object."""
    if "params" in columns:
        columns["params"] = json.dumps(columns["params"])
    columns = {"tenant_id": member.tenant_id, "user_id": member.user_id, "model": model, "prompt": prompt, **columns}
    places = ", ".join(["%s"] * len(columns))
    return database.value(
        f"insert into ai.generations ({', '.join(columns)}) values ({places}) returning id", *columns.values()
    )


def deltas(database: Database, generation: uuid.UUID) -> str:
    """What subscribers were shown."""
    return database.value(
        "select string_agg(data, '' order by seq) from ai.stream_events where generation_id = %s and type = 'delta'",
        generation,
    )


def test_every_host_answers_whole_and_streamed_with_exact_usage(
    hosts: Hosts, database: Database, member: Member
) -> None:
    usage = "usage=input:1000,cached:200,output:70,reasoning:30"
    asked = {
        (host, stream): ask(
            member,
            database,
            hosts.model(f"answer=Z%C3%BCrich+never+lands;{usage}", host),
            f"{host} {stream}",
            stream=stream,
        )
        for host in HOSTS
        for stream in (False, True)
    }
    all_ended(database)
    for (host, stream), generation in asked.items():
        row = ended(database, generation)
        assert (row["status"], row["output"], row["finish_reason"]) == ("succeeded", "Zürich never lands", "stop"), (
            host,
            stream,
            row["error"],
        )
        assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (1000, 200, 70), (host, stream)
        (call,) = calls(database, generation)
        assert not call["estimated"]
        # Hosts that say how many of the tokens were reasoning, and those that do not.
        assert call["reasoning_tokens"] == (0 if host in ("together", "mistral", "vllm") else 30), host
        assert call["cost"] == Decimal("0.003510")  # 800 at 3, 200 at 0.3, 70 at 15
        if host in ("deepseek", "groq", "openrouter", "together", "vllm"):
            assert row["output_message"]["reasoning"], host
        if host == "openrouter":
            assert call["units"] == {"credits": 0.00114}
    books_agree_with_the_provider(database, hosts.simulator)


@dataclass
class Fault:
    """What a host is told to do wrong, and (status, HTTP status, class) of each call that follows."""

    directives: str
    status: str
    books: list[tuple[str, int | None, str | None]]
    stream: bool | None = None
    hosts: tuple[str, ...] = tuple(HOSTS)


OK = ("succeeded", None, None)
# These say in a 200 what would be its status.
NUMBERED = ("openrouter", "vllm")
# A row for each row of the retry matrix that a host can bring about.
MATRIX = [
    Fault("status=400", "failed", [("failed", 400, "permanent")]),
    Fault("status=401", "failed", [("failed", 401, "credentials")]),
    Fault("status=402", "failed", [("failed", 402, "money_out")]),
    Fault("status=403", "failed", [("failed", 403, "credentials")]),
    Fault("status=404", "failed", [("failed", 404, "permanent")]),
    Fault("status=422", "failed", [("failed", 422, "permanent")]),
    Fault("status=408;times=1", "succeeded", [("failed", 408, "transient"), OK]),
    Fault("status=409;times=1", "succeeded", [("failed", 409, "transient"), OK]),
    Fault("status=429;retry_after=0;times=1", "succeeded", [("failed", 429, "rate"), OK]),
    Fault("status=498;times=1", "succeeded", [("failed", 498, "rate"), OK]),
    Fault("status=500;times=1", "succeeded", [("failed", 500, "transient"), OK]),
    Fault("status=502;html;times=1", "succeeded", [("failed", 502, "transient"), OK]),
    Fault("status=503;times=1", "succeeded", [("failed", 503, "transient"), OK]),
    Fault("status=504;times=1", "succeeded", [("failed", 504, "transient"), OK]),
    Fault("reset;times=1", "succeeded", [("failed", None, "unknown"), OK]),
    Fault("empty;times=1", "succeeded", [("failed", 200, "malformed"), OK]),
    Fault(
        "embedded_error=0;times=1",
        "succeeded",
        [("failed", 200, "transient"), OK],
        hosts=tuple(host for host in HOSTS if host not in NUMBERED),
    ),
    Fault("embedded_error=0;times=1", "succeeded", [("failed", 500, "transient"), OK], hosts=NUMBERED),
    Fault("html", "failed", [("failed", 200, "malformed")]),
    Fault("malformed", "failed", [("failed", 200, "malformed")], stream=False),
    Fault("truncate_after=3;times=1", "succeeded", [("failed", 200, "unknown"), OK], stream=False),
    Fault("reset_after=3", "failed", [("failed", 200, "partial")], stream=True),
    Fault("truncate_after=3", "failed", [("failed", 200, "partial")], stream=True),
    Fault("end_after=3", "failed", [("failed", 200, "partial")], stream=True),
    Fault("embedded_error=3", "failed", [("failed", 200, "partial")], stream=True),
]


def test_every_row_of_the_retry_matrix_at_every_host(hosts: Hosts, database: Database, member: Member) -> None:
    asked = []
    for host in HOSTS:
        for number, fault in enumerate(MATRIX):
            if host not in fault.hosts:
                continue
            model = hosts.model(fault.directives, host)
            for stream in (False, True) if fault.stream is None else (fault.stream,):
                asked.append((host, fault, ask(member, database, model, f"{host} {number} {stream}", stream=stream)))
    all_ended(database, 120)
    wrong = []
    for host, fault, generation in asked:
        row = ended(database, generation)
        books = [
            (call["status"], call["http_status"] if call["status"] == "failed" else None, call["error_class"])
            for call in calls(database, generation)
        ]
        if (row["status"], books) != (fault.status, fault.books):
            wrong.append((host, fault.directives, row["status"], books, row["error"]))
    assert wrong == []
    books_are_consistent(database)


def test_tools_are_called_at_every_host(hosts: Hosts, database: Database, member: Member) -> None:
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("f", "g")]
    asked = {
        (host, stream): ask(
            member,
            database,
            hosts.model("tool=f,g;args=%7B%22a%22%3A%22Z%C3%BCrich%22%7D", host),
            f"{host} {stream}",
            stream=stream,
            params={"tools": tools, "parallel_tool_calls": True},
        )
        for host in HOSTS
        for stream in (False, True)
    }
    all_ended(database)
    for key, generation in asked.items():
        row = ended(database, generation)
        assert (row["status"], row["finish_reason"]) == ("succeeded", "tool_calls"), (key, row["error"])
        functions = [call["function"] for call in row["output_message"]["tool_calls"]]
        assert [function["name"] for function in functions] == ["f", "g"], key
        assert all(json.loads(function["arguments"]) == {"a": "Zürich"} for function in functions), key
        assert row["dropped_params"] == (["parallel_tool_calls"] if key[0] in ("deepseek", "together") else None), key


def test_completions_moderations_and_reranking(hosts: Hosts, database: Database, member: Member) -> None:
    database.execute(
        "insert into ai.providers (name, dialect, base_url, secret) values ('cohere', 'openai', %s, 'SIM_API_KEY')",
        f"{hosts.simulator.base_url}/cohere/v2",
    )
    hosts._ids["cohere"] = database.value("select id from ai.providers where name = 'cohere'")
    completion = hosts.model("answer=and+flies+on;usage=input:5,output:3", kind="completion")
    rates = '{"input": 2}'
    moderation = hosts.model("flag=violence,hate", kind="moderation", rates=rates)
    rerank = hosts.model("", "together", kind="rerank", rates=rates)
    cohere = hosts.model("", "cohere", kind="rerank", rates='{"input": 0, "queries": 0.002}')
    documents = ["Bread is baked.", "A martlet has no feet.", "Ships sail."]
    whole = ask(member, database, completion, "The martlet", kind="completion", params={"logprobs": 1})
    streamed = ask(member, database, completion, "The swift", kind="completion", stream=True)
    judged = ask(member, database, moderation, "Grr", kind="moderation")
    ranked = ask(member, database, rerank, "feet of a martlet", kind="rerank", params={"documents": documents})
    counted = ask(
        member, database, cohere, "feet of a martlet", kind="rerank", params={"documents": documents, "top_n": 1}
    )
    all_ended(database)
    for generation in (whole, streamed):
        row = ended(database, generation)
        assert (row["status"], row["output"]) == ("succeeded", "and flies on"), row["error"]
        assert (row["input_tokens"], row["output_tokens"]) == (5, 3)
    assert ended(database, whole)["output_message"]["logprobs"]["token_logprobs"] == [-0.25] * 3
    assert deltas(database, streamed) == "and flies on"
    row = ended(database, judged)
    assert (row["status"], row["output"]) == ("succeeded", "hate,violence"), row["error"]
    assert row["output_message"]["flagged"] is True
    assert row["output_message"]["category_scores"]["violence"] == 0.98
    row = ended(database, ranked)
    assert row["status"] == "succeeded", row["error"]
    assert row["output"] is None
    assert next(rank["index"] for rank in row["output_message"]) == 1
    assert len(row["output_message"]) == 3
    assert row["input_tokens"] > 0
    row = ended(database, counted)
    assert [rank["index"] for rank in row["output_message"]] == [1]
    (call,) = calls(database, counted)
    assert (call["units"], call["input_tokens"], call["cost"]) == ({"queries": 1}, 0, Decimal("0.002"))
    books_are_consistent(database)


def test_what_a_model_cannot_take_is_dropped_and_named_or_refused(
    hosts: Hosts, database: Database, member: Member
) -> None:
    picky = hosts.model(capabilities='{"unsupported_params": ["seed"], "tools": false}')
    claude = hosts.model(dialect="anthropic")
    params = {"seed": 1, "temperature": 0.5, "logit_bias": {"1": 1}, "tools": [{"type": "function"}]}
    dropped = ask(member, database, picky, "dropped", params=params)
    other = ask(member, database, claude, "other", params={"seed": 1, "temperature": 0.5, "logit_bias": {"1": 1}})
    refused = ask(member, database, picky, "refused", params={**params, "strict": True})
    taken = ask(member, database, picky, "taken", params={"temperature": 0.5, "strict": True})
    local = ask(member, database, "local/extract", "A martlet has no feet. Has it?", params={"temperature": 0.5})
    for position, name in enumerate((picky, hosts.model()), 1):
        database.execute(
            "insert into ai.routes (profile, position, model_id) select 'both', %s, id from ai.models where name = %s",
            position,
            name,
        )
    routed = ask(member, database, None, "routed", profile="both", params={"seed": 1, "strict": True})
    all_ended(database)
    row = ended(database, dropped)
    assert row["status"] == "succeeded", row["error"]
    assert sorted(row["dropped_params"]) == ["seed", "tools"]
    assert ended(database, other)["dropped_params"] == ["seed", "logit_bias"]
    row = ended(database, refused)
    assert (row["status"], row["error"]["class"], row["error"]["code"]) == (
        "failed",
        "unsendable",
        "unsupported_parameter",
    )
    assert sorted(row["error"]["params"]) == ["seed", "tools"]
    assert (row["dropped_params"], row["cost"]) == (None, Decimal(0))
    assert (ended(database, taken)["status"], ended(database, taken)["dropped_params"]) == ("succeeded", None)
    assert ended(database, local)["dropped_params"] == ["temperature"]
    row = ended(database, routed)
    assert (row["status"], row["attempts"], row["dropped_params"]) == ("succeeded", 2, None), row["error"]
    assert len(hosts.simulator.requests()) == 4, "what is refused is not sent"


def test_a_model_that_cannot_stream_is_shown_as_one(hosts: Hosts, database: Database, member: Member) -> None:
    model = hosts.model("answer=all+at+once", capabilities='{"streaming": false, "system_role": false}')
    messages = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}])
    generation = ask(member, database, model, None, messages=messages, stream=True)
    row = ended(database, generation)
    assert (row["status"], row["output"]) == ("succeeded", "all at once"), row["error"]
    assert deltas(database, generation) == "all at once"
    (request,) = hosts.simulator.requests()
    assert request["stream"] is False


def test_log_probabilities_come_with_the_answer(hosts: Hosts, database: Database, member: Member) -> None:
    model = hosts.model("answer=one+two+three")
    asked = [
        ask(member, database, model, f"{stream}", stream=stream, params={"logprobs": True}) for stream in (False, True)
    ]
    all_ended(database)
    for generation in asked:
        content = ended(database, generation)["output_message"]["logprobs"]["content"]
        assert "".join(one["token"] for one in content) == "one two three"
        assert {one["logprob"] for one in content} == {-0.25}
