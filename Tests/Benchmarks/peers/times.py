"""What the peers' programs share: times that mean the same in two processes, and percentiles."""

from __future__ import annotations

import json
import subprocess
import sys
import time


def now_ms() -> float:
    """The same clock in all processes of the machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) * 1000


def percentile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def of_pickups(committed: dict[str, float], started: dict[str, float], warm_up: int) -> dict[str, float]:
    """From each commit to the start of its job; the first ones do not count."""
    times = [max(0.0, started[key] - committed[key]) for key in sorted(committed, key=int)[warm_up:]]
    return {"p50": percentile(times, 0.50), "p99": percentile(times, 0.99)}


def enqueuer(*arguments: object) -> subprocess.Popen[str]:
    """This same program in a process of its own, which enqueues and prints when each job was committed."""
    return subprocess.Popen([sys.executable, sys.argv[0], *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def answer(**figures: float) -> None:
    print(json.dumps(figures))
