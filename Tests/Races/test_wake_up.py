"""The real worker is woken for every row: its safety poll never is the one that finds something."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
import waiting
from crowd import at_once
from databases import Database
from inserting import insert_somehow
from processes import Worker
from simulated import all_ended, unfinished


def tallies(worker: Worker) -> dict[str, int]:
    """What a worker says of itself when it stops."""
    (line,) = [line for line in worker.text.splitlines() if "safety_poll_found" in line]
    return {name: int(number) for name, number in re.findall(r"\b(\w+)[\"']?[=:] ?[\"']?(\d+)\b", line)}


@pytest.mark.parametrize("workers", [1, 3])
def test_no_wake_up_is_lost_whenever_and_however_rows_are_committed(
    database: Database, worker: Callable[..., Worker], dice: random.Random, workers: int
) -> None:
    apps = [database.connect(user=database.member()) for _ in range(6)]
    processes = [worker(database) for _ in range(workers)]
    inserted = 0
    for number in range(150):
        busy = dice.randrange(1, 7)
        inserted += sum(at_once(busy, lambda n, dice: insert_somehow(apps[n], dice), dice))
        # Quiet between rounds, so that no later insert can hide that an earlier one was not announced.
        waiting.until(lambda: unfinished(database) == 0, f"the rows of round {number}", every=0.003)
    all_ended(database)
    for process in processes:
        assert process.terminate() == 0
    told = [tallies(process) for process in processes]
    assert sum(one["succeeded"] for one in told) == inserted > 0
    assert [one["safety_poll_found"] for one in told] == [0] * workers


def test_a_row_is_picked_up_while_a_long_transaction_of_another_app_is_open(
    database: Database, worker: Callable[..., Worker]
) -> None:
    """The worker cannot fall asleep then: an insert in flight holds the handshake lock."""
    holding = database.connect(user=database.member(), autocommit=False)
    holding.execute("insert into ai.generations (prompt) values ('not yet committed')")
    process = worker(database)
    app = database.connect(user=database.member())
    for _ in range(20):
        app.execute("insert into ai.generations (prompt) values ('x')")
        all_ended(database, 10)
    holding.commit()
    all_ended(database, 10)
    assert process.terminate() == 0
    assert tallies(process)["succeeded"] == 21
