"""A megabyte made to be slow: no detector may hang on it. Times are printed, and bounded only by a statement timeout
that is many times what they take."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import psycopg
import pytest
from databases import Database
from Guardrails.corpora import PERSONAL

SIZE = 1_000_000
PATIENCE = "5s"
TENANT = "0a000000-0000-7000-8000-000000000001"
# What detectors and phrases are made of, to be put together in any order.
WORDS = """
ignore disregard forget all any of the your previous prior above system prompt instructions rules reveal show print me
new you are now act as ai without with no restrictions never refuse ohne regeln du bist antworte eres sin model answer
do not follow that were given stop tel call phone ssn password= token: bearer sk- eyJ ://a:b@ DE89 4111 0171
"""
# A line each; | marks where blanks belong to it.
REPEATED = r"""
a
4
@
a.
a@
a@a.
 |
-
\n
😀
\u200b
\u0315\u0316
\ue000
(
:
4111 |
4111 1111 1111 1111, |
4111111111111112 |
DE89 3704 0044 0532 0130 00, |
DE89370400440532013001 |
DE89 |
a@b.co |
1.1.1.1 |
::1 |
1.
tel |
tel 1 2 3 4 5 6 7 |
+1
ssn 078-05-112 |
sk-
eyJa.
-----BEGIN PRIVATE KEY-----
password=a1b2c3 |
password=
://a:bcd@ |
ignore all |
i g n o r e |
1gn0r3 4ll |
𝐢𝐠𝐧𝐨𝐫𝐞
<|im_
![x](https://a?b=
[EMAIL_1]
answer x act you are ai with no y without |
忽略之前
игнорируй все |
"""
ALPHABETS = {
    "digits and dashes": "1234567890 -",
    "dates": "0123-. /",
    "IBAN letters": "DE12 ",
    "address letters": "a@.-_",
    "IP letters": "12.:",
    "hexadecimal": "ab1:",
    "ASCII": "".join(map(chr, range(32, 127))),
    "letters of ignore": "ignore ",
    "brackets": "([{<>}])!\\|",
    "wide characters": "".join(map(chr, range(0xA0, 0x3000))),
}


def inputs(dice: random.Random) -> Iterator[tuple[str, str]]:
    """A name and a megabyte each."""
    for line in REPEATED.strip("\n").splitlines():
        unit = line.removesuffix("|")
        if "\\" in unit:
            unit = unit.encode("ascii").decode("unicode_escape")
        yield f"only {line.removesuffix('|')}", unit * (SIZE // len(unit.encode()))
    for name, letters in ALPHABETS.items():
        yield f"any {name}", "".join(dice.choices(letters, k=SIZE // max(len(c.encode()) for c in letters)))
    for name, between in {"blanks": " ", "nothing": "", "anything": " .-\n_*\u200b"}.items():
        pieces = WORDS.split()
        words: list[str] = []
        length = 0
        while length < SIZE - 50:
            words.append(dice.choice(pieces) + (dice.choice(between) if between else ""))
            length += len(words[-1].encode())
        yield f"words with {name} between", "".join(words)
    yield "one long address", "a" * (SIZE - 6) + "@b.co "
    yield "an at sign at the end", "4" * (SIZE - 1) + "@"


def milliseconds(connection: psycopg.Connection[dict[str, object]], query: str, *arguments: object) -> float:
    """How long it took, the way there and back included."""
    began = time.perf_counter()
    connection.execute(query, arguments)
    return (time.perf_counter() - began) * 1000


def impatient(database: Database) -> psycopg.Connection[dict[str, object]]:
    connection = database.connect()
    connection.execute(f"set statement_timeout = '{PATIENCE}'")
    return connection


def report(capsys: pytest.CaptureFixture[str], title: str, times: list[tuple[float, str]]) -> None:
    with capsys.disabled():
        print(f"\n{title}, the slowest of {len(times)}:")
        for taken, name in sorted(times, reverse=True)[:5]:
            print(f"  {taken:7.1f} ms  {name}")


def test_no_detector_hangs_on_a_megabyte(
    database: Database, dice: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = impatient(database)
    times = []
    for name, text in inputs(dice):
        for detector in PERSONAL:
            query = "select f.excess from ai.find_in(%s, ai.detector_pattern(%s), %s) f"
            times.append((milliseconds(connection, query, detector, detector, text), f"{detector}: {name}"))
        times.append((milliseconds(connection, "select ai.injection_in(%s)", text), f"injection: {name}"))
        times.append((milliseconds(connection, "select ai.is_blank(%s)", text), f"empty: {name}"))
    report(capsys, "one detector on a megabyte", times)


def guarded(database: Database) -> psycopg.Connection[dict[str, object]]:
    """A database with a rule of every kind, each redacting where it can, which takes longer than to reject."""
    database.execute("insert into ai.tenants (id, name) values (%s, 'hostile')", TENANT)
    database.execute(
        """insert into ai.guardrails (tenant_id, name, detector, action, restore, position, options)
           select null, d, d, case when d in ('empty', 'length', 'injection') then 'flag' else 'redact' end,
                  d not in ('empty', 'length', 'injection'), n,
                  case d when 'length' then '{"max_characters": 10000000}'
                         when 'terms' then '{"terms": ["acme", "top secret", "größe"]}'
                         when 'pattern' then '{"pattern": "PRJ-[0-9]{4,8}"}' else '{}' end::jsonb
             from string_to_table('empty length injection email phone card iban ip ssn secret terms pattern', ' ')
                  with ordinality u (d, n)"""
    )
    return impatient(database)


def test_all_rules_together_do_not_hang_on_a_megabyte(
    database: Database, dice: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = guarded(database)
    query = "select rejected from ai.guard_input(%s, gen_random_uuid(), 'u', 'chat', %s, null)"
    times = [(milliseconds(connection, query, TENANT, text), name) for name, text in inputs(dice)]
    report(capsys, "all rules on a megabyte, redacting", times)


def test_a_megabyte_of_messages_is_one_text(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    connection = guarded(database)
    small = [{"role": "user", "content": "a"}] * 30_000
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}] * 15_000
    one = [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]
    query = "select messages from ai.guard_input(%s, gen_random_uuid(), 'u', 'chat', null, %s)"
    times = []
    for name, messages in {"messages": small, "messages of parts": parts, "parts of one message": one}.items():
        for what, extra in {"harmless": [], "redacted": [{"role": "user", "content": "a@b.co"}]}.items():
            value = psycopg.types.json.Jsonb([*messages, *extra])
            times.append((milliseconds(connection, query, TENANT, value), f"{name}, {what}"))
    report(capsys, "a megabyte of messages", times)


@pytest.mark.parametrize(
    "pattern",
    [
        "a.{0,50}b",
        "a[b-z]{7}b",
        "(?:[ab][ac]){5}d",
        "[a-c]{1,20}-[a-c]{1,20}d",
        r"\d{4}-\d{4}-\d{4}",
        "(?:a|ab|abc){1,9}d",
        "a.{3}b.{0,8}c",
    ],
)
def test_a_pattern_that_is_allowed_does_not_hang(
    database: Database, dice: random.Random, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    connection = impatient(database)
    times = []
    for letters in ("ab", "abc", "ac-", "0123-", "acd", "abcdefghijklmnopqrstuvwxyz -"):
        text = "".join(dice.choices(letters, k=SIZE))
        query = "select f.excess from ai.find_in('pattern', ai.pattern_expression(%s, false), %s) f"
        times.append((milliseconds(connection, query, pattern, text), f"{pattern} on any of {letters}"))
    report(capsys, "a tenant's pattern", times)


def test_terms_at_their_bound_do_not_hang(
    database: Database, dice: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    connection = impatient(database)
    times = []
    for count, length in ((100, 20), (20, 100)):
        for letters in ("ab", "abcdefghij ", "абв", "éàй"):
            terms = ["".join(dice.choices(letters, k=length - 1)) + "x" for _ in range(count)]
            text = " ".join(dice.choice(terms)[:-1] for _ in range(SIZE // (length * len(letters[0].encode()))))
            query = "select f.excess from ai.find_in('terms', ai.terms_expression(%s), %s) f"
            times.append((milliseconds(connection, query, terms, text), f"{count} terms of {length} of {letters}"))
    report(capsys, "terms", times)
