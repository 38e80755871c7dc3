"""The simulator, judged by OpenAI's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

import base64
import json
import math
import struct

import openai
import pytest
import waiting
from openai.types.chat import ChatCompletion

USAGE = "usage=input:1000,cached:200,write:100,write1h:50,output:70,reasoning:30"
QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "find_bird", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
    {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}},
]


def ask(gpt: openai.OpenAI, directives: str = "", **options):
    return gpt.chat.completions.create(
        model="sim-small", messages=QUESTION, extra_headers={"x-simulate": directives}, **options
    )


def strictly(completion: ChatCompletion) -> ChatCompletion:
    """The SDK accepts what does not fit its types; validating again does not."""
    return ChatCompletion.model_validate(completion.model_dump())


def test_a_whole_answer_has_every_field(gpt: openai.OpenAI) -> None:
    completion = ask(gpt)
    assert completion._request_id.startswith("req_")
    completion = strictly(completion)
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "sim-small"
    assert completion.service_tier == "default"
    (choice,) = completion.choices
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert "martlet" in choice.message.content
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_same_request_gets_the_same_text(gpt: openai.OpenAI) -> None:
    first, second = ask(gpt), ask(gpt)
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id


def test_usage_is_what_the_directive_says(gpt: openai.OpenAI) -> None:
    usage = strictly(ask(gpt, USAGE)).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1000, 70, 1070)
    assert usage.prompt_tokens_details.cached_tokens == 200
    assert usage.prompt_tokens_details.cache_write_tokens == 150
    assert usage.completion_tokens_details.reasoning_tokens == 30


def test_a_stream_joins_to_the_whole_answer_and_ends_with_usage(gpt: openai.OpenAI) -> None:
    whole = ask(gpt, "answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands").choices[0].message.content
    with ask(
        gpt,
        f"answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands;{USAGE}",
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert whole == "Zürich 🐦 never\nlands"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 200
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_include_usage_has_none(gpt: openai.OpenAI) -> None:
    with ask(gpt, "tokens=4", stream=True) as stream:
        chunks = list(stream)
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


@pytest.mark.parametrize("obfuscates", [True, False])
def test_obfuscation_is_on_unless_refused(gpt: openai.OpenAI, obfuscates: bool) -> None:
    with ask(gpt, "tokens=4", stream=True, stream_options={"include_obfuscation": obfuscates}) as stream:
        assert all((chunk.obfuscation is not None) == obfuscates for chunk in stream)


def test_the_sdk_accumulates_a_stream_into_a_completion(gpt: openai.OpenAI) -> None:
    with gpt.chat.completions.stream(
        model="sim-small+tokens=12", messages=QUESTION, stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == 12


def test_the_model_name_carries_directives_and_is_reported_without(gpt: openai.OpenAI) -> None:
    completion = gpt.chat.completions.create(model="sim-small+answer=yes;tier=flex", messages=QUESTION)
    assert completion.model == "sim-small"
    assert completion.choices[0].message.content == "yes"
    assert completion.service_tier == "flex"
    assert ask(gpt, "model=sim-2026-01-01").model == "sim-2026-01-01"


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_come_whole_and_streamed(gpt: openai.OpenAI, stream: bool) -> None:
    arguments = {"name": "swift 🐦", "deep": {"list": [1, 2, 3]}}
    directive = "tool=find_bird,other;args=" + "".join(f"%{byte:02x}" for byte in json.dumps(arguments).encode())
    if stream:
        with gpt.chat.completions.stream(
            model="sim-small", messages=QUESTION, tools=TOOLS, extra_headers={"x-simulate": directive}
        ) as events:
            for _ in events:
                pass
            completion = events.get_final_completion()
    else:
        completion = strictly(ask(gpt, directive, tools=TOOLS))
    message = completion.choices[0].message
    assert completion.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert [call.function.name for call in message.tool_calls] == ["find_bird", "other"]
    assert len({call.id for call in message.tool_calls}) == 2
    assert all(json.loads(call.function.arguments) == arguments for call in message.tool_calls)


def test_a_forced_tool_is_called_and_its_result_is_answered_in_text(gpt: openai.OpenAI) -> None:
    forced = ask(gpt, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}})
    (call,) = forced.choices[0].message.tool_calls
    assert call.function.name == "other"
    conversation = [
        *QUESTION,
        forced.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It has no feet, as every herald knows."},
    ]
    answer = gpt.chat.completions.create(model="sim-small", messages=conversation, tools=TOOLS, tool_choice="required")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content
    assert ask(gpt, "tool=other").choices[0].finish_reason == "stop"


def test_max_tokens_cuts_the_answer(gpt: openai.OpenAI) -> None:
    completion = ask(gpt, "tokens=50", max_completion_tokens=7)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 7


def test_several_choices(gpt: openai.OpenAI) -> None:
    completion = strictly(ask(gpt, "tokens=5", n=3))
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    with ask(gpt, "tokens=5", n=3, stream=True) as stream:
        indexes = {chunk.choices[0].index for chunk in stream}
    assert indexes == {0, 1, 2}


def test_json_is_answered_where_json_is_asked_for(gpt: openai.OpenAI) -> None:
    completion = ask(gpt, response_format={"type": "json_object"})
    assert "martlet" in json.loads(completion.choices[0].message.content)["answer"]


@pytest.mark.parametrize("finish", ["length", "content_filter", "max_tokens"])
def test_stop_reasons_can_be_chosen(gpt: openai.OpenAI, finish: str) -> None:
    completion = strictly(ask(gpt, f"finish={finish}"))
    assert completion.choices[0].finish_reason == finish.replace("max_tokens", "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
def test_each_status_raises_the_sdks_own_error(
    gpt: openai.OpenAI, status: int, error: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as caught:
        ask(gpt, f"status={status}", stream=stream)
    assert caught.value.status_code == status
    assert caught.value.request_id.startswith("req_")
    assert isinstance(caught.value.body["message"], str)
    assert caught.value.type


@pytest.mark.parametrize(
    ("directives", "kind", "code", "waits"),
    [
        ("status=429", "requests", "rate_limit_exceeded", "1"),
        ("status=429;code=insufficient_quota", "insufficient_quota", "insufficient_quota", None),
        ("status=429;code=slow_down;retry_after=3", "rate_limit_error", "slow_down", "3"),
        ("status=400;code=context_length_exceeded", "invalid_request_error", "context_length_exceeded", None),
        ("status=503", "server_error", "server_is_overloaded", None),
        ("status=418;type=teapot;code=short;message=stout", "teapot", "short", None),
    ],
)
def test_error_types_and_codes(gpt: openai.OpenAI, directives: str, kind: str, code: str, waits: str | None) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(gpt, directives)
    assert (caught.value.type, caught.value.code) == (kind, code)
    assert caught.value.response.headers.get("retry-after") == waits


def test_the_sdks_own_retries_get_past_a_fault_that_heals(provider) -> None:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=2, timeout=30) as client:
        answer = ask(client, "status=503;times=2;retry_after_ms=1")
    assert answer.choices[0].finish_reason == "stop"
    assert [entry["status"] for entry in provider.entries] == [503, 503, 200]
    assert len({entry["body_hash"] for entry in provider.entries}) == 1


@pytest.mark.parametrize("directives", ["reset", "reset_after=2", "truncate_after=2"])
@pytest.mark.parametrize("stream", [False, True])
def test_broken_connections_raise_connection_errors(gpt: openai.OpenAI, directives: str, stream: bool) -> None:
    with pytest.raises(openai.APIConnectionError):
        for _ in ask(gpt, directives, stream=stream):
            pass


def test_a_hang_times_out(gpt: openai.OpenAI, provider) -> None:
    with pytest.raises(openai.APITimeoutError):
        ask(gpt, "hang", timeout=0.3)
    (entry,) = waiting.until(lambda: provider.entries, "the entry of a client that left")
    assert (entry["status"], entry["bytes_sent"], entry["client_gone"]) == (0, 0, True)


def test_an_error_inside_a_stream_is_raised(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError) as caught, ask(gpt, "embedded_error=3;code=boom", stream=True) as stream:
        for _ in stream:
            pass
    assert caught.value.code == "boom"


def test_malformed_json_is_noticed(gpt: openai.OpenAI) -> None:
    with pytest.raises(json.JSONDecodeError), ask(gpt, "malformed", stream=True) as stream:
        for _ in stream:
            pass
    with pytest.raises((json.JSONDecodeError, openai.APIError)):
        ask(gpt, "malformed")


def test_an_invalid_key_and_a_missing_model(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(gpt.with_options(api_key="invalid"))
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as missing:
        gpt.chat.completions.create(model="", messages=QUESTION)
    assert missing.value.param == "model"


def test_models_are_listed(gpt: openai.OpenAI) -> None:
    models = list(gpt.models.list())
    assert {"sim-small", "sim-embed"} <= {model.id for model in models}
    assert gpt.models.retrieve("sim-small").object == "model"
    with pytest.raises(openai.NotFoundError):
        gpt.models.retrieve("unknown")


def test_a_megabyte_of_prompt(gpt: openai.OpenAI) -> None:
    text = "The swift sleeps on the wing. 🐦 " * 30_000
    completion = gpt.chat.completions.create(
        model="sim-small", messages=[{"role": "user", "content": f"Summarise this:\n\n{text}"}]
    )
    assert completion.usage.prompt_tokens > 200_000
    assert "sleeps on the wing" in completion.choices[0].message.content


def test_over_sixteen_mebibytes_is_refused(gpt: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        gpt.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * (17 << 20)}])
    assert caught.value.status_code == 413


def length(vector: list[float]) -> float:
    return math.sqrt(sum(value * value for value in vector))


def test_embeddings_are_the_same_in_both_encodings(gpt: openai.OpenAI, provider) -> None:
    texts = ["The martlet never lands.", "Bread is baked.", "😀"]
    floats = gpt.embeddings.create(model="sim-embed", input=texts, dimensions=256, encoding_format="float")
    packed = gpt.embeddings.create(model="sim-embed", input=texts, dimensions=256)
    assert [item.index for item in floats.data] == [0, 1, 2]
    for left, right in zip(floats.data, packed.data, strict=True):
        assert len(left.embedding) == 256
        assert length(left.embedding) == pytest.approx(1, abs=1e-4)
        assert left.embedding == pytest.approx(list(right.embedding), abs=1e-7)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens == 11
    assert [entry["usage"]["input"] for entry in provider.entries] == [11, 11]


def test_base64_is_little_endian_single_floats(gpt: openai.OpenAI) -> None:
    # A raw response keeps the SDK from decoding it.
    for dimensions in (1, 2, 3, 4):
        raw = gpt.embeddings.with_raw_response.create(
            model="sim-embed", input="a b", dimensions=dimensions, encoding_format="base64"
        )
        packed = json.loads(raw.text)["data"][0]["embedding"]
        vector = struct.unpack(f"<{dimensions}f", base64.b64decode(packed, validate=True))
        assert length(list(vector)) == pytest.approx(1, abs=1e-4)


def test_embeddings_without_dimensions_and_of_tokens(gpt: openai.OpenAI) -> None:
    assert len(gpt.embeddings.create(model="sim-embed", input="a").data[0].embedding) == 1536
    assert len(gpt.embeddings.create(model="sim-embed-large", input="a").data[0].embedding) == 3072
    assert len(gpt.embeddings.create(model="sim-embed+dims=5", input="a").data[0].embedding) == 5
    tokens = gpt.embeddings.create(model="sim-embed", input=[[1, 2, 3], [4]], dimensions=8)
    assert len(tokens.data) == 2
    assert tokens.usage.prompt_tokens == 4


@pytest.mark.parametrize("options", [{"input": ""}, {"input": []}, {"input": "a", "dimensions": 0}])
def test_wrong_embedding_requests(gpt: openai.OpenAI, options: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        gpt.embeddings.create(model="sim-embed", **options)


def test_embeddings_can_fail(gpt: openai.OpenAI) -> None:
    for directive, error in [
        ("status=429", openai.RateLimitError),
        ("reset", openai.APIConnectionError),
        ("truncate_after=20", openai.APIConnectionError),
    ]:
        with pytest.raises(error):
            gpt.embeddings.create(model=f"sim-embed+{directive}", input="a")
