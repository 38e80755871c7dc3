"""The simulator's batch interfaces, judged by the official SDKs of OpenAI, Anthropic and Google."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import anthropic
import openai
import pytest
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from google import genai
from google.genai import types
from openai.types import Batch, FileObject
from openai.types.chat import ChatCompletion

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]


@pytest.fixture
def gemini(provider) -> Iterator[genai.Client]:
    with genai.Client(
        api_key="key", http_options=types.HttpOptions(base_url=provider.url, api_version="v1beta", timeout=30_000)
    ) as client:
        yield client


def openai_batch(gpt: openai.OpenAI, directives: str = "") -> Batch:
    lines = [
        {
            "custom_id": f"m{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "sim-small", "messages": QUESTION},
        }
        for n in range(3)
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = gpt.files.create(file=("martlet-1.jsonl", io.BytesIO(content)), purpose="batch")
    FileObject.model_validate(file.model_dump())
    assert (file.filename, file.bytes, file.purpose) == ("martlet-1.jsonl", len(content), "batch")
    assert [known.id for known in gpt.files.list(purpose="batch", limit=5)] == [file.id]
    return gpt.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"martlet_batch": "one"},
        extra_headers={"x-simulate": directives},
    )


def test_openai_batches(gpt: openai.OpenAI) -> None:
    made = openai_batch(gpt)
    batch = Batch.model_validate(gpt.batches.retrieve(made.id).model_dump())
    assert (batch.status, batch.metadata, batch.request_counts.completed) == ("completed", {"martlet_batch": "one"}, 3)
    lines = [json.loads(line) for line in gpt.files.content(batch.output_file_id).text.splitlines()]
    assert [line["custom_id"] for line in lines] == ["m0", "m1", "m2"]
    for line in lines:
        assert ChatCompletion.model_validate(line["response"]["body"]).choices[0].finish_reason == "stop"
    assert [known.id for known in gpt.batches.list(limit=10)] == [batch.id]


def test_openai_batches_that_expire_fail_or_are_cancelled(gpt: openai.OpenAI) -> None:
    expired = gpt.batches.retrieve(openai_batch(gpt, "batch=end:expired,done:1").id)
    assert (expired.status, expired.request_counts.completed) == ("expired", 1)
    errors = [json.loads(line) for line in gpt.files.content(expired.error_file_id).text.splitlines()]
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    assert len(errors) == 2


def test_a_cancelled_openai_batch(gpt: openai.OpenAI) -> None:
    made = openai_batch(gpt, "batch=ms:600000,done:1")
    assert gpt.batches.retrieve(made.id).status == "in_progress"
    assert gpt.batches.cancel(made.id).status == "cancelling"
    assert Batch.model_validate(gpt.batches.retrieve(made.id).model_dump()).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        gpt.batches.retrieve("batch_nobody")


def test_a_failed_openai_batch(gpt: openai.OpenAI) -> None:
    failed = gpt.batches.retrieve(openai_batch(gpt, "batch=end:failed,code:token_limit_exceeded").id)
    assert (failed.status, failed.errors.data[0].code) == ("failed", "token_limit_exceeded")


def anthropic_batch(claude: anthropic.Anthropic, directives: str = "") -> MessageBatch:
    return claude.messages.batches.create(
        requests=[
            {"custom_id": f"m{n}", "params": {"model": "sim-small", "max_tokens": 20, "messages": QUESTION}}
            for n in range(3)
        ],
        extra_headers={"x-simulate": directives},
    )


def test_anthropic_batches(claude: anthropic.Anthropic) -> None:
    made = anthropic_batch(claude)
    batch = MessageBatch.model_validate(claude.messages.batches.retrieve(made.id).model_dump())
    assert (batch.processing_status, batch.request_counts.succeeded) == ("ended", 3)
    results = [
        MessageBatchIndividualResponse.model_validate(r.model_dump()) for r in claude.messages.batches.results(made.id)
    ]
    assert [(r.custom_id, r.result.type) for r in results] == [(f"m{n}", "succeeded") for n in range(3)]
    assert all(r.result.message.content[0].text for r in results)
    assert [known.id for known in claude.messages.batches.list(limit=10)] == [made.id]


def test_an_anthropic_batch_that_expires_or_is_cancelled(claude: anthropic.Anthropic) -> None:
    expired = anthropic_batch(claude, "batch=end:expired,done:1")
    assert claude.messages.batches.retrieve(expired.id).request_counts.expired == 2
    assert [r.result.type for r in claude.messages.batches.results(expired.id)] == ["succeeded", "expired", "expired"]
    running = anthropic_batch(claude, "batch=ms:600000")
    assert claude.messages.batches.cancel(running.id).processing_status == "canceling"
    assert claude.messages.batches.retrieve(running.id).cancel_initiated_at is not None
    assert {r.result.type for r in claude.messages.batches.results(running.id)} == {"canceled"}


def test_gemini_batches(gemini: genai.Client) -> None:
    made = gemini.batches.create(
        model="sim-small",
        src=[
            {"contents": [{"role": "user", "parts": [{"text": "Why?"}]}], "metadata": {"key": f"m{n}"}}
            for n in range(3)
        ],
        config={"display_name": "one"},
    )
    batch = gemini.batches.get(name=made.name)
    assert (batch.display_name, batch.state.name) == ("one", "JOB_STATE_SUCCEEDED")
    responses = batch.dest.inlined_responses
    assert [r.metadata["key"] for r in responses] == ["m0", "m1", "m2"]
    assert all(r.response.text for r in responses)
    assert [known.name for known in gemini.batches.list()] == [made.name]
