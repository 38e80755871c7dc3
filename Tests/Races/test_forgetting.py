"""ai.forget_user() against everything that the person, workers and others do at the same moment."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import waiting
from crowd import at_once
from databases import Database, Member, refused
from processes import Simulator, Worker
from protocol import PlainWorker
from simulated import Providers, all_ended, books_are_consistent

ADD = "insert into ai.members (tenant_id, user_id) values (%s, %s)"
FORGET = "select what, erased, remaining from ai.forget_user(%s, %s)"


def forget(database: Database, person: Member, connection: psycopg.Connection[dict[str, Any]] | None = None) -> None:
    (connection or database.superuser).execute(FORGET, [person.user_id, person.tenant_id])


def tables(database: Database) -> list[str]:
    rows = database.execute(
        "select relname from pg_class where relnamespace = 'ai'::regnamespace and relkind = 'r'"
        " and relname not in ('forgotten', 'audit_log', 'audit_pending')"
    )
    return [row["relname"] for row in rows]


def traces(database: Database, *markers: str) -> dict[str, list[str]]:
    """Rows of any table in which one of the markers is."""
    found = {}
    for table in tables(database):
        rows = database.execute(
            f'select r::text as line from ai."{table}" r where r::text ~ any (%s) limit 3', list(markers)
        )
        if rows:
            found[table] = [row["line"] for row in rows]
    return found


def carry_on(database: Database, rounds: int = 200) -> None:
    """Does the chore, each time in a transaction of its own, until everybody is forgotten."""
    for _ in range(rounds):
        database.execute("select ai.continue_forgetting(ai.now())")
        if database.value("select count(*) from ai.forgotten where finished_at is null") == 0:
            return
    raise AssertionError(database.execute("select * from ai.forgotten where finished_at is null"))


def spent(database: Database) -> list[dict[str, Any]]:
    return database.execute(
        "select generation_id, attempt, status, cost, input_tokens, output_tokens from ai.llm_calls order by 1, 2"
    )


def test_what_is_inserted_at_the_moment_of_forgetting_does_not_stay(database: Database, dice: random.Random) -> None:
    tenant = database.tenant()
    other = database.member(tenant)
    operator, asked = database.connect(), 0
    for round_number in range(10):
        person = database.member(tenant, user_id=f"vanishing-{round_number}-")
        apps = [database.connect(user=person) for _ in range(3)]
        stop = threading.Event()

        def run(number: int, dice: random.Random, apps=apps, person=person, stop=stop, n=round_number) -> int:
            if number == 3:
                time.sleep(dice.random() * 0.03)
                try:
                    forget(database, person, operator)
                finally:
                    stop.set()
                return 0
            inserts = 0
            while inserts < 20 and not stop.is_set():
                try:
                    with apps[number].transaction():
                        apps[number].execute(
                            "insert into ai.generations (prompt, metadata) select 'PERSONAL ' || i, %s"
                            " from generate_series(1, %s) i",
                            [f'{{"n": {n}}}', dice.randrange(1, 20)],
                        )
                        inserts += 1
                except psycopg.Error as error:
                    if error.sqlstate not in ("PT401", "PT403"):
                        raise
                    break
            return inserts

        asked += sum(at_once(4, run, dice))
        with refused("PT401"):
            apps[0].execute("insert into ai.generations (prompt) values ('again')")
        for app in apps:
            app.close()
        carry_on(database)
        assert traces(database, "PERSONAL", person.user_id) == {}, f"round {round_number}"
    assert asked > 0
    database.connect(user=other).execute("insert into ai.generations (prompt) values ('mine')")
    assert database.value("select count(*) from ai.generations where prompt = 'mine'") == 1


def test_an_insert_that_commits_long_after_is_erased_and_until_then_nobody_is_done(database: Database) -> None:
    tenant = database.tenant()
    person = database.member(tenant, user_id="latecomer-")
    app = database.connect(user=person, autocommit=False)
    app.execute("insert into ai.generations (prompt) values ('PERSONAL before')")
    forget(database, person)
    for _ in range(5):
        database.execute("select ai.continue_forgetting(ai.now())")
    assert database.value("select finished_at from ai.forgotten") is None
    app.commit()
    carry_on(database)
    assert traces(database, "PERSONAL", "latecomer-") == {}
    assert database.value("select status from ai.generations") == "cancelled"


@pytest.mark.parametrize("isolation", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.READ_COMMITTED])
def test_a_transaction_that_had_only_read_and_writes_later_is_waited_for(
    database: Database, isolation: psycopg.IsolationLevel
) -> None:
    tenant = database.tenant()
    person = database.member(tenant, user_id="sleeper-")
    app = database.connect(user=person, autocommit=False)
    app.isolation_level = isolation
    assert app.execute("select user_id from ai.whoami()").fetchone()["user_id"] == "sleeper-"
    forget(database, person)
    for _ in range(5):
        database.execute("select ai.continue_forgetting(ai.now())")
    assert database.value("select finished_at from ai.forgotten") is None, "the person is in its snapshot"
    try:
        app.execute("insert into ai.generations (prompt) values ('PERSONAL from the past')")
        app.commit()
    except psycopg.Error as error:
        if error.sqlstate not in ("PT401", "PT403"):  # with a fresh snapshot the person is gone
            raise
        app.rollback()
    carry_on(database)
    assert traces(database, "PERSONAL", "sleeper-") == {}


def test_open_transactions_of_other_roles_are_seen_without_special_rights(database: Database) -> None:
    """Who owns the schema is an ordinary role, and sees little of other sessions: their transactions it must see."""
    app = database.connect(user=database.member(), autocommit=False)
    owner = database.login()
    database.execute(f'grant execute on function ai.open_transactions() to "{owner.name}"')
    database.execute(f'grant usage on schema ai to "{owner.name}"')
    database.execute(f'alter function ai.open_transactions() owner to "{owner.name}"')
    reader = database.connect(user=owner)
    before = set(reader.execute("select ai.open_transactions() as t").fetchone()["t"])
    app.execute("select 1")
    after = set(reader.execute("select ai.open_transactions() as t").fetchone()["t"])
    assert len(after - before) == 1
    app.rollback()
    assert not (after - before) & set(reader.execute("select ai.open_transactions() as t").fetchone()["t"])
    database.execute("alter function ai.open_transactions() owner to current_user")


def test_forgetting_the_same_person_twice_at_once_is_forgetting_once(database: Database, dice: random.Random) -> None:
    tenant = database.tenant()
    person = database.member(tenant, user_id="doubly-")
    app = database.connect(user=person)
    app.execute("insert into ai.generations (prompt) select 'PERSONAL ' || i from generate_series(1, 300) i")
    operators = [database.connect() for _ in range(4)]

    def run(number: int, dice: random.Random) -> None:
        if number == 4:
            for _ in range(10):
                database.execute("select ai.continue_forgetting(ai.now())")
        else:
            forget(database, person, operators[number])

    at_once(5, run, dice)
    carry_on(database)
    assert traces(database, "PERSONAL", "doubly-") == {}
    assert database.value("select (erased ->> 'generations')::int from ai.forgotten") == 300
    assert database.value("select (erased ->> 'memberships')::int from ai.forgotten") == 1
    pseudonyms = database.value("select count(distinct user_id) from ai.generations where user_id like 'forgotten-%%'")
    assert pseudonyms == 1


def test_an_open_transaction_that_forgets_holds_up_no_worker(database: Database) -> None:
    tenant = database.tenant()
    person, other = database.member(tenant, user_id="leaving-"), database.member(tenant)
    database.execute("insert into ai.cache_policies (tenant_id, scope) values (%s, 'tenant')", tenant)
    database.execute(
        "insert into ai.limits (tenant_id, per, metric, period, amount) values (%s, 'member', 'requests', 'day', 99)",
        tenant,
    )
    app, neighbour = database.connect(user=person), database.connect(user=other)
    worker = PlainWorker(database)
    worker.connection.execute("set lock_timeout = '20s'")
    for connection in (app, neighbour):
        connection.execute("insert into ai.generations (prompt, idempotency_key) values ('same', gen_random_uuid())")
    app.execute("select ai.chat(ai.start_conversation(), 'PERSONAL')")
    for _ in range(3):
        worker.settle(worker.claim(1, look_at_everything=True), finish_reason="stop")
    app.execute("insert into ai.generations (prompt, cache) values ('same', 'refresh'), ('PERSONAL more', null)")
    running = worker.claim(1, look_at_everything=True) or worker.claim(1, look_at_everything=True)
    database.execute("update ai.idempotency_keys set created_at = '2020-01-01'")
    operator = database.connect(autocommit=False)
    forget(database, person, operator)
    try:
        neighbour.execute("insert into ai.generations (prompt, cache) values ('same', 'refresh'), ('else', null)")
        for _ in range(4):
            running += worker.claim(8, look_at_everything=True)
        assert running
        worker.settle(running, finish_reason="stop")
        database.execute("update ai.maintenance set partitions_at = '-infinity', orphans_at = '-infinity'")
        assert "rescued" in worker.maintain()
    finally:
        operator.commit()
    worker.claim(8, look_at_everything=True)
    carry_on(database)
    assert traces(database, "PERSONAL", "leaving-") == {}
    assert database.value("select count(*) from ai.generations where user_id = %s", other.user_id) == 3


def test_who_is_added_at_the_moment_of_forgetting_is_either_forgotten_or_refused(
    database: Database, dice: random.Random
) -> None:
    tenant = database.tenant()
    operators = [database.connect() for _ in range(2)]
    for round_number in range(30):
        user = f"phoenix-{round_number}-"

        def run(number: int, dice: random.Random, user=user) -> bool:
            time.sleep(dice.random() * 0.005)
            if number == 0:
                operators[0].execute(FORGET, [user, tenant])
                return True
            try:
                with operators[1].transaction():
                    operators[1].execute(ADD, [tenant, user])
                    time.sleep(dice.random() * 0.005)
            except psycopg.Error as error:
                if error.sqlstate != "PT409":
                    raise
                return False
            return True

        added = at_once(2, run, dice)[1]
        is_member = "select count(*) from ai.members where tenant_id = %s and user_id = %s"
        assert database.value(is_member, tenant, user) == 0, f"round {round_number}"
        carry_on(database)
        assert database.value("select (erased ->> 'memberships')::int from ai.forgotten where user_id = %s", user) == (
            1 if added else None
        ), f"round {round_number}"
        database.execute(ADD, tenant, user)


def test_a_worker_that_is_killed_in_the_middle_is_followed_by_another(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], dice: random.Random
) -> None:
    model = Providers(database, simulator).model("tokens=5;ttft=20;rate=200")
    tenant = database.tenant()
    person, other = database.member(tenant, user_id="dissolving-"), database.member(tenant)
    apps = database.connect(user=person), database.connect(user=other)
    for app, text in zip(apps, ("PERSONAL", "OTHERS"), strict=True):
        app.execute(
            "insert into ai.generations (prompt, model, stream) select %s || i, %s, i %% 2 = 0"
            " from generate_series(1, 400) i",
            [text, model],
        )
    doomed = worker(database, concurrency=32)
    waiting.until(lambda: database.value("select count(*) from ai.llm_calls") > 100, "some answers")
    forget(database, person)
    time.sleep(dice.random() * 0.3)
    doomed.kill()
    database.execute("update ai.settings set lease_ms = 1000")
    worker(database, concurrency=32)
    all_ended(database)
    waiting.until(
        lambda: database.value("select count(*) from ai.forgotten where finished_at is null") == 0, "everything erased"
    )
    assert traces(database, "PERSONAL", "dissolving-") == {}
    books_are_consistent(database)
    kept = "select count(*) as n, count(*) filter (where output is not null) as answered from ai.generations"
    assert database.execute(f"{kept} where user_id = %s and prompt like 'OTHERS%%'", other.user_id) == [
        {"n": 400, "answered": 400}
    ]


def test_the_books_are_the_same_before_and_after_whatever_runs_beside(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], dice: random.Random
) -> None:
    model = Providers(database, simulator).model("tokens=3")
    tenant = database.tenant()
    database.execute(
        "insert into ai.limits (tenant_id, per, metric, period, amount) values"
        " (%s, 'member', 'cost', 'month', 1000), (%s, 'tenant', 'tokens', 'month', 100000000)",
        tenant,
        tenant,
    )
    people = [database.member(tenant, user_id=f"person-{n}-") for n in range(4)]
    for person in people:
        database.connect(user=person).execute(
            "insert into ai.generations (prompt, model) select 'PERSONAL', %s from generate_series(1, 60) i", [model]
        )
    worker(database, concurrency=16)
    worker(database, concurrency=16)
    all_ended(database)
    before = spent(database)
    ledger = database.execute("select * from ai.counter_entries order by counter_id, window_start, seq")
    operators = [database.connect() for _ in people]
    at_once(4, lambda n, dice: forget(database, people[n], operators[n]), dice)
    waiting.until(
        lambda: database.value("select count(*) from ai.forgotten where finished_at is null") == 0, "everything erased"
    )
    assert spent(database) == before
    assert database.execute("select * from ai.counter_entries order by counter_id, window_start, seq") == ledger
    assert traces(database, "PERSONAL", "person-[0-9]-") == {}
    assert database.value("select count(distinct user_id) from ai.llm_calls") == 4
    books_are_consistent(database)
