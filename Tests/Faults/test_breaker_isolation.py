"""A provider that fails altogether under load is fenced off: the others keep going, and it is back when it heals.

How fast the others are is measured and printed, not asserted; what is asserted are counts. MARTLET_OUTAGE_SECONDS makes
the outage longer than the seconds that CI has for it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import waiting
from databases import Database
from processes import Process, Simulator, Worker
from simulated import QUICK, all_ended, books_are_consistent

SECONDS = float(os.environ.get("MARTLET_OUTAGE_SECONDS", "6"))
# In a long outage the breaker is that of ai.breaker_settings; in a short one it has to be quicker.
COOLDOWN_MS, CAP_MS = (2000, 15000) if SECONDS > 10 else (300, 1200)


def told(simulator: Simulator, directives: str) -> None:
    """Changes what a running simulator answers with."""
    url = f"{simulator.base_url}/__defaults"
    request = urllib.request.Request(url, data=directives.encode(), method="POST")  # noqa: S310
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


def asked_of(simulator: Simulator, path: str) -> bytes:
    with urllib.request.urlopen(simulator.base_url + path, timeout=30) as response:  # noqa: S310
        return response.read()


def answered(simulator: Simulator) -> int:
    return json.loads(asked_of(simulator, "/health"))["answered"]


def latencies(rows: list[dict[str, Any]]) -> float:
    return quantiles([row["latency_ms"] for row in rows], n=20)[-1]


def test_a_provider_that_is_down_does_not_slow_the_others_and_is_back_when_it_heals(
    database: Database, simulator: Simulator, martlet: Callable[..., Process], worker: Callable[..., Worker]
) -> None:
    second = martlet("simulate", kind=Simulator, port=0)
    second.base_url = second.announced_url()
    settings = {**QUICK, "max_attempts": 3}
    database.execute(f"update ai.settings set {', '.join(f'{name} = %s' for name in settings)}", *settings.values())
    database.execute("update ai.breaker_settings set cooldown_ms = %s, cap_ms = %s", COOLDOWN_MS, CAP_MS)
    for name, url in (("ill", simulator.base_url), ("well", second.base_url)):
        database.model(database.provider(name, f"{url}/v1", secret="SIM_API_KEY"), f"sim/{name}", "sim-small+latency=5")
    member = database.member()
    worker(database)
    app = database.connect(user=member)

    def ask(model: str, count: int = 5) -> None:
        app.execute(
            "insert into ai.generations (prompt, model, deadline_ms)"
            " select 'Question ' || gen_random_uuid(), %s, 600000 from generate_series(1, %s)",
            [model, count],
        )

    def load(seconds: float, *models: str) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for model in models:
                ask(model)
            time.sleep(0.02)

    load(1.5, "sim/well", "sim/ill")
    all_ended(database)
    before = latencies(database.execute("select latency_ms from ai.generations where model = 'sim/well'"))
    assert database.value("select count(*) from ai.breakers where state <> 'closed'") == 0

    told(simulator, "status=503")
    ask("sim/ill", 20)
    waiting.until(
        lambda: database.value("select count(*) from ai.breakers where state = 'open'"), "the breaker to open"
    )
    opened = database.value("select clock_timestamp()")
    asked = answered(simulator)
    load(SECONDS, "sim/well", "sim/ill")
    probes = answered(simulator) - asked
    # Each probe but the first waits at least the cooldown, doubled each time up to its cap.
    most = 3 + (SECONDS * 1000) / COOLDOWN_MS
    assert probes <= most, f"{probes} requests reached a provider that is fenced off, of at most {most}"
    well = database.execute(
        "select status, latency_ms from ai.generations where model = 'sim/well' and created_at >= %s", opened
    )
    waiting.until(
        lambda: (
            database.value("select count(*) from ai.generations where model = 'sim/well' and finished_at is null") == 0
        ),
        "the other provider's generations to end while this one is down",
    )
    assert len(well) > 0
    during = latencies([row for row in well if row["latency_ms"] is not None])
    print(f"p95 of the other provider: {before:.0f} ms before, {during:.0f} ms during the outage; {probes} probes")

    failed = database.value("select count(*) from ai.generations where status = 'failed'")
    told(simulator, "")
    healed = database.value("select clock_timestamp()")
    all_ended(database, seconds=60)
    after = database.execute("select status from ai.llm_calls where model = 'sim/ill' and created_at > %s", healed)
    assert after, "nothing was asked after it healed"
    assert {call["status"] for call in after} == {"succeeded"}, "one probe closes the breaker"
    assert database.value("select count(*) from ai.breakers where state <> 'closed'") == 0
    assert database.value("select count(*) from ai.generations where status = 'failed'") <= failed + 1
    assert database.value("select count(*) from ai.generations where status not in ('succeeded', 'failed')") == 0
    books_are_consistent(database)
