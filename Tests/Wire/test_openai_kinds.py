"""Completions, moderations, log probabilities and Azure, judged by OpenAI's own SDK."""

from __future__ import annotations

import openai
import pytest
from openai.types import Completion, ModerationCreateResponse
from openai.types.chat import ChatCompletion

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]


def test_a_completion_comes_whole(gpt: openai.OpenAI) -> None:
    answer = gpt.completions.create(model="sim-small+answer=and+flies+on;usage=input:5,output:3", prompt="The martlet")
    answer = Completion.model_validate(answer.model_dump())
    assert answer.choices[0].text == "and flies on"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 3)


def test_a_completion_comes_streamed(gpt: openai.OpenAI) -> None:
    with gpt.completions.create(
        model="sim-small+answer=and+flies+on", prompt="x", stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "and flies on"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


def test_a_completion_is_cut_and_counts_its_tokens(gpt: openai.OpenAI) -> None:
    answer = gpt.completions.create(model="sim-small+tokens=50", prompt="x", max_tokens=4, logprobs=1)
    assert answer.choices[0].finish_reason == "length"
    assert len(answer.choices[0].logprobs.tokens) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_text(gpt: openai.OpenAI, stream: bool) -> None:
    answer = gpt.chat.completions.create(
        model="sim-small+answer=one+two+three", messages=QUESTION, logprobs=True, stream=stream
    )
    if stream:
        tokens = [one for chunk in answer if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    else:
        tokens = ChatCompletion.model_validate(answer.model_dump()).choices[0].logprobs.content
    assert "".join(one.token for one in tokens) == "one two three"
    assert {one.logprob for one in tokens} == {-0.25}


def test_a_moderation_has_a_verdict_for_each_text(gpt: openai.OpenAI) -> None:
    answer = gpt.moderations.create(model="sim-moderation+flag=violence,hate", input=["one", "two"])
    answer = ModerationCreateResponse.model_validate(answer.model_dump(by_alias=True))
    assert [result.flagged for result in answer.results] == [True, True]
    assert answer.results[0].categories.violence
    assert not answer.results[0].categories.sexual
    assert answer.results[0].category_scores.hate > 0.9
    (calm,) = gpt.moderations.create(input=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]).results
    assert not calm.flagged


def test_azure_has_deployments_in_its_paths(provider) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=f"{provider.url}/azure", api_key="key", api_version="2026-10-01", max_retries=0
    ) as azure:
        answer = azure.chat.completions.create(model="sim-small", messages=QUESTION)
        assert "martlet" in answer.choices[0].message.content
        with azure.chat.completions.create(model="sim-small", messages=QUESTION, stream=True) as stream:
            chunks = list(stream)
        assert chunks[0].choices == []
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert {entry["endpoint"] for entry in provider.entries} == {"/azure/v1/chat/completions"}


@pytest.mark.parametrize("host", ["deepseek", "mistral/v1", "openrouter/api/v1", "together/v1", "vllm/v1"])
@pytest.mark.parametrize("stream", [False, True])
def test_hosts_like_openai_are_read_by_its_sdk(provider, host: str, stream: bool) -> None:
    with openai.OpenAI(base_url=f"{provider.url}/{host}", api_key="key", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="sim-small+answer=never+lands;usage=input:9,output:4", messages=QUESTION, stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        else:
            text = answer.choices[0].message.content
    assert text == "never lands"


def test_mistral_refuses_what_it_does_not_know(provider) -> None:
    client = openai.OpenAI(base_url=f"{provider.url}/mistral/v1", api_key="key", max_retries=0)
    with client, pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="sim-small", messages=QUESTION, seed=1)
