"""A provider may do what it likes: every call of it has a clear end, the worker lives, and the others do not notice."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hostile
import pytest
from databases import Database, Member
from echo import EchoProvider
from hostile import HostileProvider
from processes import Worker
from simulated import QUICK, all_ended, calls

# Of the worker, in MiB, after all of it. It is 250 to 600, because what is being given up counts no more before it is
# gone; without the bound on all answers together 2,500, and one endless answer without a bound of its own takes all.
MEMORY = 1200


@dataclass
class Misdeed:
    """What the provider does, and the class of error that comes of it: whole, and in a stream."""

    does: Callable[[hostile.Visitor], None]
    whole: str
    streamed: str | None = None
    name: str = ""
    deadline: int = 120_000

    def __post_init__(self) -> None:
        self.name = self.name or self.does.__name__
        self.streamed = self.streamed or self.whole


SHORT = 8_000
MISDEEDS = [
    # Compressed, which was not asked for.
    Misdeed(hostile.gzipped, "malformed"),
    Misdeed(hostile.transfer_gzipped, "malformed"),
    # Without an end.
    Misdeed(hostile.endless_body, "too_large"),
    Misdeed(hostile.endless_unit, "too_large"),
    Misdeed(hostile.endless_whites, "too_large"),
    Misdeed(hostile.endless_nulls, "too_large"),
    Misdeed(hostile.endless_text, "too_large", "too_large"),
    Misdeed(hostile.endless_head, "too_large"),
    Misdeed(hostile.endless_field, "too_large"),
    Misdeed(hostile.informational, "too_large"),
    Misdeed(hostile.upgrade, "malformed"),
    Misdeed(hostile.endless_trailers, "too_large"),
    Misdeed(hostile.error_page, "transient"),
    # Without haste.
    Misdeed(hostile.slow_head, "deadline", deadline=SHORT),
    Misdeed(hostile.slow_body, "deadline", deadline=SHORT),
    Misdeed(hostile.silent, "deadline", deadline=SHORT),
    # Costly to read.
    Misdeed(hostile.many_numbers, "malformed", "unknown"),
    Misdeed(hostile.deep, "malformed", "unknown"),
    # Not HTTP.
    Misdeed(hostile.no_http, "malformed"),
    Misdeed(hostile.other_protocol, "malformed"),
    Misdeed(hostile.no_status, "malformed"),
    Misdeed(hostile.negative, "malformed"),
    Misdeed(hostile.bad_chunks, "unknown"),
    Misdeed(hostile.long_chunk, "unknown"),
    Misdeed(hostile.short, "unknown"),
    Misdeed(hostile.reset, "unknown"),
    # Not an answer.
    Misdeed(hostile.wrong_kind, "malformed"),
    Misdeed(hostile.empty, "malformed"),
    Misdeed(hostile.error_of_lies, "permanent"),
    *(
        Misdeed(hostile.redirect(status), "permanent", name=f"redirect_{status}")
        for status in (301, 302, 303, 307, 308)
    ),
]


@pytest.fixture
def provider() -> Iterator[HostileProvider]:
    """A provider with every misdeed at a path of its own."""
    with HostileProvider() as server:
        yield server


def memory(process: Worker) -> int:
    """The most that the process ever held, in MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) >> 10


def prepared(database: Database) -> None:
    settings = {**QUICK, "max_attempts": 1}
    database.execute("delete from ai.breaker_settings")
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_whatever_a_provider_does_has_a_clear_end_and_the_others_go_on(
    database: Database, member: Member, worker: Callable[..., Worker], provider: HostileProvider, stream: bool
) -> None:
    prepared(database)
    asked = {}
    app = database.connect(user=member)
    with EchoProvider() as honest:
        database.model(database.provider("honest", honest.base_url), "honest/model")
        process = worker(database, log_level="debug", env={"MARTLET_ANSWER_MEMORY": "128"})

        def ask(model: str, deadline: int = 120_000) -> object:
            row = app.execute(
                "insert into ai.generations (prompt, model, stream, deadline_ms) values (%s, %s, %s, %s) returning id",
                [f"say {model}", model, stream, deadline],
            ).fetchone()
            return row["id"]

        beside = []
        for misdeed in MISDEEDS:
            own = database.provider(misdeed.name, provider.at(misdeed.does, misdeed.name) + "/v1")
            database.model(own, f"{misdeed.name}/model")
            asked[ask(f"{misdeed.name}/model", misdeed.deadline)] = misdeed
            beside += [ask("honest/model") for _ in range(3)]
        all_ended(database, 120)
        rows = {row["id"]: row for row in database.execute("select id, status, output, error from ai.generations")}
        wrong = []
        for generation_id, misdeed in asked.items():
            row, expected = rows[generation_id], misdeed.streamed if stream else misdeed.whole
            error = row["error"] or {}
            if (row["status"], error.get("class")) != ("failed", expected) or not error.get("message"):
                wrong.append(f"{misdeed.name}: {row['status']}, {error}; expected {expected}")
            if [call["status"] for call in calls(database, generation_id)] != ["failed"]:
                wrong.append(f"{misdeed.name}: {len(calls(database, generation_id))} calls on the books")
        assert not wrong, "\n".join(wrong)
        assert {rows[generation_id]["status"] for generation_id in beside} == {"succeeded"}
        assert process.running
        print("MiB at most:", memory(process))
        assert memory(process) < MEMORY
        # Nobody went where the redirects lead.
        assert sorted(path.split("/")[1] for path in provider.requests) == sorted(misdeed.name for misdeed in MISDEEDS)
        assert process.terminate() == 0
    for line in process.text.splitlines():
        assert line.isprintable(), line
        assert line.startswith("20"), line
        assert " critical " not in line.split("Z ", 1)[1][:12], line


def test_many_floods_at_once_take_no_more_memory_than_the_worker_gives_them(
    database: Database, member: Member, worker: Callable[..., Worker], provider: HostileProvider
) -> None:
    prepared(database)
    own = database.provider("flood", provider.at(hostile.endless_body, "flood") + "/v1")
    database.model(own, "flood/model")
    app = database.connect(user=member)
    with EchoProvider() as honest:
        database.model(database.provider("honest", honest.base_url), "honest/model")
        process = worker(database, env={"MARTLET_ANSWER_MEMORY": "64"})
        app.execute(
            "insert into ai.generations (prompt, model) select 'f' || n, 'flood/model' from generate_series(1, 64) n"
        )
        app.execute(
            "insert into ai.generations (prompt, model) select 'h' || n, 'honest/model' from generate_series(1, 64) n"
        )
        all_ended(database, 120)
    outcomes = database.execute(
        "select model, status, error ->> 'class' as class, count(*) as n from ai.generations"
        " group by 1, 2, 3 order by 1"
    )
    assert [(row["model"], row["status"], row["class"], row["n"]) for row in outcomes] == [
        ("flood/model", "failed", "too_large", 64),
        ("honest/model", "succeeded", None, 64),
    ]
    assert process.running
    print("MiB at most:", memory(process))
    assert memory(process) < MEMORY


def test_what_a_provider_says_of_an_error_does_not_reach_into_a_terminal(
    database: Database, member: Member, worker: Callable[..., Worker], provider: HostileProvider, martlet_bin: Path
) -> None:
    prepared(database)
    own = database.provider("liar", provider.at(hostile.error_of_lies, "liar") + "/v1")
    database.model(own, "liar/model")
    worker(database)
    done = subprocess.run(
        [martlet_bin, "ask", "hello", "--model", "liar/model"],
        env={**os.environ, "DATABASE_URL": member.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "forged" in done.stderr
    assert all(letter in "\n\t" or letter >= " " for letter in done.stdout + done.stderr), done.stderr
    assert not {"\x7f", "\x9b", "\u202e"} & set(done.stdout + done.stderr), done.stderr
