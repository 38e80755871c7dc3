"""The simulator as Groq, judged by Groq's own SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator

import groq
import pytest
from groq.types.chat import ChatCompletion, ChatCompletionChunk

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]
TOOLS = [{"type": "function", "function": {"name": "find_bird", "parameters": {"type": "object"}}}]
USAGE = "usage=input:1000,cached:200,output:70,reasoning:30"


@pytest.fixture
def client(provider) -> Iterator[groq.Groq]:
    with groq.Groq(base_url=f"{provider.url}/groq", api_key="key", max_retries=0, timeout=30) as client:
        yield client


def ask(client: groq.Groq, directives: str = "", **options):
    return client.chat.completions.create(
        model="sim-small", messages=QUESTION, extra_headers={"x-simulate": directives}, **options
    )


def strictly(completion: ChatCompletion) -> ChatCompletion:
    return ChatCompletion.model_validate(completion.model_dump())


def test_a_whole_answer_has_its_own_usage(client: groq.Groq) -> None:
    completion = strictly(ask(client, USAGE))
    assert completion.choices[0].finish_reason == "stop"
    assert "martlet" in completion.choices[0].message.content
    assert completion.choices[0].message.reasoning
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1000, 70, 1070)
    assert usage.prompt_tokens_details.cached_tokens == 200
    assert usage.completion_tokens_details.reasoning_tokens == 30
    assert usage.queue_time is not None
    assert completion.x_groq.id.startswith("req_")


def test_a_stream_has_its_usage_in_x_groq(client: groq.Groq) -> None:
    with ask(client, f"answer=Z%C3%BCrich+never+lands;{USAGE}", stream=True) as stream:
        chunks = [ChatCompletionChunk.model_validate(chunk.model_dump()) for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Zürich never lands"
    assert any(chunk.choices[0].delta.reasoning for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].x_groq.usage.prompt_tokens == 1000
    assert chunks[-1].x_groq.usage.completion_tokens_details.reasoning_tokens == 30
    assert all(chunk.x_groq is None or chunk.x_groq.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_come_whole_and_streamed(client: groq.Groq, stream: bool) -> None:
    directive = "tool=find_bird;args=%7B%22name%22%3A%22swift%22%7D"
    if stream:
        with ask(client, directive, tools=TOOLS, stream=True) as chunks:
            deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
        name, arguments = deltas[0].function.name, "".join(call.function.arguments for call in deltas)
    else:
        (call,) = strictly(ask(client, directive, tools=TOOLS)).choices[0].message.tool_calls
        name, arguments = call.function.name, call.function.arguments
    assert (name, json.loads(arguments)) == ("find_bird", {"name": "swift"})


def test_an_error_inside_a_stream_is_its_own(client: groq.Groq) -> None:
    with ask(client, "embedded_error=1;message=gone", stream=True) as stream:
        errors = [chunk.x_groq.error for chunk in stream if chunk.x_groq and chunk.x_groq.error]
    assert errors == ["gone"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, groq.BadRequestError),
        (401, groq.AuthenticationError),
        (429, groq.RateLimitError),
        (498, groq.APIStatusError),
        (503, groq.InternalServerError),
    ],
)
def test_each_status_raises_the_sdks_own_error(client: groq.Groq, status: int, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        ask(client, f"status={status}")
    assert caught.value.status_code == status
    assert isinstance(caught.value.body["error"]["message"], str)


def test_what_it_does_not_support_is_refused(client: groq.Groq) -> None:
    with pytest.raises(groq.BadRequestError) as caught:
        ask(client, logprobs=True)
    assert "logprobs" in caught.value.body["error"]["message"]
    with pytest.raises(groq.BadRequestError):
        client.chat.completions.create(model="sim-small", messages=[{"role": "developer", "content": "x"}])


def test_embeddings(client: groq.Groq) -> None:
    answer = client.embeddings.create(model="sim-embed+dims=8", input=["a", "b"])
    assert [len(one.embedding) for one in answer.data] == [8, 8]
