"""What the README and the pages of docs/ show happens just so: their psql sessions are run as they are written.

A `…` in a page stands for anything, and `http://127.0.0.1:PORT` for this test's simulator. Each page has a database of
its own, in which one session follows the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import transcript
from databases import Database
from processes import Simulator

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, *(page for page in sorted((REPOSITORY / "docs").glob("*.md")) if "```psql" in page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_psql_sessions_of_a_page_happen_as_written(
    page: Path, database: Database, simulator: Simulator, worker: Callable[..., object]
) -> None:
    text = re.sub(r"http://127\.0\.0\.1:\d+", simulator.base_url, page.read_text())
    sessions = transcript.sessions(text)
    assert sessions, f"{page.name} has no ```psql session"
    worker(database, env={"MARTLET_TOOLS_DATABASE_URL": database.login("ai_user").url})
    for steps in sessions:
        for step, found in zip(steps, transcript.run(steps, database.url), strict=True):
            difference = transcript.differs(step.expected, found)
            assert difference is None, f"{page.name}, at: {step.typed}\n{difference}"


def test_every_command_that_the_readme_tells_to_type_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    code = re.findall(r"```sh\n.*?```|`[^`\n]+`", README.read_text(), re.DOTALL)
    told = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(code)))
    assert told, "the README tells no make command"
    for target in told:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
