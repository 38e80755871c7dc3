"""Workers are killed, frozen and stopped at any moment: nothing is lost, nothing happens twice (promises 1 to 3)."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import waiting
from databases import Database, Member
from processes import Simulator, Worker
from simulated import (
    Providers,
    all_ended,
    books_agree_with_the_provider,
    books_are_consistent,
    calls,
    ended,
    unfinished,
)


def ask(database: Database, member: Member, count: int, model: str, **columns: Any) -> list[uuid.UUID]:
    names = "".join(f", {name}" for name in columns)
    places = ", %s" * len(columns)
    rows = database.connect(user=member).execute(
        f"insert into ai.generations (prompt, model{names})"
        f" select 'question ' || gen_random_uuid(), %s{places} from generate_series(1, %s) returning id",
        [model, *columns.values(), count],
    )
    return [row["id"] for row in rows]


def stream_is_whole(database: Database, member: Member, generation_id: uuid.UUID) -> None:
    """Its events are numbered without a gap, one end comes last, and the text since the last reset is the output."""
    app = database.connect(user=member)
    events = app.execute("select * from ai.read_stream(%s)", [generation_id]).fetchall()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events if event["type"] == "end"] == ["end"]
    assert events[-1]["type"] == "end"
    text = ""
    for event in events:
        if event["type"] == "reset":
            text = ""
        elif event["type"] == "delta":
            text += event["data"]["text"]
    row = app.execute("select output from ai.generations where id = %s", [generation_id]).fetchone()
    assert text == row["output"]
    app.close()


@pytest.mark.parametrize("round_number", range(3))
def test_500_generations_survive_workers_that_are_killed_at_random_moments(
    database: Database,
    member: Member,
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
    round_number: int,
) -> None:
    providers = Providers(database, simulator)
    slow = "ttft=%d;rate=400;tokens=40"
    asked = []
    for dialect, stream in (("openai", False), ("openai", True), ("anthropic", False), ("anthropic", True)):
        model = providers.model(slow % dice.randrange(20, 200), dialect)
        asked += ask(database, member, 125, model, stream=stream)
    workers = [worker(database, concurrency=32), worker(database, concurrency=32)]
    kills = 0
    deadline = time.monotonic() + 120
    while unfinished(database) and kills < 25:
        assert time.monotonic() < deadline, f"{unfinished(database)} generations have not ended after {kills} kills"
        time.sleep(dice.random() ** 2 * 0.8)  # at any moment, from its start on
        victim = dice.randrange(2)
        workers[victim].kill()
        kills += 1
        workers[victim] = worker(database, concurrency=32, ready=False)
    all_ended(database, 90)
    assert kills > 0
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 500
    books_agree_with_the_provider(database, simulator)
    if round_number == 0:  # else this test would only have tested calm weather
        assert database.value("select count(*) from ai.llm_calls where status = 'abandoned'") > 0
    for generation_id in dice.sample(asked[125:250] + asked[375:], 60):
        stream_is_whole(database, member, generation_id)


def test_a_worker_that_was_frozen_past_its_lease_can_change_nothing_and_goes_on_working(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    model = providers.model("ttft=4000;rate=200;tokens=60")
    asked = ask(database, member, 40, model, stream=True)
    frozen = worker(database)
    waiting.until(
        lambda: database.value("select count(*) from ai.generations where status = 'running'") == 40, "all to run"
    )
    first = database.value("select id from ai.workers")
    frozen.freeze()
    rescuer = worker(database)
    all_ended(database)
    before = database.execute("select * from ai.generations order by id")
    books = database.execute("select * from ai.llm_calls order by generation_id, attempt")
    assert {row["status"] for row in before} == {"succeeded"}
    assert database.value("select ending from ai.workers where id = %s", first) == "dead"

    frozen.thaw()
    waiting.until(
        lambda: database.value("select count(*) from ai.workers where ended_at is null") == 2, "it to register again"
    )
    rescuer.terminate()
    # What it got from the provider before it froze came too late.
    assert database.execute("select * from ai.generations order by id") == before
    assert database.execute("select * from ai.llm_calls order by generation_id, attempt") == books
    for generation_id in asked[:5]:
        stream_is_whole(database, member, generation_id)
    (again,) = ask(database, member, 1, model)
    assert ended(database, again)["status"] == "succeeded"
    assert frozen.running
    books_agree_with_the_provider(database, simulator)


def test_a_killed_worker_leaves_an_estimate_of_what_its_call_may_have_cost(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    victim = worker(database)
    (generation_id,) = ask(
        database, member, 1, providers.model("answer=one+two+three;hang_after=3;times=1"), stream=True
    )
    app = database.connect(user=member)
    waiting.until(
        lambda: "three" in str(app.execute("select * from ai.read_stream(%s)", [generation_id]).fetchall()),
        "the text that comes before it hangs",
    )
    victim.kill()
    worker(database)
    assert ended(database, generation_id)["status"] == "succeeded"
    abandoned, succeeded = calls(database, generation_id)
    assert (abandoned["status"], abandoned["estimated"], abandoned["error_class"]) == ("abandoned", True, "abandoned")
    assert abandoned["input_tokens"] > 0
    assert abandoned["output_tokens"] > 0
    assert abandoned["cost"] > 0
    assert (succeeded["status"], succeeded["estimated"]) == ("succeeded", False)
    books_are_consistent(database)
    stream_is_whole(database, member, generation_id)


def test_sigterm_lets_what_is_in_flight_finish_and_takes_nothing_new(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    model = providers.model("latency=5000")
    process = worker(database, concurrency=10)
    ask(database, member, 30, model)
    simulator.is_asked(10)  # leased is not yet sent: what a claim brings after the signal goes back
    assert process.terminate() == 0
    by_status = {
        row["status"]: row["n"]
        for row in database.execute("select status, count(*) as n from ai.generations group by 1")
    }
    assert by_status == {"succeeded": 10, "queued": 20}
    assert database.value("select count(*) from ai.leases") == 0
    assert database.value("select ending from ai.workers") == "stopped"
    assert database.value("select count(*) from ai.llm_calls") == 10
    worker(database)
    all_ended(database)
    books_agree_with_the_provider(database, simulator)


def test_what_a_claim_brings_after_a_sigterm_is_handed_back_unsent(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    """The claim waits for a counter when the worker is told to stop: it is not idle, although it holds nothing yet."""
    model = Providers(database, simulator).model()
    database.execute(
        "insert into ai.limits (tenant_id, metric, period, amount, on_limit)"
        " values (%s, 'requests', 'month', 100, 'wait')",
        member.tenant_id,
    )
    process = worker(database)
    ask(database, member, 1, model)
    all_ended(database)
    with database.connect(autocommit=False) as holder:
        holder.execute("select from ai.counters for update")
        ask(database, member, 1, model)
        waits = (
            "select exists (select from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock' and query like '%%ai.worker_claim%%')"
        )
        waiting.until(lambda: database.execute(waits)[0]["exists"], "the claim to wait")
        process.signal(15)
        process.says("stopping")
    assert process.wait() == 0
    assert database.value("select count(*) from ai.generations where status = 'queued'") == 1
    assert database.value("select count(*) from ai.leases") == 0
    assert database.value("select count(*) from ai.llm_calls") == len(simulator.requests()) == 1


def test_a_second_sigterm_stops_at_once_and_another_worker_takes_over(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    process = worker(database, concurrency=10)
    ask(database, member, 10, providers.model("hang;times=1"))
    simulator.is_asked(10)  # the ones that hang
    process.signal(15)
    waiting.until(lambda: "stop" in process.text.lower(), "it to say that it stops")
    assert process.running, "it did not wait for what is in flight"
    process.signal(15)
    process.wait(10)
    worker(database)
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 10
    books_are_consistent(database)


def test_once_drains_the_queue_waits_for_retries_and_exits(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    ask(database, member, 100, providers.model())
    ask(database, member, 5, providers.model("status=503;times=2"))
    assert worker(database, once=True).wait() == 0
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 105
    books_agree_with_the_provider(database, simulator)
    assert worker(database, once=True).wait() == 0  # nothing to do is no error


def test_a_cancel_aborts_the_transfer_and_books_what_had_arrived(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    worker(database)
    (generation_id,) = ask(database, member, 1, providers.model("rate=50;tokens=4000"), stream=True)
    app = database.connect(user=member)
    waiting.until(
        lambda: app.execute("select from ai.read_stream(%s) where type = 'delta'", [generation_id]).fetchall(), "text"
    )
    assert app.execute("select ai.cancel(%s) as status", [generation_id]).fetchone()["status"] == "running"
    row = ended(database, generation_id)
    assert row["status"] == "cancelled"
    assert row["output"]
    (call,) = calls(database, generation_id)
    assert (call["status"], call["estimated"]) == ("cancelled", True)
    assert call["output_tokens"] > 0
    (request,) = waiting.until(simulator.requests, "the simulator to notice")
    assert request["client_gone"]
    stream_is_whole(database, member, generation_id)
    books_are_consistent(database)
