"""The simulator's predictions, judged by Replicate's own SDK: what it rejects or misreads is wrong on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import replicate
from replicate.exceptions import ModelError, ReplicateError

INPUT = {"prompt": "Why does the martlet never land?"}


@pytest.fixture
def client(provider: Any) -> Iterator[Callable[..., replicate.Client]]:
    made: list[replicate.Client] = []

    def connect(directives: str = "", is_known: bool = True) -> replicate.Client:
        made.append(
            replicate.Client(
                api_token="key" if is_known else "invalid", base_url=provider.url, headers={"x-simulate": directives}
            )
        )
        return made[-1]

    yield connect
    # The SDK has no way to close a client.
    for one in made:
        one._client.close()


def test_a_model_that_is_waited_for_answers_at_once(client: Callable[..., replicate.Client]) -> None:
    made = client("answer=No+feet.;usage=input:12,output:3").predictions.create(
        version="abc123", input=INPUT, wait=True
    )
    assert (made.status, "".join(made.output), made.error) == ("succeeded", "No feet.", None)
    assert (made.metrics["input_token_count"], made.metrics["output_token_count"]) == (12, 3)
    assert made.metrics["predict_time"] > 0


def test_a_prediction_is_asked_for_until_it_is_done(client: Callable[..., replicate.Client]) -> None:
    made = client("polls=2;answer=No+feet.").models.predictions.create("acme/llama", input=INPUT)
    states = [made.status]
    while made.status not in ("succeeded", "failed", "canceled"):
        made.reload()
        states.append(made.status)
    assert states == ["starting", "processing", "processing", "succeeded"]
    assert "".join(made.output) == "No feet."


def test_a_stream_gives_the_output_and_an_end(client: Callable[..., replicate.Client]) -> None:
    connection = client("answer=Z%C3%BCrich+never%0Alands")
    made = connection.models.predictions.create("acme/llama", input=INPUT, stream=True)
    events = list(made.stream())
    assert [event.event.value for event in events] == ["output"] * (len(events) - 1) + ["done"]
    assert "".join(str(event) for event in events) == "Zürich never\nlands"
    assert len({event.id for event in events}) == len(events)


def test_a_prediction_can_be_cancelled(client: Callable[..., replicate.Client]) -> None:
    made = client("polls=9").deployments.predictions.create("acme/prod", input=INPUT)
    made.cancel()
    made.reload()
    assert made.status == "canceled"


def test_a_failure_says_why(client: Callable[..., replicate.Client]) -> None:
    made = client("finish=failed;message=Out+of+memory.").models.predictions.create("acme/llama", input=INPUT)
    made.reload()
    assert (made.status, made.error, made.output) == ("failed", "Out of memory.", None)
    with pytest.raises(ModelError):
        client("finish=failed").run("acme/llama", input=INPUT, wait=False)


@pytest.mark.parametrize("status", [402, 422])
def test_errors_are_problems_with_a_status(client: Callable[..., replicate.Client], status: int) -> None:
    with pytest.raises(ReplicateError) as caught:
        client(f"status={status}").models.predictions.create("acme/llama", input=INPUT)
    assert (caught.value.status, "simulated" in caught.value.detail) == (status, True)
    with pytest.raises(ReplicateError) as caught:
        client(is_known=False).models.predictions.create("acme/llama", input=INPUT)
    assert caught.value.status == 401
