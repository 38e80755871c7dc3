"""The simulator as Together, judged by Together's own SDK: chats, completions, rerank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import together
from together.types import Completion, RerankCreateResponse
from together.types.chat import ChatCompletion, ChatCompletionChunk

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]


@pytest.fixture
def client(provider) -> Iterator[together.Together]:
    with together.Together(base_url=f"{provider.url}/together", api_key="key", max_retries=0, timeout=30) as client:
        yield client


def test_a_whole_answer(client: together.Together) -> None:
    completion = client.chat.completions.create(model="sim-small+usage=input:9,output:4", messages=QUESTION)
    completion = ChatCompletion.model_validate(completion.model_dump())
    assert "martlet" in completion.choices[0].message.content
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, 4)


def test_a_stream_ends_with_usage_without_being_asked(client: together.Together) -> None:
    stream = client.chat.completions.create(
        model="sim-small+answer=never+lands;usage=input:9,output:4", messages=QUESTION, stream=True
    )
    chunks = [ChatCompletionChunk.model_validate(chunk.model_dump()) for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "never lands"
    assert chunks[-1].usage.total_tokens == 13


def test_completions_come_whole_and_streamed(client: together.Together) -> None:
    whole = client.completions.create(model="sim-small+answer=and+flies+on", prompt="The martlet")
    assert Completion.model_validate(whole.model_dump()).choices[0].text == "and flies on"
    stream = client.completions.create(model="sim-small+answer=and+flies+on", prompt="The martlet", stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in stream) == "and flies on"


def test_log_probabilities_are_counted(client: together.Together) -> None:
    answer = client.chat.completions.create(model="sim-small+answer=two+words", messages=QUESTION, logprobs=1)
    assert answer.choices[0].logprobs.token_logprobs == [-0.25, -0.25]


def test_documents_that_share_words_come_first(client: together.Together) -> None:
    documents = ["Bread is baked.", "A martlet has no feet.", "Ships sail."]
    answer = client.rerank.create(model="sim-rerank", query="feet of a martlet", documents=documents, top_n=2)
    answer = RerankCreateResponse.model_validate(answer.model_dump())
    assert next(result.index for result in answer.results) == 1
    assert len(answer.results) == 2
    assert answer.results[0].document.text == documents[1]
    assert answer.results[0].relevance_score > answer.results[1].relevance_score
    assert answer.usage.prompt_tokens > 0


@pytest.mark.parametrize("status", [400, 401, 422, 429, 500, 503])
def test_each_status_raises(client: together.Together, status: int) -> None:
    with pytest.raises(together.APIStatusError) as caught:
        client.rerank.create(model=f"sim-rerank+status={status}", query="q", documents=["a"])
    assert caught.value.status_code == status
