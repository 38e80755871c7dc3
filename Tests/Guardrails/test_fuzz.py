"""Texts at random: detectors never raise, say the same twice, and what is redacted comes back as it was."""

from __future__ import annotations

import random
import uuid

import psycopg
from databases import Database
from Guardrails.corpora import PERSONAL, sentences

TENANT = uuid.UUID("0a000000-0000-7000-8000-000000000001")
PLACEHOLDERS = "[EMAIL_1] [EMAIL_2] [CARD_1] [PATTERN_1] [TERM_1] [EMAIL_999999999] [[EMAIL_1]] EMAIL_1 [ ] _1"
FINDINGS = "acme|a b|a@b.co|4111 1111 1111 1111|192.168.0.1|tel 0171 2345678|password=a1b2c3d4"
RULES = """
insert into ai.guardrails (tenant_id, name, detector, action, restore, position, options)
select %s, r ->> 0, r ->> 0, 'redact', true, (random() * 100)::integer, coalesce(r -> 1, '{}')
  from jsonb_array_elements('[
    ["email"], ["phone"], ["card"], ["iban"], ["ip"], ["ssn"], ["secret"],
    ["terms", {"terms": ["acme", "email", "a b"]}],
    ["pattern", {"pattern": "[A-Z_]{2,9}[0-9]?|[0-9]{1,3}|.x|\\\\s[\\\\]]"}]]') r
"""


def text(dice: random.Random, pieces: list[str]) -> str:
    """Up to forty pieces of sentences, placeholders and characters of any plane but NUL and surrogates."""
    parts = []
    for _ in range(dice.randrange(1, 40)):
        kind = dice.randrange(5)
        if kind == 0:
            parts.append(dice.choice(PLACEHOLDERS.split()))
        elif kind == 1:
            piece = dice.choice(pieces)
            start = dice.randrange(len(piece))
            parts.append(piece[start : start + dice.randrange(1, 60)])
        elif kind == 2:
            parts.append(dice.choice(FINDINGS.split("|")))
        elif kind == 3:
            parts.append(dice.choice([" ", "\n", ", ", "", "\ue000", "\u200b", "x"]))
        else:
            points = (
                dice.choice([dice.randrange(1, 0x80), dice.randrange(1, 0xD800), dice.randrange(0xE000, 0x110000)])
                for _ in range(5)
            )
            parts.append("".join(map(chr, points)))
    return "".join(parts)


def test_detectors_never_raise_and_say_the_same_twice(database: Database, dice: random.Random) -> None:
    pieces = [one.text for name in ("injection", "pii", "harmless") for one in sentences(name)]
    query = """select d, array(select ai.find_all(d, %(text)s)) as found,
                      array(select ai.find_all(d, %(text)s)) as again
                 from unnest(%(detectors)s::text[]) d
               union all
               select 'injection', array[ai.injection_in(%(text)s)], array[ai.injection_in(%(text)s)]"""
    connection = database.connect()
    for _ in range(200):
        value = text(dice, pieces)
        for row in connection.execute(query, {"text": value, "detectors": list(PERSONAL)}):
            assert row["found"] == row["again"], (row["d"], value)
            if row["d"] != "injection":
                assert all(found in value for found in row["found"]), (row["d"], value)


def test_what_is_redacted_comes_back(database: Database, dice: random.Random) -> None:
    pieces = [one.text for name in ("pii", "harmless") for one in sentences(name)]
    connection = database.connect()
    connection.execute("insert into ai.tenants (id, name) values (%s, 'fuzz')", [TENANT])
    redacted = 0
    for round_ in range(200):
        if round_ % 30 == 0:
            connection.execute("delete from ai.guardrails")
            connection.execute(RULES, [TENANT])
        value = text(dice, pieces)
        generation = uuid.uuid4()
        one = connection.execute(
            "select prompt, rejected from ai.guard_input(%s, %s, 'u', 'chat', %s, null)", [TENANT, generation, value]
        ).fetchone()
        assert one["rejected"] is None, value
        redacted += one["prompt"] != value
        back = connection.execute(
            "select text, rejected from ai.guard_output(%s, %s, 'u', %s)", [TENANT, generation, one["prompt"]]
        ).fetchone()
        assert back == {"text": value, "rejected": None}
    assert redacted > 100
    assert connection.execute("select from ai.redactions").fetchone() is None


def test_redacted_messages_come_back(database: Database, dice: random.Random) -> None:
    pieces = [one.text for one in sentences("pii")]
    connection = database.connect()
    connection.execute("insert into ai.tenants (id, name) values (%s, 'fuzz')", [TENANT])
    connection.execute(RULES, [TENANT])
    for _ in range(100):
        messages = []
        for _ in range(dice.randrange(1, 6)):
            parts = [{"type": "text", "text": text(dice, pieces)} for _ in range(dice.randrange(1, 4))]
            content = dice.choice(
                [parts[0]["text"], parts, [*parts, {"type": "image_url", "image_url": {"url": "a@b.co"}}]]
            )
            messages.append(
                {"role": dice.choice(["user", "system", "tool", "assistant"]), "content": content, "name": "n"}
            )
        generation = uuid.uuid4()
        one = connection.execute(
            "select messages, rejected from ai.guard_input(%s, %s, 'u', 'chat', null, %s)",
            [TENANT, generation, psycopg.types.json.Jsonb(messages)],
        ).fetchone()
        assert one["rejected"] is None
        texts = "select array_agg(t.text) as texts from ai.message_texts(%s) t"
        before, after = (
            connection.execute(texts, [psycopg.types.json.Jsonb(m)]).fetchone()["texts"]
            for m in (messages, one["messages"])
        )
        assert len(before) == len(after)
        # The placeholders of all messages, restored at once.
        mark = "\U0010fffd\U0010fffd"
        joined = mark.join(after)
        back = connection.execute(
            "select text from ai.guard_output(%s, %s, 'u', %s)", [TENANT, generation, joined]
        ).fetchone()
        assert back["text"] == mark.join(before)
