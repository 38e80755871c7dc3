"""The simulator's Gemini API, judged by Google's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from google import genai
from google.genai import errors, types

USAGE = "usage=input:1000,cached:200,output:70,reasoning:30"
QUESTION = "Why does the martlet never land?"
TOOLS = [
    types.Tool(
        function_declarations=[
            types.FunctionDeclaration(
                name="find_bird",
                parameters_json_schema={"type": "object", "properties": {"name": {"type": "string"}}},
            ),
            types.FunctionDeclaration(name="other"),
        ]
    )
]
BY_HAND = types.AutomaticFunctionCallingConfig(disable=True)


@pytest.fixture
def gemini(provider) -> Iterator[genai.Client]:
    with connected(provider) as client:
        yield client


def connected(provider, **options) -> genai.Client:
    return genai.Client(
        api_key=options.pop("api_key", "key"),
        http_options=types.HttpOptions(base_url=provider.url, timeout=30_000, **options),
    )


def config(directives: str = "", **options) -> types.GenerateContentConfig:
    headers = types.HttpOptions(headers={"x-simulate": directives})
    return types.GenerateContentConfig(http_options=headers, automatic_function_calling=BY_HAND, **options)


def ask(gemini: genai.Client, directives: str = "", contents=QUESTION, **options) -> types.GenerateContentResponse:
    return gemini.models.generate_content(model="sim-large", contents=contents, config=config(directives, **options))


def stream(gemini: genai.Client, directives: str = "", **options) -> list[types.GenerateContentResponse]:
    return list(
        gemini.models.generate_content_stream(
            model="sim-large", contents=QUESTION, config=config(directives, **options)
        )
    )


def strictly(response: types.GenerateContentResponse) -> types.GenerateContentResponse:
    """The SDK accepts what does not fit its types; validating again, without members of another name, does not."""
    return types.GenerateContentResponse.model_validate(response.model_dump(exclude={"sdk_http_response"}))


def test_a_whole_answer_has_every_field(gemini: genai.Client) -> None:
    response = strictly(ask(gemini))
    (candidate,) = response.candidates
    assert candidate.finish_reason == types.FinishReason.STOP
    assert (candidate.index, candidate.content.role) == (0, "model")
    assert "martlet" in response.text
    assert response.model_version == "sim-large"
    assert response.response_id
    assert response.usage_metadata.total_token_count > 0


def test_usage_is_what_the_directive_says(gemini: genai.Client) -> None:
    usage = strictly(ask(gemini, USAGE)).usage_metadata
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (1000, 200)
    assert (usage.candidates_token_count, usage.thoughts_token_count) == (40, 30)
    assert usage.total_token_count == 1070


def test_a_stream_joins_to_the_whole_answer(gemini: genai.Client) -> None:
    chunks = [strictly(chunk) for chunk in stream(gemini, f"answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands;{USAGE}")]
    assert "".join(chunk.text or "" for chunk in chunks) == "Zürich 🐦 never\nlands"
    assert [chunk.candidates[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    usage = chunks[-1].usage_metadata
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.thoughts_token_count) == (1000, 40, 30)
    assert len({chunk.response_id for chunk in chunks}) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_come_whole_also_in_streams(gemini: genai.Client, streamed: bool) -> None:
    arguments = {"name": "swift 🐦", "deep": {"list": [1, 2, 3]}}
    directive = f"tool=find_bird,other;answer=Let+me+look;args={quote(json.dumps(arguments))}"
    chunks = stream(gemini, directive, tools=TOOLS) if streamed else [ask(gemini, directive, tools=TOOLS)]
    parts = [part for chunk in chunks for part in strictly(chunk).candidates[0].content.parts]
    assert "".join(part.text or "" for part in parts) == "Let me look"
    calls = [part for part in parts if part.function_call]
    assert [(part.function_call.name, part.function_call.args) for part in calls] == [
        ("find_bird", arguments),
        ("other", arguments),
    ]
    assert [bool(part.thought_signature) for part in calls] == [True, False]
    assert len({part.function_call.id for part in calls}) == 2


def test_a_forced_tool_is_called_and_its_result_is_answered_in_text(gemini: genai.Client) -> None:
    forced = types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(mode="ANY", allowed_function_names=["other"])
    )
    response = ask(gemini, tools=TOOLS, tool_config=forced)
    (call,) = response.function_calls
    assert call.name == "other"
    answer = types.Part.from_function_response(name=call.name, response={"output": "No feet."})
    contents = [
        types.Content(role="user", parts=[types.Part(text=QUESTION)]),
        response.candidates[0].content,
        types.Content(role="user", parts=[answer]),
    ]
    assert ask(gemini, contents=contents, tools=TOOLS, tool_config=forced).text


@pytest.mark.parametrize("streamed", [False, True])
def test_thoughts_are_shown_where_asked_for(gemini: genai.Client, streamed: bool) -> None:
    thinking = types.ThinkingConfig(include_thoughts=True, thinking_budget=1024)
    chunks = stream(gemini, thinking_config=thinking) if streamed else [ask(gemini, thinking_config=thinking)]
    thought, *rest = [part for chunk in chunks for part in chunk.candidates[0].content.parts]
    assert thought.thought
    assert not any(part.thought for part in rest)
    assert chunks[-1].usage_metadata.thoughts_token_count > 0
    silent = ask(gemini, thinking_config=types.ThinkingConfig(thinking_budget=0))
    assert silent.usage_metadata.thoughts_token_count is None


def test_max_tokens_cuts_the_answer(gemini: genai.Client) -> None:
    response = ask(gemini, "tokens=50", max_output_tokens=7)
    assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert response.usage_metadata.candidates_token_count == 7


@pytest.mark.parametrize("finish", ["SAFETY", "RECITATION", "MALFORMED_FUNCTION_CALL", "OTHER"])
def test_finish_reasons_can_be_chosen(gemini: genai.Client, finish: str) -> None:
    assert strictly(ask(gemini, f"finish={finish}")).candidates[0].finish_reason == types.FinishReason(finish)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_blocked_prompt_is_a_success_without_candidates(gemini: genai.Client, streamed: bool) -> None:
    directive = "finish=blocked_prompt"
    (response,) = stream(gemini, directive) if streamed else [ask(gemini, directive)]
    assert not response.candidates
    assert response.prompt_feedback.block_reason == types.BlockedReason.SAFETY
    assert response.usage_metadata.prompt_token_count > 0


STATUSES = [
    (400, errors.ClientError, "INVALID_ARGUMENT"),
    (401, errors.ClientError, "UNAUTHENTICATED"),
    (403, errors.ClientError, "PERMISSION_DENIED"),
    (404, errors.ClientError, "NOT_FOUND"),
    (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
    (499, errors.ClientError, "CANCELLED"),
    (500, errors.ServerError, "INTERNAL"),
    (503, errors.ServerError, "UNAVAILABLE"),
    (504, errors.ServerError, "DEADLINE_EXCEEDED"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "error", "name"), STATUSES)
def test_each_status_raises_the_sdks_own_error(
    gemini: genai.Client, status: int, error: type[errors.APIError], name: str, streamed: bool
) -> None:
    with pytest.raises(error) as caught:
        (stream if streamed else ask)(gemini, f"status={status}")
    assert (caught.value.code, caught.value.status) == (status, name)
    assert caught.value.message


@pytest.mark.parametrize(
    ("directives", "kinds"),
    [
        ("status=429", ["RetryInfo"]),
        ("status=429;code=GenerateRequestsPerDayPerProjectPerModel", ["QuotaFailure"]),
        ("status=429;code=GenerateRequestsPerMinutePerProject", ["QuotaFailure", "RetryInfo"]),
        ("status=400;code=API_KEY_INVALID", ["ErrorInfo"]),
    ],
)
def test_reasons_quotas_and_times_are_details(gemini: genai.Client, directives: str, kinds: list[str]) -> None:
    with pytest.raises(errors.ClientError) as caught:
        ask(gemini, directives)
    details = caught.value.details["error"]["details"]
    assert [detail["@type"].rsplit(".", 1)[1] for detail in details] == kinds


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_error_inside_a_stream_is_raised(gemini: genai.Client, after: int) -> None:
    with pytest.raises(errors.ServerError) as caught:
        stream(gemini, f"embedded_error={after}")
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")


def test_a_stream_that_ends_early_has_no_finish_reason(gemini: genai.Client) -> None:
    chunks = stream(gemini, "end_after=2")
    assert len(chunks) == 2
    assert all(chunk.candidates[0].finish_reason is None for chunk in chunks)


def test_the_sdks_own_retries_get_past_a_fault_that_heals(provider) -> None:
    quick = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.02)
    with connected(provider, retry_options=quick) as client:
        response = client.models.generate_content(model="sim-large+status=503;times=2", contents=QUESTION)
    assert response.text
    assert [entry["status"] for entry in provider.entries] == [503, 503, 200]
    assert {entry["provider"] for entry in provider.entries} == {"gemini"}


def test_an_invalid_key_is_refused(provider) -> None:
    with connected(provider, api_key="invalid") as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model="sim-large", contents=QUESTION)
    assert caught.value.details["error"]["details"][0]["reason"] == "API_KEY_INVALID"


def test_vectors_come_in_the_order_of_the_texts(gemini: genai.Client, provider) -> None:
    texts = ["a bird", "a fish", "a bird"]
    response = gemini.models.embed_content(
        model="sim-embed", contents=texts, config=types.EmbedContentConfig(output_dimensionality=16)
    )
    first, second, third = (embedding.values for embedding in response.embeddings)
    assert first == third != second
    assert len(first) == 16
    (entry,) = provider.entries
    assert entry["usage"]["input"] == response.usage_metadata.prompt_token_count
    with pytest.raises(errors.ClientError, match="at most 100"):
        gemini.models.embed_content(model="sim-embed", contents=["x"] * 101)


def test_tokens_are_counted_and_models_are_listed(gemini: genai.Client) -> None:
    assert gemini.models.count_tokens(model="sim-large+usage=input:77", contents=QUESTION).total_tokens == 77
    assert "models/sim-small" in {model.name for model in gemini.models.list()}
    assert gemini.models.get(model="sim-small").input_token_limit > 0


def test_every_answer_is_in_the_books_with_its_usage(gemini: genai.Client, provider) -> None:
    whole = ask(gemini, "tag=a")
    chunks = stream(gemini, "tag=b")
    first, second = provider.entries
    assert [entry["tag"] for entry in provider.entries] == ["a", "b"]
    for entry, usage in ((first, whole.usage_metadata), (second, chunks[-1].usage_metadata)):
        assert entry["complete"]
        assert entry["usage_reported"]
        assert entry["usage"]["input"] == usage.prompt_token_count
        assert entry["usage"]["output"] == usage.candidates_token_count
