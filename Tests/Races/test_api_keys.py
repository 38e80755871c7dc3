"""API keys and their sessions, used, rotated and revoked at the same moment."""

from __future__ import annotations

import random
from threading import Event

import psycopg
import pytest
from crowd import at_once
from databases import Database, Member, refused
from keys import api_key


def test_a_revoked_key_ends_all_its_sessions_at_once_whatever_they_are_doing(
    database: Database, member: Member, dice: random.Random
) -> None:
    key = api_key(database, member)
    app = database.login("ai_user")
    connections = [database.connect(user=app, autocommit=False) for _ in range(6)]
    tokens = [c.execute("select ai.login(%s) as token", [key["key"]]).fetchone()["token"] for c in connections]
    for connection in connections:
        connection.commit()
    running, revoked = [Event() for _ in connections], Event()

    def run(number: int, dice: random.Random) -> int:
        if number == len(connections):
            for event in running:
                assert event.wait(30)
            assert database.value("select ai.revoke_api_key(%s)", key["id"])
            revoked.set()
            return 0
        connection, asked = connections[number], 0
        while True:
            known = revoked.is_set()
            try:
                secret = tokens[number] if dice.random() < 0.7 else key["key"]
                connection.execute("select ai.use_session(%s)", [secret])
                for _ in range(dice.randrange(1, 4)):
                    connection.execute("insert into ai.generations (prompt) values ('x')")
                connection.commit()
            except psycopg.Error as error:
                connection.rollback()
                if error.sqlstate != "PT401":
                    raise
                return asked
            assert not known, "a transaction that began after the revocation went through"
            asked += 1
            if asked == 3:
                running[number].set()

    asked = at_once(len(connections) + 1, run, dice)
    assert sum(asked) >= 3 * len(connections)
    assert database.value("select count(*) from ai.sessions where api_key_id = %s", key["id"]) == 0
    assert database.value("select bool_and(api_key_id = %s) from ai.generations", key["id"])


def test_within_a_transaction_the_next_statement_after_the_revocation_is_refused(
    database: Database, member: Member
) -> None:
    key = api_key(database, member)
    app = database.connect(user=database.login("ai_user"), autocommit=False)
    app.execute("select ai.login(%s)", [key["key"]])
    app.execute("insert into ai.generations (prompt) values ('x')")
    assert database.value("select ai.revoke_api_key(%s)", key["id"])
    with refused("PT401"):
        app.execute("select count(*) from ai.generations")
    app.rollback()
    assert database.value("select count(*) from ai.generations") == 0


@pytest.mark.parametrize(
    "deed",
    [
        "select ai.login(%(key)s)",
        "select ai.login(%(key)s, true)",
        "select ai.use_session(%(key)s)",
        "select ai.logout(%(token)s)",
        "select ai.use_session(%(token)s)",
    ],
)
def test_no_open_transaction_of_who_has_a_key_holds_up_its_revocation(
    database: Database, member: Member, deed: str
) -> None:
    key = api_key(database, member)
    app = database.connect(user=database.login("ai_user"), autocommit=False)
    token = app.execute("select ai.login(%s) as token", [key["key"]]).fetchone()["token"]
    app.commit()
    database.execute("update ai.api_key_uses set last_used_at = null")
    app.execute(deed, {"key": key["key"], "token": token})
    database.execute("set lock_timeout = '10s'")
    assert database.value("select ai.revoke_api_key(%s)", key["id"])
    app.commit()
    with refused("PT401"):
        app.execute("select ai.use_session(%s)", [token])
    app.rollback()
    database.execute("select ai.forget_sessions(now() + interval '1 day')")
    assert database.value("select count(*) from ai.sessions") == 0


def test_of_several_that_rotate_a_key_at_once_one_does(database: Database, member: Member, dice: random.Random) -> None:
    admin = database.member(member.tenant_id, role="admin")
    connections = [database.connect(user=admin) for _ in range(5)]
    for _ in range(10):
        key = api_key(database, member)

        def rotate(number: int, _: random.Random, key=key) -> str:
            try:
                return connections[number].execute("select (ai.rotate_api_key(%s)).key", [key["id"]]).fetchone()["key"]
            except psycopg.Error as error:
                return str(error.sqlstate)

        said = sorted(at_once(5, rotate, dice))
        assert said[:4] == ["PT409"] * 4
        assert said[4].startswith("mrt_")
        assert database.value("select count(*) from ai.api_keys where replaces = %s", key["id"]) == 1


def test_a_hundred_live_keys_of_a_member_stay_a_hundred_however_many_are_made_at_once(
    database: Database, dice: random.Random
) -> None:
    admin = database.member(role="admin")
    connections = [database.connect(user=admin) for _ in range(8)]
    for number in range(96):
        connections[0].execute("select ai.create_api_key(%s)", [f"key {number}"])

    def make(number: int, _: random.Random) -> int:
        made = 0
        for _ in range(2):
            try:
                connections[number].execute("select ai.create_api_key('more')")
                made += 1
            except psycopg.Error as error:
                if error.sqlstate != "PT409":
                    raise
        return made

    assert sum(at_once(8, make, dice)) == 4
    assert database.value("select count(*) from ai.api_keys") == 100


def test_many_logins_at_once_write_once_that_a_key_was_used(
    database: Database, member: Member, dice: random.Random
) -> None:
    key = api_key(database, member)
    database.execute("create table public.writes (at timestamptz)")
    database.execute(
        "create function public.count_writes() returns trigger language plpgsql security definer as"
        " $$ begin insert into public.writes values (now()); return null; end $$"
    )
    database.execute(
        "create trigger counted after update on ai.api_key_uses for each row execute function public.count_writes()"
    )
    app = database.login("ai_user")
    connections = [database.connect(user=app) for _ in range(8)]

    def log_in(number: int, dice: random.Random) -> str:
        for _ in range(10):
            how = "select ai.login(%s)" if dice.random() < 0.5 else "select ai.use_session(%s)"
            connections[number].execute(how, [key["key"]])
        return "done"

    at_once(8, log_in, dice)
    assert database.value("select count(*) from public.writes") == 1
    database.execute("update ai.api_key_uses set last_used_at = now() - interval '61 seconds'")
    at_once(8, log_in, dice)
    assert database.value("select count(*) from public.writes") == 3, "the one by hand, and one more"


def test_a_login_waits_for_no_other_that_has_not_committed(database: Database, member: Member) -> None:
    key = api_key(database, member)
    app = database.login("ai_user")
    first, second = (database.connect(user=app, autocommit=False) for _ in range(2))
    first.execute("select ai.login(%s)", [key["key"]])
    second.execute("set lock_timeout = '10s'")
    second.execute("select ai.login(%s)", [key["key"]])
    second.commit()
    first.commit()
    assert database.value("select count(*) from ai.sessions") == 2
