"""One simulator for all tests of this folder, and the providers' own SDKs pointed at it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from processes import Simulator


class Provider:
    """The running simulator's own endpoints."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as response:  # noqa: S310
            return response.read()

    def post(self, path: str, body: bytes = b"") -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", data=body, timeout=30) as response:  # noqa: S310
            return response.read()

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The log since the last reset."""
        return [json.loads(line) for line in self.get("/__log?since=0").splitlines()]


@pytest.fixture(scope="session")
def simulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    program = os.environ.get("MARTLET_BIN")
    if not program or not Path(program).exists():
        pytest.fail("MARTLET_BIN does not name the martlet program: run `make test`")
    log = tmp_path_factory.mktemp("wire") / "simulator.log"
    process = Simulator([program, "simulate", "--port", "0"], log, {})
    try:
        process.base_url = process.announced_url()
        yield process
        assert process.terminate(30) == 0, process.text
    finally:
        if process.running:
            process.kill()


@pytest.fixture
def provider(simulator_process: Simulator) -> Provider:
    """The simulator with empty books."""
    provider = Provider(simulator_process.base_url)
    provider.post("/__reset")
    return provider


@pytest.fixture
def gpt(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{provider.url}/v1", api_key="key", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
def claude(provider: Provider) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=provider.url, api_key="key", max_retries=0, timeout=30) as client:
        yield client
