"""The simulator's books, compared with what a client saw."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import anthropic
import openai
import pytest
import waiting
from processes import Process, Simulator

QUESTION = [{"role": "user", "content": "Why does the martlet never land?"}]


def test_every_answer_is_in_the_books_with_its_usage(provider, gpt: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    completion = gpt.chat.completions.create(model="sim-small+tag=a", messages=QUESTION)
    message = claude.messages.create(model="sim-large+tag=b", max_tokens=50, messages=QUESTION)
    vector = gpt.embeddings.create(model="sim-embed+tag=c", input="bird", dimensions=4)
    first, second, third = provider.entries
    assert [entry["seq"] for entry in provider.entries] == [1, 2, 3]
    assert [entry["tag"] for entry in provider.entries] == ["a", "b", "c"]
    assert first["request_id"] == completion._request_id
    assert first["model"] == "sim-small+tag=a"
    assert first["usage"]["input"] == completion.usage.prompt_tokens
    assert first["usage"]["output"] == completion.usage.completion_tokens
    assert second["request_id"] == message._request_id
    assert second["usage"]["input"] == message.usage.input_tokens
    assert second["usage"]["output"] == message.usage.output_tokens
    assert third["usage"] == {**third["usage"], "input": vector.usage.prompt_tokens, "output": 0}
    assert all(entry["complete"] and entry["usage_reported"] and not entry["client_gone"] for entry in provider.entries)
    assert [json.loads(line)["seq"] for line in provider.get("/__log?since=2").splitlines()] == [3]


def test_body_hashes_are_fnv_1a(provider) -> None:
    body = json.dumps({"model": "m", "messages": QUESTION}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    host, port = provider.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):
            received += part
    value = 0xCBF29CE484222325
    for byte in body:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    (entry,) = provider.entries
    assert entry["body_hash"] == f"{value:016x}"
    assert entry["body_bytes"] == len(body)
    assert entry["bytes_sent"] == len(received)


def test_a_client_that_leaves_is_noticed(provider, claude: anthropic.Anthropic) -> None:
    with claude.messages.create(
        model="sim-large+tokens=500;rate=100", max_tokens=1000, messages=QUESTION, stream=True
    ) as events:
        for event in events:
            if event.type == "content_block_delta":
                break
    (entry,) = waiting.until(lambda: provider.entries, "the entry of a client that left")
    assert entry["client_gone"]
    assert not entry["complete"]
    assert not entry["usage_reported"]
    assert 0 < entry["usage"]["output"] < 500


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Simulator]]:
    """Starts a simulator of the test's own; whatever still runs at the end is killed."""
    started: list[Process] = []

    def run(*arguments: object) -> Simulator:
        process = Simulator([os.environ["MARTLET_BIN"], "simulate", *arguments], tmp_path / f"{len(started)}.log", {})
        started.append(process)
        return process

    yield run
    for process in started:
        if process.running:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_its_log_written(start, tmp_path: Path, number: signal.Signals) -> None:
    log, port = tmp_path / "log.jsonl", tmp_path / "port"
    process = start("--log", log, "--port-file", port, "--answer", "Fixed; always = this")
    url = process.announced_url()
    assert url.endswith(f":{port.read_text().strip()}")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0) as client:
        answer = client.chat.completions.create(model="m", messages=QUESTION)
        assert answer.choices[0].message.content == "Fixed; always = this"
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="m+hang", messages=QUESTION, timeout=0.2)
    process.signal(number)
    assert process.wait(30) == 0
    assert process.text.count("\n") == 1
    assert [json.loads(line)["fault"] for line in log.read_text().splitlines()] == [None, "hang"]


def test_a_taken_port_and_a_wrong_directive_are_told(start) -> None:
    first = start()
    port = first.announced_url().rsplit(":", 1)[1]
    second = start("--port", port)
    assert second.wait(30) not in (0, None)
    assert "listening" not in second.text
    wrong = start("--directives", "statsu=500")
    assert wrong.wait(30) == 2
    assert "statsu" in wrong.text


def test_defaults_of_the_command_line_apply_to_requests_that_say_nothing(start) -> None:
    process = start("--directives", "status=503;times=1", "--latency-ms", 5, "--tokens-per-second", 1000)
    with openai.OpenAI(base_url=f"{process.announced_url()}/v1", api_key="key", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", messages=QUESTION)
        assert client.chat.completions.create(model="m", messages=QUESTION).choices
