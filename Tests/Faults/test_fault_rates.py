"""Every fault of the simulator at once, at 1, 10 and 100 percent of the calls, under load.

Each generation ends once, the books are the providers' own and what they declare unknown, and the worker goes on.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from crowd import at_once
from databases import Database
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_are_consistent, ended

DIALECTS = ("openai", "anthropic", "gemini", "ollama")
# Of docs/simulator.md, all of them; where one can mean several things, each.
FAULTS = (
    "status=400",
    "status=401",
    "status=404",
    "status=408",
    "status=413",
    "status=429;retry_after_ms=30",
    "status=429;retry_after=3600",
    "status=500",
    "status=503;malformed",
    "status=503;should_retry=false",
    "status=529",
    "status=502;html",
    "status=503;empty",
    "hang",
    "hang_after=2",
    "reset",
    "reset_after=3",
    "truncate_after=3",
    "end_after=3",
    "malformed",
    "embedded_error=0",
    "embedded_error",
    "html",
    "empty",
)
# So many generations a fault that at least one of them meets it.
COUNTS = {1: 80, 10: 40, 100: 8}
APPS = 4


def faulty(entry: dict[str, Any]) -> bool:
    return entry["fault"] is not None or entry["status"] != 200


@pytest.mark.parametrize("rate", COUNTS, ids=lambda rate: f"{rate} percent")
def test_each_generation_ends_once_with_true_books_whatever_share_of_calls_fails(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], dice: random.Random, rate: int
) -> None:
    providers = Providers(database, simulator, max_attempts=4)
    plain = "answer=one+two+three+four+five"
    models: dict[str, str] = {}
    for n, fault in enumerate(FAULTS):
        for dialect in (DIALECTS[n % 4], DIALECTS[(n + 1) % 4]):
            models[providers.model(f"{plain};{fault};chance={rate};tag={dialect}", dialect)] = f"{fault}, {dialect}"
    sound = providers.model(plain)
    process = worker(database, concurrency=128)
    members = [database.member() for _ in range(APPS)]

    def ask(number: int, dice: random.Random) -> int:
        """A share of all, in pieces of its own, so that every piece has every fault in it."""
        asked = 0
        with database.connect(user=members[number]) as app:
            for _ in range(COUNTS[rate] // 2 // APPS):
                rows = [(model, 8000 if fault.startswith("hang") else None) for model, fault in models.items()] + [
                    (sound, None)
                ]
                dice.shuffle(rows)
                app.cursor().executemany(
                    "insert into ai.generations (prompt, model, stream, deadline_ms)"
                    " values ('question ' || gen_random_uuid(), %s, %s, %s)",
                    [(model, dice.random() < 0.5, deadline) for model, deadline in rows],
                )
                asked += len(rows)
        return asked

    asked = sum(at_once(APPS, ask, dice))
    all_ended(database, 90)
    assert process.running
    assert database.value("select count(*) from ai.generations") == asked
    books_are_consistent(database)

    # Ends once, and says so once.
    assert (
        database.value(
            "select count(*) from (select generation_id from ai.stream_events where type = 'end'"
            " group by generation_id having count(*) > 1) twice"
        )
        == 0
    )
    wrong = database.execute(
        """
        select g.id, g.status, g.error, g.output from ai.generations g
         where g.status not in ('succeeded', 'failed')
            or g.status = 'failed' and coalesce(g.error ->> 'message', '') = ''
            or g.status = 'succeeded' and g.output <> 'one two three four five'
        """
    )
    assert wrong == []

    # What each provider did is on the books, call by call.
    log = simulator.requests()
    calls = database.execute(
        "select c.*, m.wire_name from ai.llm_calls c join ai.models m on m.name = c.model order by c.created_at"
    )
    unlike = []
    for model, fault in [*models.items(), (sound, "none")]:
        booked = [call for call in calls if call["model"] == model]
        wire_name = booked[0]["wire_name"]
        seen = [entry for entry in log if entry["model"] == wire_name]
        answered = Counter((entry["usage"]["input"], entry["usage"]["output"]) for entry in seen if entry["complete"])
        paid = Counter(
            (call["input_tokens"], call["output_tokens"]) for call in booked if call["status"] == "succeeded"
        )
        # A stream with one broken event has its usage in it: known to the last token.
        reported = {(entry["usage"]["input"], entry["usage"]["output"]) for entry in seen if entry["usage"]}
        undeclared = [
            call
            for call in booked
            if call["status"] != "succeeded"
            and not call["estimated"]
            and (call["http_status"] or 200) == 200
            and (call["input_tokens"], call["output_tokens"]) not in reported
        ]
        whole = sum(not faulty(entry) and entry["complete"] for entry in seen)
        if len(booked) != len(seen):
            unlike.append(f"{fault}: {len(seen)} requests, {len(booked)} on the books")
        if paid - answered:
            unlike.append(f"{fault}: paid for what the provider does not know of: {paid - answered}")
        # What hangs has a deadline; on a busy machine that of a sound one may be over before it has been read.
        timed_out = sum(call["error_class"] in ("unknown", "partial") for call in booked)
        late = timed_out if fault.startswith("hang") else 0
        if paid.total() + late < whole:
            unlike.append(f"{fault}: {whole} sound answers, {paid.total()} on the books")
        if undeclared:
            unlike.append(
                f"{fault}: {len(undeclared)} attempts of which nobody knows what they cost, not said to be so"
            )
        if any(call["estimated"] for call in booked if call["status"] == "succeeded"):
            unlike.append(f"{fault}: an answer with its usage in it is on the books as an estimate")
    assert not unlike, "\n".join(unlike)

    # The weather was what it was said to be.
    met = Counter(models[call["model"]] for call in calls if call["status"] != "succeeded" and call["model"] in models)
    if rate == 100:
        assert set(met) == set(models.values()), f"nobody met {set(models.values()) - set(met)}"
    # A third of what is to be expected of so many throws is far outside of chance.
    assert met.total() * 100 > len(models) * COUNTS[rate] // 2 * rate / 3
    of_sound = database.execute(
        "select status, attempts, count(*) from ai.generations where model = %s group by 1, 2", sound
    )
    assert [(row["status"], row["attempts"]) for row in of_sound] == [("succeeded", 1)]

    # And it goes on.
    app = database.connect(user=members[0])
    row = app.execute(
        "insert into ai.generations (prompt, model) values ('And now?', %s) returning id", [sound]
    ).fetchone()
    assert row is not None
    assert ended(database, row["id"])["status"] == "succeeded"
    assert process.terminate() == 0
