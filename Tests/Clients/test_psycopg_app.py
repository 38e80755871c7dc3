"""A program as an app's author would write it, with psycopg and what the documentation says: nothing of this project.

It inserts, listens, and gets every answer once, in order.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, books_agree_with_the_provider

COUNT = 1000


def notifications(connection: psycopg.Connection[Any], enough: Callable[[], bool], seconds: float = 90) -> Any:
    """Yields notifications until it is enough, or fails."""
    deadline = time.monotonic() + seconds
    while not enough():
        assert time.monotonic() < deadline, "some notification never came"
        yield from connection.notifies(timeout=0.2)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_1000_rows_in_one_statement_get_every_answer_once(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], stream: bool
) -> None:
    model = Providers(database, simulator).model("tokens=5")
    member = database.member()
    worker(database)

    with psycopg.connect(member.url, autocommit=True) as app:
        (channel,) = app.execute("select ai.subscribe()").fetchone()
        app.execute(f'listen "{channel}"')
        rows = app.execute(
            "insert into ai.generations (prompt, model, stream)"
            " select 'question number ' || n, %s, %s from generate_series(1, %s) n returning id",
            [model, stream, COUNT],
        ).fetchall()
        asked = [str(row[0]) for row in rows]
        ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for notification in notifications(app, lambda: len(ends) == COUNT):
            event = json.loads(notification.payload)
            if event["type"] == "end":
                ends[event["id"]].append(event)
        for _ in app.notifies(timeout=1):  # and none twice
            raise AssertionError("another notification after all had ended")
        assert set(ends) == set(asked)
        assert {len(events) for events in ends.values()} == {1}
        assert {event["status"] for events in ends.values() for event in events} == {"succeeded"}
        answers = app.execute("select id, output from ai.generations").fetchall()
        assert len(answers) == COUNT
        assert all(output for _, output in answers)
    books_agree_with_the_provider(database, simulator)
    assert len(simulator.requests()) == COUNT


def test_1000_streams_arrive_in_order_without_a_gap(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("ttft=20;rate=200;tokens=30")
    member = database.member()
    worker(database, concurrency=200)

    with psycopg.connect(member.url, autocommit=True) as app, psycopg.connect(member.url, autocommit=True) as reader:
        rows = app.execute(
            "insert into ai.generations (prompt, model, stream)"
            " select 'question number ' || n, %s, true from generate_series(1, %s) n returning id",
            [model, COUNT],
        ).fetchall()
        asked = [str(row[0]) for row in rows]
        for (channel,) in app.execute("select ai.subscribe(id) from ai.generations").fetchall():
            app.execute(f'listen "{channel}"')

        seen = dict.fromkeys(asked, 0)
        texts = dict.fromkeys(asked, "")
        over: set[str] = set()
        gaps = 0

        def take(generation: str, seq: int, kind: str, data: dict[str, Any]) -> None:
            if seq <= seen[generation]:
                return  # known already, from the stored events
            assert seq == seen[generation] + 1
            seen[generation] = seq
            if kind == "delta":
                texts[generation] += data["text"]
            elif kind == "end":
                over.add(generation)

        def catch_up(generation: str) -> None:
            for seq, kind, data in reader.execute(
                "select seq, type, data from ai.read_stream(%s, %s)", [generation, seen[generation]]
            ).fetchall():
                take(generation, seq, kind, data)

        for generation in asked:  # what was announced before LISTEN
            catch_up(generation)
        for notification in notifications(app, lambda: len(over) == COUNT):
            event = json.loads(notification.payload)
            if event["seq"] > seen[event["id"]] + 1 or event.get("more"):
                gaps += 1
                catch_up(event["id"])
            take(event["id"], event["seq"], event["type"], event)
        outputs = app.execute("select id::text, output from ai.generations").fetchall()
        assert dict(outputs) == texts
        assert gaps == 0, "LISTEN, then read_stream, then notifications: nothing was missing in between"


def test_an_app_behind_a_pooler_reads_a_stream_without_listen(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("ttft=50;rate=10;tokens=40")
    worker(database)
    with psycopg.connect(member.url, autocommit=True) as app:
        (generation,) = app.execute(
            "select ai.generate(prompt => 'Tell!', model => %s, stream => true)", [model]
        ).fetchone()
        seen, text, rounds = 0, "", 0
        while True:
            rounds += 1
            assert rounds < 1000
            events = app.execute("select * from ai.read_stream(%s, %s, 10000)", [generation, seen]).fetchall()
            assert events, "it waited ten seconds for nothing"
            for seq, _, data in events:
                assert seq == seen + 1
                seen = seq
                text += data.get("text", "")
            if events[-1][1] == "end":
                break
        (output,) = app.execute("select output from ai.generations where id = %s", [generation]).fetchone()
    assert text == output
    assert rounds > 2, "it came all at once"
