"""A partition is missing: dropped by hand, or never made because maintenance did not run. Rows go to the default
partition until it is there again; where even that is gone, apps and operators are told so, and no answer is lost.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import waiting
from asking import ask
from databases import Database, refused
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider

PARTITIONED = ("generations", "llm_calls", "stream_events")


def partitions(database: Database, table: str) -> list[str]:
    rows = database.execute(
        "select inhrelid::regclass::text as name from pg_inherits i where i.inhparent = ('ai.' || %s::text)::regclass",
        table,
    )
    return [row["name"] for row in rows]


def drop(database: Database, table: str, and_default: bool) -> None:
    for name in partitions(database, table):
        if and_default or not name.endswith("_default"):
            database.execute(f"drop table {name}")


def make_again(database: Database) -> None:
    """Does not wait for the minute that may pass between two looks of maintenance."""
    database.execute("update ai.maintenance set partitions_at = '-infinity'")


@pytest.mark.parametrize("table", PARTITIONED)
def test_without_a_partition_rows_go_to_the_default_and_move_when_it_is_made(
    poor: Database, simulator: Simulator, worker: Callable[..., Worker], table: str
) -> None:
    drop(poor, table, and_default=False)
    # It was looked after a moment ago.
    poor.execute("update ai.maintenance set partitions_at = 'infinity'")
    providers = Providers(poor, simulator)
    member = poor.member()
    process = worker(poor)
    app = poor.connect(user=member)
    ask(app, providers.model(), 10, stream=True)
    all_ended(poor)
    assert poor.value(f"select count(*) from ai.{table}_default") >= 10
    make_again(poor)
    waiting.until(lambda: len(partitions(poor, table)) > 1, "partitions")
    assert poor.value(f"select count(*) from ai.{table}_default") == 0
    ask(app, providers.model(), 10, stream=True)
    all_ended(poor)
    assert process.running
    books_agree_with_the_provider(poor, simulator)


@pytest.mark.parametrize("table", ["llm_calls", "stream_events"])
def test_without_any_partition_answers_wait_until_there_is_one(
    poor: Database, simulator: Simulator, worker: Callable[..., Worker], table: str
) -> None:
    providers = Providers(poor, simulator)
    process = worker(poor)
    app = poor.connect(user=poor.member())
    poor.execute("update ai.maintenance set partitions_at = 'infinity'")
    ask(app, providers.model("ttft=5000;rate=100;tokens=5"), 10)
    ask(app, providers.model("ttft=5000;rate=100;tokens=5"), 10, stream=True)
    waiting.until(lambda: poor.value("select count(*) from ai.leases") == 20, "the calls")
    drop(poor, table, and_default=True)
    process.says("23514")
    process.says("the database refuses results")
    make_again(poor)
    all_ended(poor)
    # Not one was asked for a second time.
    assert poor.value("select count(*) from ai.llm_calls where status = 'succeeded'") == 20
    assert len(simulator.requests()) == 20
    assert f"ai.{table}_default" in partitions(poor, table)
    books_agree_with_the_provider(poor, simulator)


def test_without_any_partition_of_generations_an_app_is_told_and_can_ask_again(
    poor: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(poor, simulator)
    worker(poor)
    poor.execute("update ai.maintenance set partitions_at = 'infinity'")
    drop(poor, "generations", and_default=True)
    app = poor.connect(user=poor.member())
    with refused("23514"):
        ask(app, providers.model(), 1)
    make_again(poor)
    waiting.until(lambda: "ai.generations_default" in partitions(poor, "generations"), "the default partition")
    ask(app, providers.model(), 1)
    all_ended(poor)
    books_agree_with_the_provider(poor, simulator)
