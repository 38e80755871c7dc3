"""A worker with little room and long calls serves the tenants in turn (promise 9)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from databases import Database
from processes import Simulator, Worker
from simulated import Providers, all_ended

ASK = "insert into ai.generations (prompt, model, cache) select 'q ' || n, %s, 'off' from generate_series(1, %s) n"


@pytest.mark.parametrize("room", [1, 2])
def test_tenants_with_long_calls_take_turns(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], room: int
) -> None:
    # Longer than the time between two sweeps, so that every claim looks at everything.
    model = Providers(database, simulator).model("latency=1200")
    tenants = sorted((database.member() for _ in range(3)), key=lambda member: member.tenant_id)
    for member, rows in zip(tenants, (8, 2, 2), strict=True):
        database.connect(user=member).execute(ASK, [model, rows])
    process = worker(database, concurrency=room)
    all_ended(database)
    assert process.terminate() == 0
    order = [
        row["tenant_id"] for row in database.execute("select tenant_id from ai.generations order by started_at, id")
    ]
    for member in tenants[1:]:
        last = max(place for place, tenant in enumerate(order) if tenant == member.tenant_id)
        # Two rounds of three tenants, and what a claim may bring out of turn.
        assert last < 5 + room, [tenants.index(next(m for m in tenants if m.tenant_id == t)) for t in order]
