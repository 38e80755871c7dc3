"""The simulator, judged by Hugging Face's own SDK, which also reads what TGI and TEI send."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable

import numpy
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    InferenceTimeoutError,
    OverloadedError,
    ValidationError,
)

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]


@pytest.fixture
def client(provider) -> Callable[..., InferenceClient]:
    """Clients of a path of the simulator, each with directives for all it asks."""

    def make(path: str, directives: str = "", **options: object) -> InferenceClient:
        options = {"token": "hf_any", "timeout": 30, **options}
        return InferenceClient(model=f"{provider.url}/{path}", headers={"x-simulate": directives}, **options)

    return make


def task(name: str) -> str:
    return f"huggingface/dedicated/{name}"


def test_chats_are_openais(client) -> None:
    chat = client("huggingface", "usage=input:9,output:3;answer=one+two")
    whole = chat.chat_completion(QUESTION)
    assert whole.choices[0].message.content == "one two"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (9, 3)
    chunks = list(chat.chat_completion(QUESTION, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two"
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize("path", ["tgi/generate", task("text-generation")])
def test_a_completion_has_text_and_details(client, path: str) -> None:
    asked = client(path, "answer=Z%C3%BCrich+%F0%9F%90%A6;usage=input:9,output:4")
    assert asked.text_generation("To be") == "Zürich 🐦"
    whole = asked.text_generation("To be", details=True)
    assert whole.generated_text == "Zürich 🐦"
    assert (whole.details.finish_reason, whole.details.generated_tokens) == ("eos_token", 4)
    short = client(path).text_generation("To be", details=True, max_new_tokens=2)
    assert short.details.finish_reason == "length"


@pytest.mark.parametrize("path", ["tgi/generate_stream", task("text-generation")])
def test_a_streamed_completion_ends_with_the_whole_text(client, path: str) -> None:
    asked = client(path, "answer=one+two+three;usage=input:9,output:4")
    tokens = list(asked.text_generation("To be", stream=True, details=True))
    assert "".join(token.token.text for token in tokens if not token.token.special) == "one two three"
    assert [token.index for token in tokens] == [1, 2, 3, 4]
    last = tokens[-1]
    assert last.generated_text == "one two three"
    assert (last.details.input_length, last.details.generated_tokens) == (9, 4)
    assert all(token.details is None for token in tokens[:-1])


def test_features_come_in_the_shapes_of_the_models(client) -> None:
    asked = client(task("feature-extraction"), "dims=8")
    one, two = asked.feature_extraction("a bird"), asked.feature_extraction(["a bird", "a stone"])
    assert one.shape == (8,)
    assert two.shape == (2, 8)
    assert numpy.allclose(two[0], one)
    assert client("tei/embed", "dims=8").feature_extraction("a bird").shape == (1, 8)


def test_labels_and_scores_are_read(client) -> None:
    labels = client("huggingface/hf-inference/models/sim%2Fclassifier").text_classification("A bird.")
    # The SDK takes the list of the first text.
    assert {entry.label for entry in labels} == {"POSITIVE", "NEGATIVE"}
    assert sum(entry.score for entry in labels) == pytest.approx(1, abs=1e-3)
    zero = client(task("zero-shot-classification")).zero_shot_classification(
        "the martlet is a bird", ["a bird", "a stone", "the sea"]
    )
    assert zero[0].label == "a bird"
    assert [entry.score for entry in zero] == sorted((entry.score for entry in zero), reverse=True)


def test_sentences_are_compared(client) -> None:
    scores = client(task("sentence-similarity")).sentence_similarity(
        "the martlet never lands", ["a stone", "the martlet lands", "the sea"]
    )
    assert len(scores) == 3
    assert max(scores) == scores[1]


def post(provider, path: str, body: dict, directives: str = "") -> tuple[int, dict, object]:
    request = urllib.request.Request(  # noqa: S310
        f"{provider.url}/{path}", json.dumps(body).encode(), {"x-simulate": directives}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            return response.status, dict(response.headers), json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.loads(error.read())


def test_text_embeddings_inference_counts_in_a_header(provider) -> None:
    status, headers, vectors = post(provider, "tei/embed", {"inputs": ["a", "b"]}, "dims=4;usage=input:12")
    assert (status, headers["x-compute-tokens"], [len(vector) for vector in vectors]) == (200, "12", [4, 4])
    _, _, ranks = post(provider, "tei/rerank", {"query": "a swift bird", "texts": ["stone", "a swift bird", "bird"]})
    assert ranks[0]["index"] == 1
    assert sorted(rank["index"] for rank in ranks) == [0, 1, 2]
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    _, _, labels = post(provider, "tei/predict", {"inputs": "a"})
    assert {entry["label"] for entry in labels} == {"POSITIVE", "NEGATIVE"}
    assert provider.entries[0]["usage"]["input"] == 12
    for path, model in [("tgi/info", "sim-small"), ("tei/info", "sim-embed")]:
        assert json.loads(provider.get(f"/{path}"))["model_id"] == model


@pytest.mark.parametrize(
    ("server", "status", "kind"),
    [("tei", 413, "validation"), ("tei", 424, "backend"), ("tei", 429, "overloaded"), ("tei", 503, "unhealthy")],
)
def test_errors_of_text_embeddings_inference_have_types(provider, server: str, status: int, kind: str) -> None:
    got, _, error = post(provider, f"{server}/embed", {"inputs": "a"}, f"status={status}")
    assert (got, error["error_type"]) == (status, kind)
    assert error["error"]


@pytest.mark.parametrize(("status", "error"), [(422, ValidationError), (424, GenerationError), (429, OverloadedError)])
def test_errors_of_text_generation_inference_have_types(client, status: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        client("tgi/generate", f"status={status}").text_generation("To be")


@pytest.mark.parametrize("after", [0, 2])
def test_an_error_inside_a_stream_is_raised(client, after: int) -> None:
    asked = client("tgi/generate_stream", f"embedded_error={after}")
    tokens = iter(asked.text_generation("To be", stream=True))
    assert all(next(tokens) for _ in range(after))
    with pytest.raises(GenerationError):
        next(tokens)


def test_the_router_wants_a_key_and_says_when_a_model_is_loading(client, provider) -> None:
    path = task("feature-extraction")
    with pytest.raises(HfHubHTTPError) as caught:
        client(path, token="invalid").feature_extraction("a")
    assert caught.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError) as caught:
        client(path, "status=503;retry_after=20").feature_extraction("a")
    assert caught.value.response.json() == {"error": "Model sim is currently loading", "estimated_time": 20.0}
    with pytest.raises(HfHubHTTPError) as caught:
        client(path, "status=402").feature_extraction("a")
    assert caught.value.response.status_code == 402
    with pytest.raises(InferenceTimeoutError):
        client(path, "hang", timeout=0.3).feature_extraction("a")
