"""Gateways that are measured in the same rounds: LiteLLM's proxy, and TensorZero's gateway writing to PostgreSQL.

Both listen on the loopback interface and ask the same simulator as Martlet. LiteLLM keeps no books here (it runs
without a database); TensorZero writes each answer before it gives it, the only one of its ways that loses none when it
is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import databases
import psycopg
import waiting
from Benchmarks import machine, progress, tensorzero_schema
from Benchmarks.installation import ANSWER, Installation, run_bench
from Benchmarks.measuring import Figures
from Benchmarks.queue_peers import peer_python
from Benchmarks.setting import Setting
from processes import Process

LITELLM = "LiteLLM (2 workers, no database)"
TENSORZERO = "TensorZero (PostgreSQL, sync)"

_LITELLM = """
model_list:
  - model_name: bench
    litellm_params: {{model: "openai/sim-small+{answer}", api_base: "{upstream}", api_key: any}}
  - model_name: bench-stream
    litellm_params: {{model: "openai/sim-small+{stream}", api_base: "{upstream}", api_key: any}}
litellm_settings: {{telemetry: false}}
"""
_TENSORZERO = """
[gateway.observability]
enabled = true
backend = "postgres"
async_writes = false
"""
_TENSORZERO_MODEL = """
[models.{name}]
routing = ["sim"]
[models.{name}.providers.sim]
type = "openai"
api_base = "{upstream}"
api_key_location = "env::BENCH_UPSTREAM_TOKEN"
model_name = "sim-small+{directives}"
[functions.{name}]
type = "chat"
[functions.{name}.variants.one]
type = "chat_completion"
model = "{name}"
"""
# As the streams: 20 events a second each.
_STREAM = "ttft=100;rate=20;tokens={tokens}"


class Gateway:
    """A peer that takes chats by HTTP. Started when it is first asked, and left running until the benchmark is over."""

    name: str
    model = "bench"
    stream_model = "bench-stream"
    # What it does well with: more would wait in line.
    connections = 64

    def __init__(self, setting: Setting, installed: Installation, stack: contextlib.ExitStack) -> None:
        self.setting, self.installed, self.stack = setting, installed, stack
        self.upstream = f"{installed.simulator.base_url}/v1"
        self.tokens = setting.size(50, 5)
        self.token = "any"
        self.start_ms = 0.0
        self._url: str | None = None

    def launch(self) -> tuple[Process, str]:
        """Starts it; gives the process and the address of its chats."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        if self._url is None:
            with progress.doing(f"{self.name} starts"):
                began = time.perf_counter()
                self.process, self._url = self.launch()
                waiting.until(self._answers, f"an answer of {self.name}", 120, every=0.05)
                self.start_ms = (time.perf_counter() - began) * 1000
                self._ask(8, requests=100)  # its caches and connections
        return self._url

    def _answers(self) -> bool:
        assert self.process.running, f"{self.name} ended at once:\n{self.process.text[-2000:]}"
        return self._ask(1, requests=1)["answered"] == 1

    def _ask(self, connections: int, requests: int, **options: object) -> dict:
        assert self._url
        options = {"model": self.model, "token": self.token, "seconds": 6} | options
        return run_bench("http", self._url, connections=connections, requests=requests, **options)

    def start_process(self, command: list[object], env: dict[str, str]) -> Process:
        log = self.setting.folder / f"{type(self).__name__}.log"
        process = Process(command, log, env)

        def end() -> None:
            """With all that it has started."""
            for pid in machine.family(process.pid) - {process.pid}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            if process.running:
                process.kill()

        self.stack.callback(end)
        return process

    def rate(self) -> Figures:
        """Answers a second; one that failed makes the round invalid."""
        assert self.url
        report = self._ask(self.connections, requests=self.setting.size(20_000, 100))
        assert not report["failed"], f"{self.name}: {report}"
        return {"rate": report["per_second"]}

    def latency(self) -> Figures:
        assert self.url
        report = self._ask(1, requests=self.setting.size(500, 20))
        assert not report["failed"], f"{self.name}: {report}"
        return {name: report["answer_ms"][name] for name in ("p50", "p99")}

    def spike(self, clients: int) -> Figures:
        """All at once; what it refuses or breaks off is its result here."""
        assert self.url
        report = self._ask(clients, requests=self.setting.size(4_000, 100), seconds=12)
        failed = sum(report["failed"].values())
        answered = report["answered"]
        return {"settled": report["per_second"], "refused": 100 * failed / max(1, failed + answered)}

    def stream(self) -> Figures:
        """Processor time of all its processes for each event of the provider, and their memory."""
        assert self.url
        pids = machine.family(self.process.pid)
        used = sum(map(machine.processor_seconds, pids))
        count = self.setting.size(200, 4)
        report = self._ask(count, requests=count, model=self.stream_model, stream=True, seconds=30)
        used = sum(map(machine.processor_seconds, pids)) - used
        assert report["answered"] == count, f"{self.name}: {report}"
        return {"cpu_us": used / (count * self.tokens) * 1e6, "memory": sum(map(machine.memory_mb, pids))}

    def rest(self) -> Figures:
        assert self.url
        return {"memory": sum(map(machine.memory_mb, machine.family(self.process.pid))), "start": self.start_ms}


class LiteLLM(Gateway):
    name = LITELLM
    connections = 16

    def launch(self) -> tuple[Process, str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = self.setting.folder / "litellm.yaml"
        stream = _STREAM.format(tokens=self.tokens)
        config.write_text(_LITELLM.format(upstream=self.upstream, answer=ANSWER, stream=stream))
        python = peer_python("litellm")
        program = Path(python).parent / "litellm"
        # Without keys, so that it need not check one; the price map that it brings, so that it asks nobody for one.
        env = {
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        command = [python, program, "--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 2]
        return self.start_process(command, env), f"http://127.0.0.1:{port}/v1/chat/completions"


_GATEWAY = """
import sys, time, tensorzero
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=sys.argv[2], valkey_url=None, async_setup=False)
print(gateway.base_url, flush=True)
time.sleep(3600)
"""


class TensorZero(Gateway):
    name = TENSORZERO
    model = "tensorzero::function_name::bench"
    stream_model = "tensorzero::function_name::streams"

    def launch(self) -> tuple[Process, str]:
        database = self.stack.enter_context(databases.temporary(self.setting.server))
        python = peer_python("tensorzero")
        library = next(Path(python).parents[1].glob("lib/python3.*/site-packages/tensorzero/tensorzero.abi3.so"))
        tensorzero_schema.set_up(library, database.url)
        models = {"bench": ANSWER, "streams": _STREAM.format(tokens=self.tokens)}
        config = self.setting.folder / "tensorzero.toml"
        config.write_text(
            _TENSORZERO
            + "".join(
                _TENSORZERO_MODEL.format(name=name, upstream=self.upstream, directives=directives)
                for name, directives in models.items()
            )
        )
        self._database_url = database.url
        env = {"BENCH_UPSTREAM_TOKEN": secrets.token_hex(4)}
        process = self.start_process([python, "-c", _GATEWAY, config, database.url], env)
        address = waiting.until(lambda: self._announced(process), f"the address of {self.name}", 60)
        return process, f"{address}/chat/completions"

    def _announced(self, process: Process) -> str | None:
        assert process.running, f"{self.name} ended at once:\n{process.text[-2000:]}"
        found = re.search(r"http://127\.0\.0\.1:\d+/openai/v1", process.text)
        return found.group() if found else None

    def rate(self) -> Figures:
        """Every answer must have its row."""
        assert self.url
        before = self._stored()
        report = self._ask(self.connections, requests=self.setting.size(20_000, 100))
        assert not report["failed"], f"{self.name}: {report}"
        assert self._stored() - before == report["answered"], f"{self.name} stored {self._stored() - before}: {report}"
        return {"rate": report["per_second"]}

    def _stored(self) -> int:
        with psycopg.connect(self._database_url) as connection:
            row = connection.execute("select count(*) from tensorzero.chat_inferences").fetchone()
            assert row
            return row[0]


@contextlib.contextmanager
def running(setting: Setting, installed: Installation) -> Iterator[list[Gateway]]:
    """Both; none where peers are not wanted."""
    with contextlib.ExitStack() as stack:
        yield [kind(setting, installed, stack) for kind in (TensorZero, LiteLLM)] if setting.peers else []
