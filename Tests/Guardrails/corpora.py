"""The sentences that detectors are counted on.

Each line of a .jsonl file is one: its text, what is to be found in it (`expect`; absent: nothing), and whether it was
kept apart while the detectors were written (`held_out`). `~` is taken out, so that scanners for leaked keys leave the
files alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PERSONAL = ("email", "phone", "card", "iban", "ip", "ssn", "secret")


@dataclass(frozen=True)
class Sentence:
    """One text, and the detector that is to find something in it."""

    text: str
    expect: str | None
    held_out: bool


def sentences(name: str) -> list[Sentence]:
    """All sentences of one file."""
    lines = (Path(__file__).parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sentence(row["text"].replace("~", ""), row.get("expect"), row.get("held_out", False)) for row in rows]
