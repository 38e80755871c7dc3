"""The readable table, and the page with the newest results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from Benchmarks.measuring import number

BEGIN, END = "<!-- results: written by make bench -->", "<!-- end of results -->"


def verdict(row: dict[str, Any]) -> str:
    """Each target with whether it was met; nothing where there is none."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    return "; ".join(f"{v['target']}: {words[v['met']]}" for v in row["verdicts"])


def ratios(row: dict[str, Any]) -> str:
    """How many times better than each peer, best-known peers as they were given."""
    known = {name: value for name, value in row["ratio"].items() if value is not None}
    return "; ".join(f"{number(value)} × {name}" for name, value in known.items()) or "–"


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for row in results:
        peers = "; ".join(f"{name} {number(value)}" for name, value in row["peers"].items()) or "–"
        rows.append(
            [row["benchmark"], row["what"], ratios(row), f"{number(row['ours'])} {row['unit']}", peers, verdict(row)]
        )
    return rows


HEADS = ["", "what", "better by", "Martlet", "peers, same unit", "target"]


def plain(results: list[dict[str, Any]]) -> str:
    """For a terminal: a paragraph a line of the table, ratios first."""
    lines = []
    for letter, what, better, ours, peers, target in rows_of(results):
        lines += [f"{letter}  {what}", f"     {ours:>14}   {better}"]
        if peers != "–":
            lines.append(f"     {'':>14}   {peers}")
        if target:
            lines.append(f"     {'':>14}   {target.replace('**', '')}")
    return "\n".join(lines)


def markdown(results: list[dict[str, Any]], errors: dict[str, str]) -> str:
    """The section of the page."""
    lines = ["| " + " | ".join(HEADS) + " |", "| " + " | ".join(["---"] * len(HEADS)) + " |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows_of(results)]
    remarks = [f"- {row['benchmark']}, {row['what']}: {row['remark']}" for row in results if row["remark"]]
    if remarks:
        lines += ["", *dict.fromkeys(remarks)]
    if errors:
        lines += ["", "The last try failed:", "", *(f"- {name}: {reason}" for name, reason in errors.items())]
    lines += ["", "Each was measured:", ""]
    seen: dict[str, list[str]] = {}
    for row in results:
        seen.setdefault(_conditions(row["conditions"]), []).append(row["benchmark"])
    lines += [f"- {', '.join(dict.fromkeys(letters))}: {text}" for text, letters in seen.items()]
    return "\n".join(lines)


def _conditions(c: dict[str, Any]) -> str:
    others = ", ".join(f"{name} {share}" for name, share in c["others"].items()) or "nobody above 0.02"
    return (
        f"{c['at']}, PostgreSQL {c['postgres']}, {c['processors']} × {c['processor']}, {c['memory_gb']} GB,"
        f" {c['system']}; load {c['load_before']} before, {c['load_after']} after;"
        f" others used {c['others_cores']} processors ({others})"
    )


def write(page: Path, results: list[dict[str, Any]], errors: dict[str, str]) -> None:
    """Puts the results between the page's two marks."""
    text = page.read_text()
    section = f"{BEGIN}\n{markdown(results, errors)}\n{END}"
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    assert pattern.search(text), f"{page.name} has lost its marks"
    page.write_text(pattern.sub(lambda _: section, text))
