"""PostgreSQL's own load generator, for floors: what the same server does with hand-written, minimal SQL."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


def program(name: str) -> str:
    """A program of the PostgreSQL that the benchmarks run on."""
    return str(Path(os.environ["MARTLET_PG_BIN"]) / name)


def transactions_a_second(
    url: str, folder: Path, script: str, clients: int, seconds: float | None = None, each: int | None = None
) -> float:
    """Runs the script as a transaction again and again, for `seconds` or `each` times a client."""
    file = folder / "script.sql"
    file.write_text(script)
    bounds = ["-T", str(max(1, round(seconds)))] if seconds else ["-t", str(each)]
    command = [program("pgbench"), "-n", "-M", "prepared" if "\\gset" not in script else "simple", "-c", str(clients)]
    command += ["-j", str(min(2, clients)), *bounds, "-f", str(file), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
    failed = re.search(r"^number of failed transactions: ([0-9]+)", done.stdout, re.MULTILINE)
    assert done.returncode == 0, f"pgbench failed:\n{done.stdout}\n{done.stderr}"
    assert found, done.stdout
    assert not failed or failed[1] == "0", done.stdout
    return float(found[1])
