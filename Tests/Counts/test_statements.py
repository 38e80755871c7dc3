"""What a worker sends: each statement is a round trip and, because it sends no BEGIN, a commit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import pytest
import waiting
from counting import bound
from databases import Database
from processes import Simulator, Worker
from servers import Server
from simulated import Providers

# What it does by the clock, or once, whether there is work or not.
BY_THE_CLOCK = {
    "worker_heartbeat",
    "worker_maintain",
    "worker_leases",
    "worker_cancellations",
    "worker_artifact_jobs",
    "worker_batch_steps",
}


class Sent:
    """The statements of a database's worker, as the server's log has them."""

    def __init__(self, server: Server, database: Database) -> None:
        self._log, self._user = server.directory / "log", database.worker.name
        database.execute(f"alter role \"{self._user}\" set log_statement = 'all'")

    def all(self) -> list[str]:
        """In order, by the name of the function that is called, or as they are."""
        text = self._log.read_text(errors="replace")
        statements = re.findall(rf"^{self._user}@\w+\|LOG:  (?:execute [^:]*|statement): (.*)", text, re.MULTILINE)
        return [found[1] if (found := re.search(r"ai\.(worker_\w+)", each)) else each.strip() for each in statements]


@pytest.fixture
def sent(quiet_server: Server, quiet: Database) -> Sent:
    """What the workers of this test send."""
    return Sent(quiet_server, quiet)


def _ended(database: Database, count: int) -> bool:
    return database.value("select count(*) from ai.generations where status = 'succeeded'") == count


@pytest.mark.parametrize(("batch", "batches"), [(64, 10), (1, 40)], ids=["by 64", "one by one"])
def test_a_worker_sends_no_more_statements_for_a_generation_than_its_bound(
    quiet: Database, simulator: Simulator, worker: Callable[..., Worker], sent: Sent, batch: int, batches: int
) -> None:
    model = Providers(quiet, simulator, maintain_ms=60_000).model()
    app = quiet.connect(user=quiet.member())
    worker(quiet, concurrency=batch)
    before = 0
    for number in range(1, batches + 2):
        app.execute(
            "insert into ai.generations (prompt, model) select 'Why? ' || n, %s from generate_series(1, %s) n",
            [model, batch],
        )
        waiting.until(lambda number=number: _ended(quiet, number * batch), "the answers", every=0.005)
        before = before or len(sent.all())  # with the first ones it gets ready
    statements = Counter(name for name in sent.all()[before:] if name not in BY_THE_CLOCK)
    each = statements.total() / batch / batches
    assert each <= bound(f"statements of a worker, batches of {batch}"), f"{each:.2f} a generation: {statements}"
    assert set(statements) <= {"worker_claim", "worker_settle", "worker_sleep", "worker_wake", "select 1"}
