"""psql sessions written down in Markdown: taking them apart, running them, comparing what was said with what is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

FENCE = re.compile(r"^```psql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\w+=[*!]?[>#] ?(.*)$")
CONTINUED = re.compile(r"^\w+[-('\"$*][*!]?[>#] ?(.*)$")


@dataclass
class Step:
    """What was typed, and what is said to come back."""

    typed: str
    expected: list[str]


def sessions(markdown: str) -> list[list[Step]]:
    """The steps of each ```psql block."""
    return [_steps(block) for block in FENCE.findall(markdown)]


def _steps(block: str) -> list[Step]:
    steps: list[Step] = []
    for line in block.splitlines():
        if prompt := PROMPT.match(line):
            steps.append(Step(prompt.group(1), []))
        elif steps and (more := CONTINUED.match(line)):
            steps[-1].typed += "\n" + more.group(1)
        elif steps:
            steps[-1].expected.append(line)
        elif line.strip():
            raise AssertionError(f"a psql session begins with a prompt, not with {line!r}")
    return steps


def run(steps: list[Step], url: str) -> list[list[str]]:
    """Types the steps into one psql and returns what each one brought, errors included."""
    marker = "end of step"
    script = "".join(f"{step.typed}\n\\echo {marker}\n" for step in steps)
    done = subprocess.run(
        ["psql", "-X", "--no-align", "--set=ON_ERROR_STOP=0", "--pset=pager=off", "--pset=format=aligned", url],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    parts = done.stdout.split(marker + "\n")
    assert len(parts) == len(steps) + 1, f"psql stopped early:\n{done.stdout}"
    return [part.splitlines() for part in parts[:-1]]


def squeezed(lines: list[str]) -> list[str]:
    """Lines without what only aligns them: runs of spaces, rulers, empty lines."""
    words = (" ".join(line.split()) for line in lines)
    return [line for line in words if line and not re.fullmatch(r"[-+ ]+", line)]


def differs(expected: list[str], found: list[str]) -> str | None:
    """None if `found` is what was `expected`, else both.

    `…` stands for any text within a line, and alone on a line for any lines.
    """
    pattern = ""
    for line in squeezed(expected):
        if line in ("…", "..."):
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in re.split("…", line)) + r"\n"
    text = "".join(line + "\n" for line in squeezed(found))
    if re.fullmatch(pattern, text):
        return None
    return "--- the text says\n" + "\n".join(expected) + "\n--- psql says\n" + "\n".join(found)
