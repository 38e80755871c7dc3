"""What a bound role may is right at every commit, whoever changes what it hangs on at the same moment."""

from __future__ import annotations

import random

import psycopg
import pytest
from crowd import LEVELS, at_once, commits, commits_some
from databases import Database

ROLES = ["user", "developer", "admin", "one", "two"]
SETS = ["{inference:execute}", "{inference:read}", "{*}", "{}"]


def test_the_copies_in_bindings_are_what_their_members_are(database: Database, dice: random.Random) -> None:
    tenants = [database.tenant() for _ in range(2)]
    for tenant in tenants:
        for role in ("one", "two"):
            database.execute("insert into ai.roles (tenant_id, name, permissions) values (%s, %s, '{}')", tenant, role)
        for user in ("a", "b", "c"):
            database.execute("insert into ai.members (tenant_id, user_id) values (%s, %s)", tenant, user)
    connections = [database.connect(autocommit=False) for _ in range(6)]
    for connection in connections:
        connection.execute("set deadlock_timeout = '20ms'")
        connection.commit()

    def change(connection: psycopg.Connection, dice: random.Random) -> None:
        tenant, user, name = dice.choice(tenants), dice.choice("abc"), dice.choice(["one", "two"])
        match dice.randrange(7):
            case 0:
                query = "update ai.members set role = %s where tenant_id = %s and user_id = %s"
                connection.execute(query, [dice.choice(ROLES), tenant, user])
            case 1:
                query = "update ai.members set enabled = not enabled where tenant_id = %s and user_id = %s"
                connection.execute(query, [tenant, user])
            case 2:
                connection.execute("update ai.tenants set enabled = not enabled where id = %s", [tenant])
            case 3:
                query = "update ai.roles set permissions = %s where tenant_id = %s and name = %s"
                connection.execute(query, [dice.choice(SETS), tenant, name])
            case 4:
                query = "update ai.role_bindings set tenant_id = %s, user_id = %s where role_name = %s"
                connection.execute(query, [tenant, user, f"nobody_{dice.randrange(4)}"])
            case 5:
                query = (
                    "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, %s)"
                    " on conflict do nothing"
                )
                connection.execute(query, [f"nobody_{dice.randrange(4)}", tenant, user])
            case _:
                connection.execute("delete from ai.role_bindings where role_name = %s", [f"nobody_{dice.randrange(4)}"])

    def run(number: int, dice: random.Random) -> int:
        return sum(commits_some(connections[number], change, dice) for _ in range(60))

    for _ in range(3):
        assert sum(at_once(len(connections), run, dice)) > 60, "hardly anything went through"
        wrong = database.execute(
            "select b.*, m.role, p.permissions, m.enabled, t.enabled as tenant_enabled"
            " from ai.role_bindings b join ai.members m using (tenant_id, user_id)"
            " join ai.tenants t on t.id = m.tenant_id"
            " cross join lateral (select ai.role_permissions(m.tenant_id, m.role) as permissions) p"
            " where (b.member_role, b.member_permissions, b.member_enabled, b.asks_plainly)"
            " is distinct from (m.role, p.permissions, m.enabled and t.enabled,"
            " m.enabled and t.enabled and p.permissions && '{inference:execute,*}')"
        )
        assert wrong == []
        assert database.value("select ai.refresh_bindings()") == 0


@pytest.mark.parametrize("shared", [False, True])
def test_who_is_bound_at_the_moment_of_a_first_policy_does_not_ask_past_it(
    database: Database, dice: random.Random, shared: bool
) -> None:
    connections = [database.connect(autocommit=False) for _ in range(2)]
    both = 0
    for number in range(40):
        tenant = database.tenant()
        database.execute("insert into ai.members (tenant_id, user_id) values (%s, 'a')", tenant)

        def run(which: int, dice: random.Random, tenant=tenant, number=number) -> bool:
            connection = connections[which]

            def work() -> None:
                connection.execute("select from ai.settings")  # takes the snapshot of a level that keeps one
                if which:
                    query = (
                        "insert into ai.guardrails (tenant_id, name, scope, detector, action)"
                        " values (%s, 'any', 'input', 'email', 'flag')"
                    )
                    connection.execute(query, [None if shared else tenant])
                else:
                    query = "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, 'a')"
                    connection.execute(query, [f"bound_{number}", tenant])

            return commits(connection, dice.choice(LEVELS[: 1 if which and shared else None]), work)

        bound, forbidden = at_once(2, run, dice)
        plainly = database.execute("select asks_plainly from ai.role_bindings where role_name = %s", f"bound_{number}")
        assert plainly == ([{"asks_plainly": not forbidden}] if bound else []), f"round {number}"
        both += bound and forbidden
        database.execute("delete from ai.guardrails")
        database.execute("select ai.refresh_policies()")
    assert both > 0, "never both"


def test_a_first_policy_for_all_is_made_at_read_committed(database: Database) -> None:
    connection = database.connect(autocommit=False)
    query = "insert into ai.guardrails (name, scope, detector, action) values ('all', 'input', 'email', 'flag')"
    for level in LEVELS[1:]:
        connection.isolation_level = level
        with pytest.raises(psycopg.Error, match="READ COMMITTED") as caught:
            connection.execute(query)
        assert caught.value.sqlstate == "PT400"
        connection.rollback()
    connection.isolation_level = LEVELS[0]
    connection.execute(query)
    connection.commit()


def test_a_role_becomes_a_gateway_or_a_member_never_both(database: Database, dice: random.Random) -> None:
    member = database.member()
    connections = [database.connect(autocommit=False) for _ in range(4)]
    for round_number in range(30):
        name = f"either_{round_number}"

        def register(number: int, dice: random.Random, name=name) -> bool:
            connection = connections[number]
            connection.isolation_level = dice.choice(LEVELS)
            try:
                if number % 2:
                    connection.execute("insert into ai.authenticators (role_name) values (%s)", [name])
                else:
                    connection.execute(
                        "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, %s)",
                        [name, member.tenant_id, member.user_id],
                    )
                connection.commit()
            except psycopg.Error as error:
                connection.rollback()
                if error.sqlstate not in ("PT409", "23505", "40001"):
                    raise
                return False
            return True

        at_once(4, register, dice)
        both = database.value(
            "select count(*) from ai.authenticators a join ai.role_bindings b on b.role_name = a.role_name"
        )
        assert both == 0, f"round {round_number}"
