"""The simulator, judged by Ollama's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import ollama
import pytest

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "find_bird", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}},
    },
    {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "properties": {}}}},
]


@pytest.fixture
def client(provider) -> Iterator[Callable[..., ollama.Client]]:
    """Clients of the simulator, each with directives for all it asks."""
    opened: list[ollama.Client] = []

    def make(directives: str = "", **options: object) -> ollama.Client:
        options = {"timeout": 30, **options}
        opened.append(ollama.Client(host=f"{provider.url}/ollama", headers={"x-simulate": directives}, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_a_whole_answer_has_every_field(client) -> None:
    answer = client("usage=input:100,output:7").chat("sim-small", QUESTION)
    assert (answer.model, answer.done, answer.done_reason) == ("sim-small", True, "stop")
    assert answer.message.role == "assistant"
    assert "martlet" in answer.message.content
    assert (answer.prompt_eval_count, answer.eval_count) == (100, 7)
    assert answer.created_at.endswith("Z")
    assert answer.total_duration > answer.eval_duration > 0


def test_a_stream_joins_to_the_whole_answer(client) -> None:
    directives = "answer=Z%C3%BCrich%20%F0%9F%90%A6+never%0Alands;usage=input:9,output:3"
    lines = list(client(directives).chat("sim-small", QUESTION, stream=True))
    assert "".join(line.message.content for line in lines) == "Zürich 🐦 never\nlands"
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1].prompt_eval_count, lines[-1].eval_count) == (9, 3)
    whole = client(directives).chat("sim-small", QUESTION)
    assert whole.message.content == "Zürich 🐦 never\nlands"


def test_thoughts_come_before_the_text(client) -> None:
    lines = list(client().chat("sim-small", QUESTION, stream=True, think=True))
    thinking = [bool(line.message.thinking) for line in lines]
    assert thinking == [True] + [False] * (len(lines) - 1)
    assert client().chat("sim-small", QUESTION, think="low").message.thinking
    assert not client().chat("sim-small", QUESTION, think=False).message.thinking


@pytest.mark.parametrize("stream", [False, True])
def test_tools_are_called_with_arguments_as_objects(client, stream: bool) -> None:
    asked = client('tool=find_bird,other;args={"name":"martlet","n":[1]}')
    answer = asked.chat("sim-small", QUESTION, tools=TOOLS, stream=stream)
    calls = [call for line in (answer if stream else [answer]) for call in line.message.tool_calls or []]
    assert [call.function.name for call in calls] == ["find_bird", "other"]
    assert calls[0].function.arguments == {"name": "martlet", "n": [1]}
    ended = asked.chat(
        "sim-small",
        [
            *QUESTION,
            {"role": "assistant", "tool_calls": [calls[0]]},
            {"role": "tool", "tool_name": "find_bird", "content": "x"},
        ],
        tools=TOOLS,
    )
    assert not ended.message.tool_calls
    assert ended.message.content


def test_options_limit_and_formats_shape_the_answer(client) -> None:
    short = client().chat("sim-small", QUESTION, options={"num_predict": 3})
    assert (short.done_reason, short.eval_count) == ("length", 3)
    assert client().chat("sim-small", QUESTION, options={"num_predict": -1}).done_reason == "stop"
    assert client().chat("sim-small", QUESTION, format="json").message.content.startswith("{")
    assert client().chat("sim-small", QUESTION, format={"type": "object"}).message.content.startswith("{")


def test_completions_are_answered_whole_and_streamed(client) -> None:
    asked = client("answer=to+be")
    whole = asked.generate("sim-small", "To be or not")
    assert (whole.response, whole.done) == ("to be", True)
    lines = list(asked.generate("sim-small", "To be or not", stream=True))
    assert "".join(line.response for line in lines) == "to be"
    assert lines[-1].done


def test_texts_are_embedded_in_their_order(client) -> None:
    one = client().embed("sim-embed", "a bird")
    assert [len(vector) for vector in one.embeddings] == [384]
    two = client("dims=8").embed("sim-embed", ["a bird", "a stone"])
    assert [len(vector) for vector in two.embeddings] == [8, 8]
    assert two.prompt_eval_count > 0
    three = client().embed("sim-embed", ["a bird", "a stone", "a bird"], dimensions=4).embeddings
    assert three[0] == three[2] != three[1]


@pytest.mark.parametrize(
    ("status", "words"), [(400, "refused"), (404, "not found"), (429, "refused"), (500, "error"), (503, "server busy")]
)
def test_errors_are_ollamas(client, status: int, words: str) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            list(client(f"status={status}").chat("sim-small", QUESTION, stream=stream))
        assert caught.value.status_code == status


@pytest.mark.parametrize("after", [0, 2])
def test_an_error_on_a_line_of_a_stream_is_raised(client, after: int) -> None:
    lines = iter(client(f"embedded_error={after}").chat("sim-small", QUESTION, stream=True))
    assert all(next(lines).message.content for _ in range(after))
    with pytest.raises(ollama.ResponseError, match="an error was encountered"):
        next(lines)


@pytest.mark.parametrize("directives", ["reset", "reset_after=2", "truncate_after=2"])
@pytest.mark.parametrize("stream", [False, True])
def test_broken_connections_are_noticed(client, directives: str, stream: bool) -> None:
    with pytest.raises((httpx.HTTPError, ConnectionError)):
        list(client(directives).chat("sim-small", QUESTION, stream=stream))


def test_a_stream_that_ends_early_is_never_done(client) -> None:
    lines = list(client("end_after=2").chat("sim-small", QUESTION, stream=True))
    assert len([line for line in lines if line.message.content]) == 2
    assert not any(line.done for line in lines)


def test_a_broken_line_is_no_json_and_a_hang_times_out(client) -> None:
    with pytest.raises(ValueError, match=r"Expecting|Unterminated|Invalid"):
        list(client("malformed").chat("sim-small", QUESTION, stream=True))
    with pytest.raises(httpx.TimeoutException):
        client("hang", timeout=0.3).chat("sim-small", QUESTION)


def test_models_are_listed_and_the_books_are_kept(client, provider) -> None:
    assert "sim-small" in {model.model for model in client().list().models}
    client("tag=a").chat("sim-small+usage=output:5", QUESTION)
    entry = provider.entries[-1]
    assert (entry["provider"], entry["endpoint"], entry["tag"]) == ("ollama", "/ollama/api/chat", "a")
    assert (entry["usage"]["output"], entry["usage_reported"], entry["complete"]) == (5, True, True)
