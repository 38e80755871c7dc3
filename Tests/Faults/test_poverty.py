"""A server with the least memory that PostgreSQL accepts, and without autovacuum for the whole run: everything is
slower, and nothing is wrong. What a claim looks at does not grow with what has ended, though nobody tidies up.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import waiting
from asking import ask
from databases import Database, Member
from processes import Simulator, Worker
from simulated import Providers, all_ended, books_agree_with_the_provider

LIMIT = 1500


def test_everything_is_right_with_hardly_any_memory(
    poor: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    assert [poor.value(f"show {name}") for name in ("work_mem", "autovacuum")] == ["64kB", "off"]
    providers = Providers(poor, simulator, lease_ms=15000)  # neither worker takes the other for dead
    # Exact search ends early, so that an index is built in hardly any memory.
    poor.execute("update ai.settings set exact_search_size = 10000")
    plain, other = poor.member(), poor.member()
    poor.execute(
        "insert into ai.limits (tenant_id, metric, period, amount, on_limit)"
        " values (%s, 'requests', 'month', %s, 'reject')",
        plain.tenant_id,
        LIMIT,
    )
    processes = [worker(poor, concurrency=64) for _ in range(2)]
    model = providers.model("tokens=20")
    app = poor.connect(user=plain)
    # In one statement, more than fits into any memory.
    ask(app, model, LIMIT + 200)
    ask(poor.connect(user=other), providers.model("tokens=20", "anthropic"), 300, stream=True)
    search_works(poor, poor.connect(user=poor.member(other.tenant_id, role="admin")))
    all_ended(poor, 60)
    assert (
        poor.value("select count(*) from ai.generations where tenant_id = %s and status = 'succeeded'", plain.tenant_id)
        == LIMIT
    )
    assert poor.value("select count(*) from ai.generations where status = 'rejected'") == 200
    assert poor.value("select count(*) from ai.generations where status not in ('succeeded', 'rejected')") == 0
    assert [process.running for process in processes] == [True, True]
    books_agree_with_the_provider(poor, simulator)


def search_works(database: Database, admin: psycopg.Connection[dict[str, Any]]) -> None:
    """Documents are embedded, indexed and found."""
    admin.execute("select ai.create_collection('handbook', model => 'local/hash')")
    admin.execute(
        "select ai.add_document('handbook', format('Swift %s sleeps above mountain %s.', n, md5(n::text)))"
        " from generate_series(1, 100) n"
    )
    waiting.until(
        lambda: database.value("select count(*) from ai.documents where status = 'ready'") == 100, "the documents"
    )
    database.execute("select ai.make_search_indexes()")
    assert database.value("select count(*) from pg_indexes where indexname like 'chunk_vectors_c%'") == 1
    found = admin.execute("select content from ai.hybrid_search('mountain ' || md5('42'), null)").fetchall()
    assert "Swift 42 " in found[0]["content"]


def pages_of_a_claim(database: Database, member: Member) -> int:
    """Pages that the claim of one generation looks at, when nothing else is queued."""
    with database.connect() as session:
        worker_id = session.execute("select worker_id from ai.worker_register('counts', '0', 4)").fetchone()[
            "worker_id"
        ]
        counted = 0
        # The first one of a session also reads catalogs, and the first after many ends marks what it found to be dead.
        for _ in range(4):
            ask(database.connect(user=member), "local/extract", 1)
            plan = session.execute(
                "explain (analyze, buffers, format json) select * from ai.worker_claim(%s, 1, null)", [worker_id]
            ).fetchone()["QUERY PLAN"]
            top = (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
            counted = top["Shared Hit Blocks"] + top["Shared Read Blocks"]
        session.execute("select ai.worker_stop(%s)", [worker_id])
    return counted


def test_a_claim_looks_at_no_more_pages_after_thousands_of_ends_without_a_vacuum(
    poor: Database, worker: Callable[..., Worker]
) -> None:
    member = poor.member()
    before = pages_of_a_claim(poor, member)
    process = worker(poor, concurrency=256)
    for _ in range(4):
        ask(poor.connect(user=member), "local/extract", 1000)
        all_ended(poor)
    assert process.terminate() == 0
    assert poor.value("select sum(autovacuum_count + vacuum_count) from pg_stat_user_tables") == 0
    after = pages_of_a_claim(poor, member)
    print(f"{before} pages before, {after} after")
    assert after <= 2 * before, f"{before} pages before, {after} after"
