"""The wake-up handshake and the lease protocol as models, all states of which spin visits.

A model that cannot be wrong proves nothing: so each is also checked with one of its parts taken away, and must fail.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parent


def errors(model: str, folder: Path, *defined: str) -> tuple[int, str]:
    """How many errors an exhaustive search of all states finds, and what it says."""
    flags = [f"-D{name}" for name in defined]
    subprocess.run(["spin", "-a", *flags, MODELS / model], cwd=folder, check=True, timeout=60)
    subprocess.run(["cc", "-O2", "-DSAFETY", "-w", "-o", "search", "pan.c"], cwd=folder, check=True, timeout=120)
    said = subprocess.run(
        ["./search", "-m1000000"], cwd=folder, check=True, timeout=300, capture_output=True, text=True
    )
    assert "max search depth too small" not in said.stdout
    found = next(line for line in said.stdout.splitlines() if "errors:" in line)
    return int(found.rpartition("errors:")[2]), said.stdout


@pytest.mark.parametrize("model", ["handshake.pml", "lease.pml"])
def test_no_order_of_events_breaks_the_model(model: str, tmp_path: Path) -> None:
    count, said = errors(model, tmp_path)
    assert count == 0, said


@pytest.mark.parametrize(
    ("model", "defined"),
    [
        ("handshake.pml", ["NO_SECOND_LOOK"]),
        ("handshake.pml", ["UNLOCKED_BEFORE_SEEN"]),
        ("handshake.pml", ["TOLD_BEFORE_SEEN"]),
        ("handshake.pml", ["DROP_UNNOTICED", "WORKERS=1"]),
        ("lease.pml", ["NO_FENCE"]),
        ("lease.pml", ["NO_ATTEMPT"]),
        ("lease.pml", ["NO_RESCUE"]),
    ],
)
def test_without_one_of_its_parts_the_model_breaks(model: str, defined: list[str], tmp_path: Path) -> None:
    count, said = errors(model, tmp_path, *defined)
    assert count > 0, said
    assert "assertion violated" in said, said
