"""The simulator's Responses API, judged by OpenAI's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import Response

USAGE = "usage=input:1000,cached:200,write:100,output:70,reasoning:30"
TOOLS = [
    {"type": "function", "name": "find_bird", "parameters": {"type": "object"}, "strict": False},
    {"type": "function", "name": "other", "parameters": None, "strict": False},
]


def ask(gpt: openai.OpenAI, directives: str = "", **options):
    return gpt.responses.create(
        model="sim-large",
        input="Why does the martlet never land?",
        extra_headers={"x-simulate": directives},
        **options,
    )


def strictly(response: Response) -> Response:
    """The SDK accepts what does not fit its types; validating again does not."""
    return Response.model_validate(response.model_dump())


def test_a_whole_answer_has_every_field(gpt: openai.OpenAI) -> None:
    response = strictly(ask(gpt, USAGE))
    assert (response.status, response.object, response.model) == ("completed", "response", "sim-large")
    assert "martlet" in response.output_text
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (1000, 70, 1070)
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (200, 100)
    assert usage.output_tokens_details.reasoning_tokens == 30


def test_a_stream_joins_to_the_whole_answer(gpt: openai.OpenAI) -> None:
    events = list(ask(gpt, f"answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands;{USAGE}", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    response = strictly(events[-1].response)
    assert text == response.output_text == "Zürich 🐦 never\nlands"
    assert response.usage.output_tokens == 70


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_come_whole_and_streamed(gpt: openai.OpenAI, streamed: bool) -> None:
    directives = "tool=find_bird,other;args=%7B%22name%22%3A%22swift%22%7D"
    answer = ask(gpt, directives, tools=TOOLS, stream=streamed)
    if streamed:
        events = list(answer)
        answer = events[-1].response
        pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == '{"name":"swift"}' * 2
    calls = strictly(answer).output
    assert [(call.type, call.name, call.arguments) for call in calls] == [
        ("function_call", "find_bird", '{"name":"swift"}'),
        ("function_call", "other", '{"name":"swift"}'),
    ]
    assert len({call.call_id for call in calls}) == 2


def test_a_result_of_a_tool_is_answered_in_text(gpt: openai.OpenAI) -> None:
    (call,) = ask(gpt, tools=TOOLS, tool_choice="required").output
    answer = gpt.responses.create(
        model="sim-large",
        tools=TOOLS,
        tool_choice="required",
        input=[
            {"role": "user", "content": "Why?"},
            call.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": call.call_id, "output": "No feet."},
        ],
    )
    assert [item.type for item in answer.output] == ["message"]


def test_a_limit_makes_the_answer_incomplete(gpt: openai.OpenAI) -> None:
    response = strictly(ask(gpt, "tokens=50", max_output_tokens=7))
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 7


def test_a_job_is_done_after_so_many_questions(gpt: openai.OpenAI, provider: Any) -> None:
    made = strictly(ask(gpt, f"polls=2;{USAGE}", background=True))
    assert (made.status, made.background, made.usage) == ("queued", True, None)
    states = [strictly(gpt.responses.retrieve(made.id)) for _ in range(3)]
    assert [state.status for state in states] == ["in_progress", "in_progress", "completed"]
    assert states[-1].usage.output_tokens == 70
    # On the provider's books it is once.
    assert [entry["usage"] is not None for entry in provider.entries] == [True, False, False, False]


def test_a_job_can_be_cancelled(gpt: openai.OpenAI) -> None:
    made = ask(gpt, "polls=9", background=True)
    assert strictly(gpt.responses.cancel(made.id)).status == "cancelled"
    assert strictly(gpt.responses.retrieve(made.id)).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        gpt.responses.retrieve("resp_0000000000000001")


def test_a_stream_of_a_job_goes_on_where_it_broke_off(gpt: openai.OpenAI) -> None:
    whole = list(ask(gpt, "tokens=6", background=True, stream=True))
    name = whole[0].response.id
    for after in (0, 3, len(whole) - 2):
        rest = list(gpt.responses.retrieve(name, stream=True, starting_after=after))
        assert [event.sequence_number for event in rest] == list(range(after + 1, len(whole)))


def test_an_error_inside_a_stream_is_one(gpt: openai.OpenAI) -> None:
    events = list(ask(gpt, "tokens=9;embedded_error=2;code=rate_limit_exceeded", stream=True))
    assert (events[-1].type, events[-1].code) == ("error", "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("directives", "error"),
    [
        ("status=400", openai.BadRequestError),
        ("status=401", openai.AuthenticationError),
        ("status=429", openai.RateLimitError),
        ("status=500", openai.InternalServerError),
    ],
)
def test_errors_have_the_class_of_their_status(gpt: openai.OpenAI, directives: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        ask(gpt, directives)
    made = ask(gpt, f"{directives};at=poll;times=1", background=True)
    with pytest.raises(error):
        gpt.responses.retrieve(made.id)
    assert gpt.responses.retrieve(made.id).status == "completed"
