"""The real `martlet` processes that tests start, stop, freeze and kill."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import waiting


def flags(options: Mapping[str, object]) -> list[str]:
    """Command-line flags: `once=True` is `--once`, `grace_ms=5` is `--grace-ms 5`, None and False are left out."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        arguments.append("--" + name.replace("_", "-"))
        if value is not True:
            arguments.append(str(value))
    return arguments


class Process:
    """A process whose output goes to a file."""

    def __init__(self, command: Iterable[object], log: Path, env: Mapping[str, str]) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 60) -> int:
        """Waits for its end and returns its exit code (negative: the signal that ended it)."""
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def terminate(self, seconds: float = 60) -> int:
        """Asks it to stop (SIGTERM) and waits until it has."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def kill(self) -> None:
        """Kills it (SIGKILL): it gets no chance to tidy up."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def says(self, text: str, seconds: float = 30) -> str:
        """Waits until `text` is in its output; fails at once if it ends without."""

        def said() -> str | None:
            running = self.running
            output = self.text
            if text in output:
                return output
            assert running, f"{self.command} ended with {self._process.returncode} without saying {text!r}:\n{output}"
            return None

        return waiting.until(said, f"{text!r} in {self.log}", seconds)


class Simulator(Process):
    """`martlet simulate`, on a port of its own."""

    base_url: str

    def is_asked(self, count: int) -> None:
        """Waits until so many requests have come and are not answered. What is leased need not have been sent yet."""
        waiting.until(lambda: json.loads(self._get("/health"))["in_flight"] == count, f"{count} requests under way")

    def requests(self) -> list[dict[str, Any]]:
        """What it has answered, one entry a request: its own books. Waits until no request is on its way."""
        self.is_asked(0)
        entries = [json.loads(line) for line in self._get("/__log").splitlines()]
        assert not any("dropped" in entry for entry in entries), "the simulator's log was too short for this test"
        return entries

    def _get(self, path: str) -> bytes:
        # Not urllib, which asks for the connection to be closed: the end of a long answer could be cut off by that.
        with contextlib.closing(HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200, f"{path}: {response.status}"
            return response.read()

    def announced_url(self, seconds: float = 30) -> str:
        """Waits until it says where it listens, and returns that address without a path."""

        def address() -> str | None:
            found = re.search(r"http://[0-9.]+:[0-9]+", self.text)
            assert found or self.running, f"the simulator ended at once:\n{self.text}"
            return found.group() if found else None

        return waiting.until(address, "the simulator's address", seconds)


class Worker(Process):
    """`martlet work`."""


def grow_rarer(process: Worker, since: int) -> None:
    """Fails if one of its loops was busy trying in vain, in what it has logged after the character `since`.

    Delays double from a mean of 50 ms: some seconds have room for eight tries of a loop or so, else for ten times that.
    """
    tries = Counter(re.findall(r"warning (.*) failed, trying again", process.text[since:]))
    assert max(tries.values(), default=0) <= 24, tries
