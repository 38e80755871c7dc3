"""The simulator, judged by Anthropic's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

import json

import anthropic
import pytest
from anthropic.types import Message

USAGE = "usage=input:1000,cached:200,write:100,write1h:50,output:70,reasoning:30"
QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]
TOOLS = [
    {"name": "find_bird", "input_schema": {"type": "object", "properties": {"name": {"type": "string"}}}},
    {"name": "other", "input_schema": {"type": "object", "properties": {}}},
]


def ask(claude: anthropic.Anthropic, directives: str = "", **options):
    return claude.messages.create(
        model="sim-large",
        messages=QUESTION,
        extra_headers={"x-simulate": directives},
        **{"max_tokens": 1000, **options},
    )


def stream(claude: anthropic.Anthropic, directives: str = "", **options):
    return claude.messages.stream(
        model="sim-large",
        messages=QUESTION,
        extra_headers={"x-simulate": directives},
        **{"max_tokens": 1000, **options},
    )


def strictly(message: Message) -> Message:
    """The SDK accepts what does not fit its types; validating again does not."""
    return Message.model_validate(message.model_dump())


def test_a_whole_answer_has_every_field(claude: anthropic.Anthropic) -> None:
    message = ask(claude)
    assert message._request_id.startswith("req_")
    message = strictly(message)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "sim-large")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    (block,) = message.content
    assert block.type == "text"
    assert "martlet" in block.text
    assert message.usage.service_tier == "standard"


def test_usage_is_what_the_directive_says(claude: anthropic.Anthropic) -> None:
    usage = strictly(ask(claude, USAGE)).usage
    assert (usage.input_tokens, usage.output_tokens) == (1000, 70)
    assert usage.cache_read_input_tokens == 200
    assert usage.cache_creation_input_tokens == 150
    assert usage.cache_creation.ephemeral_5m_input_tokens == 100
    assert usage.cache_creation.ephemeral_1h_input_tokens == 50
    assert usage.output_tokens_details.thinking_tokens == 30


def test_a_stream_joins_to_the_whole_answer(claude: anthropic.Anthropic) -> None:
    directives = f"answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands;{USAGE}"
    with stream(claude, directives) as events:
        text = "".join(events.text_stream)
        message = strictly(events.get_final_message())
    assert text == message.content[0].text == "Zürich 🐦 never\nlands"
    assert message.stop_reason == "end_turn"
    usage = message.usage
    assert (usage.input_tokens, usage.output_tokens) == (1000, 70)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (200, 150)
    assert usage.cache_creation.ephemeral_1h_input_tokens == 50


def test_events_come_in_the_documented_order(claude: anthropic.Anthropic) -> None:
    with ask(claude, "tokens=3", stream=True) as events:
        kinds = [event.type for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_come_whole_and_streamed(claude: anthropic.Anthropic, streamed: bool) -> None:
    arguments = {"name": "swift 🐦", "deep": {"list": [1, 2, 3]}}
    directive = "tool=find_bird,other;answer=Let+me+look;args=" + "".join(
        f"%{byte:02x}" for byte in json.dumps(arguments).encode()
    )
    if streamed:
        with stream(claude, directive, tools=TOOLS) as events:
            message = strictly(events.get_final_message())
    else:
        message = strictly(ask(claude, directive, tools=TOOLS))
    assert message.stop_reason == "tool_use"
    text, *calls = message.content
    assert text.text == "Let me look"
    assert [(call.type, call.name, call.input) for call in calls] == [
        ("tool_use", "find_bird", arguments),
        ("tool_use", "other", arguments),
    ]
    assert len({call.id for call in calls}) == 2


def test_a_forced_tool_is_called_and_its_result_is_answered_in_text(claude: anthropic.Anthropic) -> None:
    message = ask(claude, tools=TOOLS, tool_choice={"type": "any"})
    (call,) = message.content
    assert call.name == "find_bird"
    answer = claude.messages.create(
        model="sim-large",
        max_tokens=1000,
        tools=TOOLS,
        tool_choice={"type": "any"},
        messages=[
            *QUESTION,
            {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "No feet."}]},
        ],
    )
    assert [block.type for block in answer.content] == ["text"]


@pytest.mark.parametrize("streamed", [False, True])
def test_thinking_comes_before_the_text(claude: anthropic.Anthropic, streamed: bool) -> None:
    options = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
    if streamed:
        with stream(claude, **options) as events:
            message = strictly(events.get_final_message())
    else:
        message = strictly(ask(claude, **options))
    thinking, text = message.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert thinking.thinking
    assert thinking.signature
    assert 0 < message.usage.output_tokens_details.thinking_tokens < message.usage.output_tokens


def test_max_tokens_cuts_the_answer(claude: anthropic.Anthropic) -> None:
    message = ask(claude, "tokens=50", max_tokens=7)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 7)


@pytest.mark.parametrize(
    ("finish", "expected"),
    [
        ("length", "max_tokens"),
        ("refusal", "refusal"),
        ("pause_turn", "pause_turn"),
        ("stop_sequence", "stop_sequence"),
        ("model_context_window_exceeded", "model_context_window_exceeded"),
    ],
)
def test_stop_reasons_can_be_chosen(claude: anthropic.Anthropic, finish: str, expected: str) -> None:
    message = strictly(ask(claude, f"finish={finish}"))
    assert message.stop_reason == expected
    assert (message.stop_sequence is not None) == (finish == "stop_sequence")


STATUSES = [
    (400, anthropic.BadRequestError, "invalid_request_error"),
    (401, anthropic.AuthenticationError, "authentication_error"),
    (402, anthropic.PaymentRequiredError, "billing_error"),
    (403, anthropic.PermissionDeniedError, "permission_error"),
    (404, anthropic.NotFoundError, "not_found_error"),
    (408, anthropic.RequestTimeoutError, "timeout_error"),
    (409, anthropic.ConflictError, "invalid_request_error"),
    (413, anthropic.ContentTooLargeError, "request_too_large"),
    (422, anthropic.UnprocessableEntityError, "invalid_request_error"),
    (429, anthropic.RateLimitError, "rate_limit_error"),
    (500, anthropic.InternalServerError, "api_error"),
    (503, anthropic.ServiceUnavailableError, "api_error"),
    (504, anthropic.GatewayTimeoutError, "timeout_error"),
    (529, anthropic.OverloadedError, "overloaded_error"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "error", "kind"), STATUSES)
def test_each_status_raises_the_sdks_own_error(
    claude: anthropic.Anthropic, status: int, error: type[anthropic.APIStatusError], kind: str, streamed: bool
) -> None:
    with pytest.raises(error) as caught:
        ask(claude, f"status={status}", stream=streamed)
    assert type(caught.value) is error
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.request_id == caught.value.body["request_id"]
    assert caught.value.api_message


@pytest.mark.parametrize(
    ("code", "waits"),
    [("enforced_spend_limit_reached", None), ("contract_spend_limit_reached", None), ("ramp_limit_exceeded", "1")],
)
def test_error_codes_are_details(claude: anthropic.Anthropic, code: str, waits: str | None) -> None:
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(claude, f"status=429;code={code}")
    assert caught.value.error_code == code
    assert caught.value.response.headers.get("retry-after") == waits
    assert caught.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_error_inside_a_stream_is_raised(claude: anthropic.Anthropic, after: int) -> None:
    with (
        pytest.raises(anthropic.APIStatusError) as caught,
        ask(claude, f"embedded_error={after}", stream=True) as events,
    ):
        for _ in events:
            pass
    assert caught.value.type == "overloaded_error"


@pytest.mark.parametrize("directives", ["reset", "reset_after=2", "truncate_after=2"])
def test_broken_connections_are_noticed(claude: anthropic.Anthropic, directives: str) -> None:
    with pytest.raises(anthropic.APIConnectionError):
        ask(claude, directives)
    # In a stream the SDK lets its transport's error through.
    with pytest.raises(Exception, match=r"(?i)connection|peer|reset|incomplete"), stream(claude, directives) as events:
        events.get_final_message()


def test_a_stream_that_ends_early_has_no_message_stop(claude: anthropic.Anthropic) -> None:
    with ask(claude, "end_after=2", stream=True) as events:
        kinds = [event.type for event in events]
    assert kinds[-1] == "content_block_delta"
    assert kinds.count("content_block_delta") == 2


def test_a_hang_times_out(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        ask(claude, "hang", timeout=0.3)


def test_the_sdks_own_retries_get_past_a_fault_that_heals(provider) -> None:
    with anthropic.Anthropic(base_url=provider.url, api_key="key", max_retries=2, timeout=30) as client:
        message = ask(client, "status=529;times=2;retry_after_ms=1")
    assert message.stop_reason == "end_turn"
    assert [entry["status"] for entry in provider.entries] == [529, 529, 200]


def test_an_invalid_key_and_an_old_version(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.AuthenticationError):
        ask(claude.with_options(api_key="invalid"))
    sampling = {"extra_body": {"temperature": 0.5}}
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        ask(claude, **sampling)
    older = claude.with_options(default_headers={"anthropic-version": "2023-06-01"})
    assert ask(older, **sampling).stop_reason == "end_turn"


def test_tokens_are_counted(claude: anthropic.Anthropic) -> None:
    short = claude.messages.count_tokens(model="sim-large", messages=QUESTION)
    long = claude.messages.count_tokens(
        model="sim-large", messages=[{"role": "user", "content": "The martlet never lands. " * 100}]
    )
    assert 0 < short.input_tokens < long.input_tokens
    exact = claude.messages.count_tokens(model="sim-large+usage=input:77", messages=QUESTION)
    assert exact.input_tokens == 77


def test_models_are_listed(claude: anthropic.Anthropic) -> None:
    models = list(claude.models.list())
    assert "sim-small" in {model.id for model in models}
    assert claude.models.retrieve("sim-small").lifecycle == "active"
