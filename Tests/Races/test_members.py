"""Two who change members and roles of one tenant at once: what each made sure of still holds when both are done."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, refused
from waiting import until


def waits(database: Database, connection: psycopg.Connection[dict[str, Any]]) -> bool:
    """Whether the connection's statement waits for a lock."""
    return database.value("select cardinality(pg_blocking_pids(%s)) > 0", connection.info.backend_pid)


def in_background(
    connection: psycopg.Connection[dict[str, Any]], query: str
) -> tuple[threading.Thread, list[str | None]]:
    """Runs a statement in a thread; the list then holds its SQLSTATE, or None."""
    outcome: list[str | None] = []

    def run() -> None:
        try:
            connection.execute(query)
            outcome.append(None)
        except psycopg.Error as error:
            outcome.append(error.sqlstate)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def roles_of(database: Database, tenant: object) -> dict[str, str]:
    rows = database.execute("select user_id, role from ai.members where tenant_id = %s and enabled", tenant)
    return {row["user_id"]: row["role"] for row in rows}


def test_of_two_admins_who_switch_each_other_off_one_stays(database: Database, dice: random.Random) -> None:
    for _ in range(3):
        first = database.member(role="admin")
        second = database.member(first.tenant_id, role="admin")
        pair = [(first, second), (second, first)]
        sessions = [database.connect(user=who) for who, _ in pair]

        def run(
            number: int,
            _: random.Random,
            pair: list[Any] = pair,
            sessions: list[psycopg.Connection[dict[str, Any]]] = sessions,
        ) -> str | None:
            try:
                sessions[number].execute("select ai.disable_member(%s)", [pair[number][1].user_id])
            except psycopg.Error as error:
                return error.sqlstate
            return None

        outcomes = at_once(2, run, dice)
        left = roles_of(database, first.tenant_id)
        assert list(left.values()) == ["admin"]
        # Who came second was switched off by then, or had no right to switch off the last one.
        assert sorted(map(str, outcomes)) in (["None", "PT401"], ["None", "PT409"])


def test_two_admins_who_step_down_at_once_do_not_both(database: Database) -> None:
    first = database.member(role="admin")
    second = database.member(first.tenant_id, role="admin")
    one, two = database.connect(user=first, autocommit=False), database.connect(user=second)
    one.execute("select ai.set_member_role(ai.user_id(), 'user')")
    thread, outcome = in_background(two, "select ai.set_member_role(ai.user_id(), 'user')")
    until(lambda: waits(database, two), "the second to wait for the first")
    one.commit()
    thread.join(30)
    assert outcome == ["PT409"]
    assert roles_of(database, first.tenant_id) == {first.user_id: "user", second.user_id: "admin"}


@pytest.mark.parametrize("by_operator", [False, True])
def test_a_role_that_is_being_given_is_not_dropped(database: Database, by_operator: bool) -> None:
    admin = database.member(role="admin")
    other = database.member(admin.tenant_id, role="admin")
    giving = database.connect(user=admin, autocommit=False)
    dropping = database.connect() if by_operator else database.connect(user=other)
    giving.execute("select ai.set_role('brief', '{usage:read}')")
    giving.commit()
    giving.execute("select ai.add_member('eve', 'brief')")
    drop = "delete from ai.roles where name = 'brief'" if by_operator else "select ai.drop_role('brief')"
    thread, outcome = in_background(dropping, drop)
    until(lambda: waits(database, dropping), "the drop to wait for who gives the role")
    giving.commit()
    thread.join(30)
    assert outcome == ["PT409"]
    assert roles_of(database, admin.tenant_id)["eve"] == "brief"


def test_a_role_that_is_being_dropped_is_not_given(database: Database) -> None:
    admin = database.member(role="admin")
    dropping, giving = database.connect(user=admin, autocommit=False), database.connect()
    dropping.execute("select ai.set_role('brief', '{usage:read}')")
    dropping.commit()
    dropping.execute("select ai.drop_role('brief')")
    thread, outcome = in_background(
        giving, f"insert into ai.members (tenant_id, user_id, role) values ('{admin.tenant_id}', 'eve', 'brief')"
    )
    until(lambda: waits(database, giving), "the insert to wait for the drop")
    dropping.commit()
    thread.join(30)
    assert outcome == ["PT400"]
    assert "eve" not in roles_of(database, admin.tenant_id)


def test_a_stricter_isolation_is_refused_where_it_would_miss_what_others_did(database: Database) -> None:
    admin = database.member(role="admin")
    session = database.connect(user=admin, autocommit=False)
    for level in (psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE):
        session.isolation_level = level
        for statement in ("select ai.set_role('x', '{}')", "select ai.add_member('eve')", "select ai.drop_role('x')"):
            with refused("PT400"):
                session.execute(statement)
            session.rollback()
    # The operator, too, who changes what all tenants share.
    database.execute("insert into ai.roles (name, permissions) values ('guest', '{}')")
    operator = database.connect(autocommit=False)
    operator.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    for statement in (
        "delete from ai.roles where name = 'guest'",
        "update ai.roles set permissions = '{usage:read}' where name = 'guest'",
    ):
        with refused("PT400"):
            operator.execute(statement)
        operator.rollback()


def test_whoever_changes_members_holds_up_nobody_who_asks(database: Database) -> None:
    admin, boss = database.member(role="admin"), database.member(role="admin")
    impatient = "-c lock_timeout=20000 -c statement_timeout=30000"
    other = database.connect(user=database.member(admin.tenant_id), options=impatient)
    stranger = database.connect(user=boss, options=impatient)
    changing = database.connect(user=admin, autocommit=False)
    changing.execute("select ai.add_member('eve'), ai.set_role('x', '{}')")
    other.execute("insert into ai.generations (prompt) values ('Why?')")
    stranger.execute("select ai.add_member('eve'), ai.set_role('x', '{}')")
    changing.commit()
