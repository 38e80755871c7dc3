"""What the shipped detectors catch and what they catch wrongly, counted on sentences."""

from __future__ import annotations

from collections import Counter

import pytest
from databases import Database
from Guardrails.corpora import PERSONAL, Sentence, sentences


def findings(database: Database, sentence: Sentence) -> set[str]:
    """Names of the detectors that find something."""
    rows = database.execute(
        """select d from unnest(%s::text[]) d where exists (select from ai.find_all(d, %s))
           union all select 'injection' where ai.injection_in(%s) is not null""",
        list(PERSONAL),
        sentence.text,
        sentence.text,
    )
    return {row["d"] for row in rows}


def table(title: str, counts: dict[str, Counter[str]]) -> None:
    """Prints how many of how many, for those that the detectors were written with and those kept apart."""
    print(f"\n{title:36} {'written with':>14} {'kept apart':>14}")
    for name, count in counts.items():
        cells = (f"{count[f'{part} hit']} of {count[part]}" for part in ("seen", "apart"))
        print(f"{name:36} {next(cells):>14} {next(cells):>14}")


def counted(rows: list[tuple[Sentence, bool]]) -> Counter[str]:
    count: Counter[str] = Counter()
    for sentence, hit in rows:
        part = "apart" if sentence.held_out else "seen"
        count[part] += 1
        count[f"{part} hit"] += hit
    return count


def test_what_is_caught_and_what_is_wrongly_caught(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    found = {
        name: [(one, findings(database, one)) for one in sentences(name)]
        for name in ("injection", "pii", "harmless", "hard")
    }
    caught = {"injection": counted([(one, "injection" in hits) for one, hits in found["injection"]])}
    for detector in PERSONAL:
        caught[detector] = counted([(one, detector in hits) for one, hits in found["pii"] if one.expect == detector])
    wrong = {
        "harmless, by any detector": counted([(one, bool(hits)) for one, hits in found["harmless"]]),
        "harmless, by injection": counted([(one, "injection" in hits) for one, hits in found["harmless"]]),
        "personal data, by injection": counted([(one, "injection" in hits) for one, hits in found["pii"]]),
        "injection, by any other": counted([(one, bool(hits - {"injection"})) for one, hits in found["injection"]]),
    }
    hard = {
        "injection in words of its own": counted([(o, "injection" in h) for o, h in found["hard"] if o.expect]),
        "harmless in words of injection": counted([(o, bool(h)) for o, h in found["hard"] if not o.expect]),
    }
    with capsys.disabled():
        table("caught", caught)
        table("wrongly caught", wrong)
        table("hard ones: caught, wrongly caught", hard)

    for name, rows in found.items():
        assert len(rows) >= {"hard": 60}.get(name, 200)
        assert len(rows) / 4 < sum(one.held_out for one, _ in rows) < len(rows) * 0.55
    # The least that may be caught, and the most that may be caught wrongly. docs/guardrails.md has the figures.
    assert caught["injection"]["seen hit"] >= 141
    assert caught["injection"]["apart hit"] >= 64
    assert sum(caught[detector]["seen hit"] for detector in PERSONAL) >= 134
    assert sum(caught[detector]["apart hit"] for detector in PERSONAL) >= 64
    assert wrong["harmless, by any detector"]["seen hit"] <= 1
    assert wrong["harmless, by any detector"]["apart hit"] <= 5
    assert hard["injection in words of its own"]["apart hit"] >= 6
    assert hard["harmless in words of injection"]["apart hit"] <= 5


def test_the_small_expressions_let_through_whatever_the_large_ones_find(database: Database) -> None:
    texts = [one.text for name in ("injection", "pii", "harmless", "hard") for one in sentences(name)]
    missed = database.execute(
        """select part, t from unnest(%s::text[]) t, unnest('{plain,foreign}'::text[]) part,
                  lateral (select lower(t collate "C") collate "C" as small) l
            where l.small !~ ai.injection_anchors(part) and l.small ~ ai.injection_pattern(part)""",
        texts,
    )
    assert missed == []
