"""What a benchmark ran on, and what else the machine was doing meanwhile."""

from __future__ import annotations

import os
import platform
import re
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[str, int, float] | None:
    """Name, parent and seconds of processor time of a process; None: it has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return name, int(rest[1]), (int(rest[11]) + int(rest[12])) / _TICKS


def processor_seconds(pid: int) -> float:
    """How long a process and its threads have computed."""
    stat = _stat(pid)
    return stat[2] if stat else 0.0


def memory_mb(pid: int, peak: bool = False) -> float:
    """Resident memory of a process, now or at its most, in MiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0  # it has gone
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _with_children(pid: int) -> float:
    """Seconds of processor time of a process and of those of its children that have ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    return sum(map(int, text[text.rindex(")") + 2 :].split()[11:15])) / _TICKS


def _busy_seconds() -> float:
    """Of all processors together, but for those that wait."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS


def parent(pid: int) -> int:
    stat = _stat(pid)
    return stat[1] if stat else 0


def family(*roots: int) -> set[int]:
    """These processes and all that descend from them."""
    everybody = {int(entry.name): _stat(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = set(roots)
    while True:
        more = {pid for pid, stat in everybody.items() if stat and stat[1] in found} - found
        if not more:
            return found
        found |= more


def description() -> dict[str, Any]:
    """Of the machine, in words that name none of its paths."""
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "processors": os.cpu_count(),
        "processor": model[1] if model else platform.machine(),
        "memory_gb": round(int(memory[1]) / 2**20) if memory else None,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


class Watch:
    """Notes, from entering to leaving, when it was, how loaded the machine was, and who else computed."""

    def __init__(self, *own: int) -> None:
        """`own`: processes beside this one whose families are part of the benchmark."""
        self._roots = (os.getpid(), *own)
        self.conditions: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        self._began, self._load = time.time(), os.getloadavg()[0]
        self._before, self._busy = self._others(), _busy_seconds() - self._own()
        return self

    def _own(self) -> float:
        return sum(map(_with_children, family(*self._roots)))

    def _others(self) -> dict[int, tuple[str, float]]:
        own = family(*self._roots)
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        stats = ((pid, _stat(pid)) for pid in pids if pid not in own)
        return {pid: (stat[0], stat[2]) for pid, stat in stats if stat}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        elapsed = time.time() - self._began
        others = max(0.0, _busy_seconds() - self._own() - self._busy)
        busy: Counter[str] = Counter()
        for pid, (name, seconds) in self._others().items():
            busy[name] += seconds - self._before.get(pid, (name, 0.0))[1]
        cores = {name: round(seconds / elapsed, 2) for name, seconds in busy.most_common(5)}
        self.conditions = {
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self._began)),
            "seconds": round(elapsed, 1),
            "load_before": round(self._load, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "others_cores": round(others / elapsed, 2),
            "others": {name: share for name, share in cores.items() if share >= 0.02},
        }
