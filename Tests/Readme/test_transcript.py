"""The reader of written-down sessions notices what is wrong in one."""

from __future__ import annotations

import transcript

TEXT = """
```psql
martlet=> select 1 as one,
martlet->   'two' as two;
 one | two
-----+-----
   1 | two
(1 row)

martlet=> select 1 / 0;
ERROR:  division by zero
martlet=> select gen_random_uuid() as id, 5 as n;
 id  | n
-----+---
 … | 5
(1 row)
martlet=> \\echo more
…
more
```
"""


def found_and_expected(text: str, url: str) -> list[tuple[list[str], list[str]]]:
    (steps,) = transcript.sessions(text)
    return [(step.expected, found) for step, found in zip(steps, transcript.run(steps, url), strict=True)]


def test_a_true_session_is_found_true(server: str) -> None:
    for expected, found in found_and_expected(TEXT, server):
        assert transcript.differs(expected, found) is None


def test_every_wrong_line_is_found(server: str) -> None:
    for right, wrong in [
        ("1 | two", "1 | three"),
        ("division by zero", "division by one"),
        ("… | 5", "… | 6"),
        ("(1 row)", "(2 rows)"),
    ]:
        assert right in TEXT
        pairs = found_and_expected(TEXT.replace(right, wrong), server)
        assert any(transcript.differs(expected, found) for expected, found in pairs), wrong


def test_a_line_that_is_missing_in_the_text_is_found(server: str) -> None:
    for line in ("(1 row)\n", "ERROR:  division by zero\n", "   1 | two\n"):
        pairs = found_and_expected(TEXT.replace(line, "", 1), server)
        assert any(transcript.differs(expected, found) for expected, found in pairs), line
