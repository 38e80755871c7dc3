"""Images, speech and transcriptions of the simulator, judged by OpenAI's own SDK."""

from __future__ import annotations

import base64
import urllib.request

import openai
import pytest
from openai.types import ImagesResponse
from openai.types.audio import Transcription, TranscriptionVerbose

WAV = b"RIFF" + bytes(range(256)) * 4


def test_images_are_images_with_usage(gpt: openai.OpenAI) -> None:
    made = gpt.images.generate(model="sim-image+big=300", prompt="A martlet.", n=2)
    made = ImagesResponse.model_validate(made.model_dump())
    pictures = [base64.b64decode(image.b64_json or "", validate=True) for image in made.data or []]
    assert [len(picture) for picture in pictures] == [300, 300]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    again = gpt.images.generate(model="sim-image+big=300", prompt="A martlet.", n=2)
    assert [image.b64_json for image in again.data or []] == [image.b64_json for image in made.data or []]


def test_an_image_may_come_as_an_address(gpt: openai.OpenAI) -> None:
    made = gpt.images.generate(model="sim-image+big=400", prompt="A martlet.", response_format="url")
    with urllib.request.urlopen((made.data or [])[0].url or "") as response:  # noqa: S310
        assert response.headers["content-type"] == "image/png"
        assert len(response.read()) == 400


def test_images_are_changed_by_a_form(gpt: openai.OpenAI) -> None:
    made = gpt.images.edit(model="sim-image", prompt="Bluer.", image=[("a.png", b"\x89PNG1"), ("b.png", b"\x89PNG2")])
    assert made.usage is not None
    assert made.usage.input_tokens_details.image_tokens == 200


def test_speech_is_bytes(gpt: openai.OpenAI) -> None:
    said = gpt.audio.speech.create(model="sim-speech+big=2000", voice="alloy", input="Hello", response_format="wav")
    assert said.response.headers["content-type"] == "audio/wav"
    assert len(said.content) == 2000


def test_a_transcription_hears_every_byte(gpt: openai.OpenAI) -> None:
    heard = gpt.audio.transcriptions.create(model="sim-hears", file=("hello.wav", WAV), prompt="names", temperature=0)
    heard = Transcription.model_validate(heard.model_dump())
    value = 0xCBF29CE484222325
    for byte in WAV:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    assert heard.text == f"I heard {len(WAV)} bytes of hello.wav: {value:016x}."
    assert heard.usage is not None
    assert heard.usage.type == "duration"
    more = gpt.audio.transcriptions.create(model="sim-hears", file=("a.wav", WAV), response_format="verbose_json")
    TranscriptionVerbose.model_validate(more.model_dump())
    assert isinstance(gpt.audio.transcriptions.create(model="s", file=("a.wav", WAV), response_format="srt"), str)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_errors_are_the_providers_own(gpt: openai.OpenAI, status: int) -> None:
    model = f"sim-x+status={status}"
    for ask in (
        lambda: gpt.images.generate(model=model, prompt="x"),
        lambda: gpt.audio.speech.create(model=model, voice="alloy", input="x"),
        lambda: gpt.audio.transcriptions.create(model=model, file=("a.wav", WAV)),
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            ask()
        assert caught.value.status_code == status
