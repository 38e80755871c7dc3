"""Making everybody wait: locks that an app keeps, transactions that it leaves open, work that it makes dear."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import databases
import psycopg
import pytest
from Attacks.tenants import World, outcome
from protocol import PlainWorker


def a_worker_goes_on(world: World, worker: PlainWorker) -> None:
    """Beta asks, and is answered: claim, settle and upkeep wait for nobody."""
    worker.connection.execute("set statement_timeout = '30s'")
    asked = (
        world.connect("bob")
        .execute("insert into ai.generations (prompt, model) values ('x', 'shared/model') returning id")
        .fetchone()
    )
    assert asked is not None
    claimed = set()
    for _ in range(5):
        attempts = worker.claim(look_at_everything=True)
        assert set(worker.settle(attempts).values()) <= {"ended"}
        claimed |= {attempt.generation_id for attempt in attempts}
        if asked["id"] in claimed:
            break
    assert asked["id"] in claimed
    done = worker.maintain()
    assert "skipped" not in done
    worker.connection.execute("set statement_timeout = 0")


@pytest.fixture
def worker(world: World) -> PlainWorker:
    return PlainWorker(world.database)


@pytest.mark.parametrize(
    "call", ["pg_advisory_lock(1634300001, 0)", "pg_advisory_lock_shared(1634300001, 0)", "pg_advisory_lock(1634300002, g) from generate_series(1, 200) g", "pg_advisory_lock(1634300004, g) from generate_series(1, 200) g",
             "pg_advisory_lock(1634300005, g) from generate_series(1, 200) g"]
)  # fmt: skip
def test_advisory_locks_that_an_app_keeps_stop_nobody(world: World, worker: PlainWorker, call: str) -> None:
    """The wake-up handshake and the listing of lanes go on without them; a worker that cannot sleep polls."""
    world.connect("ann").execute(f"select {call}")
    a_worker_goes_on(world, worker)
    if "1634300001" in call:
        assert worker.connection.execute("select ai.worker_sleep() as held").fetchone() == {"held": False}
        a_worker_goes_on(world, worker)


OPEN = {
    "an insert": ("ann", "insert into ai.generations (prompt, model) values ('y', 'shared/model')"),
    "a cancel": ("ann", "select ai.cancel(id) from ai.generations where status = 'queued'"),
    "a stream being read": ("ann", "select * from ai.read_stream((select id from ai.generations limit 1))"),
    "a paused batch": ("ann", "select ai.pause_batch(id) from ai.batches"),
    "a cancelled batch": ("ann", "select * from ai.batches b cross join lateral ai.cancel_batch(b.id)"),
    "a new batch": ("ann", "select ai.create_batch('z')"),
    "a chat": ("ann", "select ai.chat(id, 'x', model => 'shared/model') from ai.conversations"),
    "an access share lock": ("ann", "lock table ai.generations, ai.llm_calls, ai.messages in access share mode"),
    "a limit for update": ("adm", "select id from ai.limits for update"),
    "a changed limit": ("adm", "update ai.limits set amount = amount + 1"),
    "a guardrail for update": ("adm", "select id from ai.guardrails for update"),
    "a provider for update": ("adm", "select id from ai.providers for update"),
    "a model for update": ("adm", "select id from ai.models for update"),
    "a model switched off": ("adm", "update ai.models set enabled = false"),
    "a profile for update": ("adm", "select id from ai.profiles for update"),
    "a member switched off": ("adm", "select ai.disable_member('dev')"),
    "a role": ("adm", "select ai.set_role('mine', '{}')"),
    "a document": ("dev", "select ai.add_document('c', 'text', uri => 'u')"),
    "a dropped collection": ("dev", "select ai.delete_collection('c')"),
    "a rebuild": ("dev", "select ai.rebuild_collection('c')"),
    "an invalidated cache": ("dev", "select ai.invalidate_cache(everything => true)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def furnished(server: str, template: str) -> Iterator[World]:
    """Alpha has limits, a guardrail, a profile, a model of its own, a batch, a conversation, a collection."""
    with databases.temporary(server, template) as db:
        world = World(db)
        ann, adm, dev = world.connect("ann"), world.connect("adm"), world.connect("dev")
        adm.execute(
            "insert into ai.limits (tenant_id, per, metric, period, amount) values (%s, 'member', 'requests', 'hour', 1000)",
            [world.alpha],
        )
        adm.execute(
            "insert into ai.guardrails (tenant_id, name, detector, action) values (%s, 'g', 'email', 'flag')",
            [world.alpha],
        )
        adm.execute("insert into ai.profiles (tenant_id, name) values (%s, 'p')", [world.alpha])
        db.execute(
            "insert into ai.providers (tenant_id, name, dialect, base_url) values (%s, 'own', 'openai', 'https://own.test')",
            world.alpha,
        )
        db.execute(
            "insert into ai.models (tenant_id, provider_id, name, wire_name) select tenant_id, id, 'own/model', 'm' from ai.providers where name = 'own'"
        )
        db.execute("delete from ai.breaker_settings where class <> 'transient'")
        dev.execute("select ai.create_collection('c')")
        dev.execute("select ai.add_document('c', 'text', uri => 'u')")
        ann.execute("select ai.start_conversation('t')")
        yield world


@pytest.mark.parametrize("what", OPEN)
def test_an_open_transaction_stops_no_worker(furnished: World, what: str) -> None:
    """Alpha's members hold what they may hold, for ever. Beta's questions are claimed and settled, alpha's failures too, and the upkeep runs."""
    world, worker = furnished, PlainWorker(furnished.database)
    world.database.execute("delete from ai.breakers")
    world.database.execute("delete from ai.counters")
    ann = world.connect("ann")
    batch = ann.execute("select ai.create_batch('b') as b").fetchone()["b"]
    ann.execute("select ai.generate(prompt => 'in it', model => 'shared/model', batch_id => %s)", [batch])
    while attempts := worker.claim(look_at_everything=True):
        worker.settle(attempts, embeddings=[[1.0] + [0.0] * 383])
    ann.execute(
        "select ai.generate(prompt => 'queued', model => 'shared/model', run_after => now() + interval '1 hour')"
    )
    who, statement = OPEN[what]
    holder = world.connect(who)
    for name in ("ann", "abe"):
        world.connect(name).execute("select ai.generate(prompt => 'own', model => 'own/model')")
    holder.execute("begin")
    try:
        holder.execute(statement)
        worker.connection.execute("set statement_timeout = '30s'")
        attempts = worker.claim(look_at_everything=True)
        own = {row["id"] for row in world.database.execute("select id from ai.generations where model = 'own/model'")}
        worker.settle([one for one in attempts if one.generation_id not in own])
        failing = [one for one in attempts if one.generation_id in own]
        worker.settle(failing, outcome="failed", signal="http", http_status=500, output=None)
        a_worker_goes_on(world, worker)
    finally:
        holder.execute("rollback")
        world.close_connections()


def test_one_tenants_open_change_of_a_member_lets_others_change_theirs(world: World) -> None:
    """adm of alpha holds a change of a member open; boss of beta changes one, and the operator binds a login."""
    adm = world.connect("adm")
    adm.execute("begin")
    adm.execute("select ai.disable_member('dev')")
    boss = world.connect("boss")
    boss.execute("set statement_timeout = '30s'")
    boss.execute("select ai.disable_member('bob')")
    boss.execute("select ai.set_role('other', '{}')")


def test_lock_table_is_not_given_to_apps(world: World) -> None:
    """Every mode but the weakest, on every table: 42501 for users, admins and machines."""
    tables = [
        row["relname"]
        for row in world.database.execute(
            "select relname from pg_class where relnamespace = 'ai'::regnamespace and relkind in ('r', 'p') and not relispartition"
        )
    ]
    for name in ("ann", "adm", "worker", "monitor"):
        connection = world.connect(name)
        for table in tables:
            for mode in ("row share", "row exclusive", "share", "exclusive", "access exclusive"):
                assert outcome(connection, f"lock table ai.{table} in {mode} mode nowait")[0] == "42501", (
                    name,
                    table,
                    mode,
                )


def test_many_paused_batches_are_not_looked_at_by_every_claim(world: World, worker: PlainWorker) -> None:
    """2,000 paused batches of one user: a claim reads about as many pages as without. Counted, not timed."""

    def pages() -> int:
        before = world.database.value("select sum(seq_tup_read + idx_tup_fetch) from pg_stat_xact_all_tables")
        assert before is not None or before is None
        worker.connection.execute("select pg_stat_force_next_flush()")
        start = world.database.value(
            "select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) from pg_stat_user_tables where relname in ('lanes', 'batches')"
        )
        worker.claim(look_at_everything=True)
        worker.connection.execute("select pg_stat_force_next_flush()")
        return (
            world.database.value(
                "select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) from pg_stat_user_tables where relname in ('lanes', 'batches')"
            )
            - start
        )

    few = pages()
    world.connect("ann").execute("select count(ai.create_batch('b', null, true)) from generate_series(1, 2000)")
    assert pages() < few + 1000


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_documents_poison_no_claim(world: World, worker: PlainWorker, depth: int) -> None:
    """Parameters and contents nested as deep as the database takes them: they are claimed beside others, which are answered."""
    ann = world.connect("ann")
    deep = "[" * depth + "]" * depth
    for query, value in (
        ("insert into ai.generations (prompt, model, params) values ('x', 'shared/model', %s)", f'{{"x": {deep}}}'),
        (
            "insert into ai.generations (messages, model) values (%s, 'shared/model')",
            f'[{{"role": "user", "content": {deep}}}]',
        ),
        ("insert into ai.generations (prompt, model, metadata) values ('x', 'shared/model', %s)", f'{{"x": {deep}}}'),
    ):
        try:
            ann.execute(query, [value])
        except psycopg.Error as error:
            state: Any = error.sqlstate
            if state not in ("54001", "PT400"):
                raise
    worker.connection.execute("set statement_timeout = '20s'")
    asked = (
        world.connect("bob")
        .execute("insert into ai.generations (prompt, model) values ('x', 'shared/model') returning id")
        .fetchone()
    )
    rows = worker.connection.execute("select generation_id from ai.worker_claim(%s, 64, null)", [worker.id]).fetchall()
    assert asked is not None
    assert asked["id"] in {row["generation_id"] for row in rows}


@pytest.mark.parametrize("value", ['{"a":' * 12_000 + "1" + "}" * 12_000, f'{{"a": {list(range(20_000, 0, -1))}}}'])
def test_a_condition_on_metadata_poisons_no_claim(world: World, worker: PlainWorker, value: str) -> None:
    """Deeper than what compares it can go, or with an array against an array: refused, and harmless where it was stored before that."""
    set_up = "insert into ai.routes (tenant_id, profile, position, model_id, metadata) select %s, 'dear', 1, id, %s from ai.models where name = 'shared/model' and tenant_id is null"
    assert outcome(world.connect("adm"), set_up, world.alpha, value)[0] == "PT400"
    stored = world.database.superuser
    with stored.transaction():
        stored.execute("set local session_replication_role = replica")
        stored.execute(set_up, [world.alpha, value])
    world.connect("ann").execute("insert into ai.generations (prompt, profile) values ('x', 'dear')")
    stored.execute("update ai.generations set metadata = %s where profile = 'dear'", [value])
    a_worker_goes_on(world, worker)
