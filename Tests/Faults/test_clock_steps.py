"""The server's clock is set forwards and back while workers work and die.

Nothing is lost, nothing ends twice, nothing waits for a time that will not come.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import pytest
import waiting
from databases import Database
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider, unfinished

# What the offset of ai.now() becomes, in turn: steps of less than a lease and of much more, less than the whole time
# of a generation here. Tests/SQL/clock.sql goes further. The server's time zone is at the other end of the world.
STEPS = ("2 hours", "-10 seconds", "20 hours", "19:59:59", "-3 hours", "0", "-1 second", "15 hours", "0")
ZONE = "Pacific/Apia"


class Clock:
    """Sets the clock of every session of a server's testers: a line in its configuration, and a reload."""

    def __init__(self, server: Callable[..., str]) -> None:
        self._server = server

    def set(self, database: Database, offset: str) -> None:
        file = Path(database.value("show config_file"))
        text = re.sub(r"^ai\.clock_offset .*\n|^timezone = .*\n", "", file.read_text(), flags=re.MULTILINE)
        file.write_text(f"{text}ai.clock_offset = '{offset}'\ntimezone = '{ZONE}'\n")
        database.execute("select pg_reload_conf()")
        waiting.until(
            lambda: database.value("select current_setting('ai.clock_offset', true)") == offset, "the clock to be set"
        )


@pytest.fixture
def timeless(own_server: Callable[..., str], martlet_bin: Path) -> Iterator[Database]:
    """A migrated database whose worker is a tester, on a server whose clock may be set."""
    with databases.temporary(own_server("url")) as database:
        database.migrate(martlet_bin)
        database.execute("create role ai_tester")
        database.execute(f"grant ai_tester to {database.worker.name}")
        yield database


def test_nothing_is_lost_or_stuck_when_the_clock_is_set_while_workers_work_and_die(
    timeless: Database,
    own_server: Callable[..., str],
    simulator: Simulator,
    worker: Callable[..., Worker],
    dice: random.Random,
) -> None:
    database, clock = timeless, Clock(own_server)
    providers = Providers(database, simulator)
    models = [
        providers.model(words) for words in ("", "latency=600", "ttft=50;rate=300;tokens=20", "status=503;chance=30")
    ]
    member = database.member()
    app = database.connect(user=member)
    workers = [worker(database, concurrency=16) for _ in range(2)]
    asked = 0
    for offset in STEPS:
        app.execute(
            "insert into ai.generations (prompt, model, stream, deadline_ms)"
            " select 'question ' || gen_random_uuid(), m, n %% 2 = 0, 86400000"
            "   from unnest(%s::text[]) m, generate_series(1, 8) n",
            [models],
        )
        asked += 8 * len(models)
        waiting.until(
            lambda: database.value("select count(*) from ai.leases") > 0 or unfinished(database) == 0, "work in flight"
        )
        clock.set(database, offset)
        if dice.random() < 0.5:  # and nobody is left to say that this one lives
            victim = dice.randrange(2)
            workers[victim].kill()
            workers[victim] = worker(database, concurrency=16)
        all_ended(database, 30)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == asked
    books_agree_with_the_provider(database, simulator)
    for process in workers:
        assert process.running
