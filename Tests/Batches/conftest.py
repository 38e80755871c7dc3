"""One database for each file of this folder, swept before every test: making one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import databases
import pytest
from databases import Database

SWEPT = """
    generations, llm_calls, stream_events, provider_batches, batched_requests, leases, queue, delayed, waiting,
    prepared, cancellations,
    batches, counter_entries, counters, unsettled, parked_lanes, active_lanes, cache_entries, leaders,
    breakers, idempotency_keys
"""


@pytest.fixture(scope="module")
def ground(server: str, template: str) -> Iterator[Database]:
    with databases.temporary(server, template) as database:
        database.execute("create table public.kept_settings as select * from ai.settings")
        database.execute("create table public.kept_breakers as select * from ai.breaker_settings")
        database.execute("create table public.kept_providers as select id from ai.providers")
        yield database


@pytest.fixture
def database(ground: Database) -> Iterator[Database]:
    """A database in which nothing has been asked."""
    tables = ", ".join(f"ai.{name.strip()}" for name in SWEPT.split(","))
    ground.execute(f"truncate {tables} cascade")
    for table in ("limits", "capture_policies", "cache_policies"):
        ground.execute(f"delete from ai.{table}")
    ours = "provider_id not in (select id from kept_providers)"
    ground.execute(f"delete from ai.prices where model_id in (select id from ai.models where {ours})")
    ground.execute(f"delete from ai.models where {ours}")
    ground.execute("delete from ai.providers where id not in (select id from kept_providers)")
    settings = ground.value(
        "select string_agg(quote_ident(attname), ', ') from pg_attribute"
        " where attrelid = 'kept_settings'::regclass and attnum > 0"
    )
    ground.execute(f"update ai.settings set ({settings}) = (select {settings} from kept_settings)")
    ground.execute("delete from ai.breaker_settings")
    ground.execute("insert into ai.breaker_settings select * from kept_breakers")
    ground.execute("update ai.workers set ended_at = now(), ending = 'dead' where ended_at is null")
    yield ground
    ground.forget_connections()
