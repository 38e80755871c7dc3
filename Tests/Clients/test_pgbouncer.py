"""Identity behind the real PgBouncer in transaction mode, where clients follow each other on one server connection."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from crowd import at_once
from databases import Database, Login, Member, refused
from keys import api_key
from pooler import Pooler, pooler
from processes import Simulator, Worker
from simulated import Providers

Client = psycopg.Connection[dict[str, Any]]


@pytest.fixture
def app(database: Database) -> Login:
    """The login role of an app server: in ai_user, bound to nobody."""
    return database.login("ai_user")


@pytest.fixture
def bouncer(database: Database, app: Login) -> Iterator[Pooler]:
    with pooler(database, [app]) as running:
        yield running


def who(client: Client) -> tuple[str | None, str | None, int]:
    row = client.execute("select user_id, source, pg_backend_pid() as pid from ai.whoami()").fetchone()
    assert row is not None
    return row["user_id"], row["source"], row["pid"]


def token_of(client: Client, key: str) -> str:
    row = client.execute("select ai.login(%s) as token", [key]).fetchone()
    assert row is not None
    client.commit()
    return row["token"]


def test_a_session_is_its_transactions_and_inert_for_the_next_client_of_the_connection(
    database: Database, app: Login, bouncer: Pooler
) -> None:
    ann, bob = database.member(user_id="ann"), database.member(user_id="bob")
    first, second = bouncer.connect(app), bouncer.connect(app)
    token = token_of(first, api_key(database, ann)["key"])
    first.execute("select ai.use_session(%s)", [token])
    user, source, pid = who(first)
    assert (user, source) == ("ann", "session")
    first.execute("insert into ai.generations (prompt) values ('of ann')")
    first.commit()

    assert who(second) == (None, None, pid), "another client on the same server connection is nobody"
    assert second.execute("select current_setting('ai.session', true) as left_behind").fetchone()["left_behind"] == ""
    assert second.execute("select from ai.generations").fetchall() == []
    with refused("PT401"):
        second.execute("insert into ai.generations (prompt) values ('whose?')")
    second.rollback()

    other = token_of(second, api_key(database, bob)["key"])
    second.execute("select ai.use_session(%s)", [other])
    assert who(second) == ("bob", "session", pid)
    assert second.execute("select from ai.generations").fetchall() == []
    second.commit()
    assert who(first) == (None, None, pid), "nor does the first keep anything"
    first.commit()
    first.execute("select ai.use_session(%s)", [token])
    assert len(first.execute("select from ai.generations").fetchall()) == 1
    first.commit()


def test_a_session_that_a_client_leaves_on_the_connection_is_inert_for_the_next(
    database: Database, app: Login, bouncer: Pooler
) -> None:
    ann, bob = database.member(user_id="ann"), database.member(user_id="bob")
    first, second = bouncer.connect(app), bouncer.connect(app)
    token = token_of(first, api_key(database, ann)["key"])
    first.execute("select ai.use_session(%s)", [token])
    first.execute("select set_config('ai.session', current_setting('ai.session'), false)")
    *_, pid = who(first)
    first.commit()

    left = second.execute("select current_setting('ai.session') as value, pg_backend_pid() as pid").fetchone()
    assert left["value"].startswith(token), "it is there"
    assert left["pid"] == pid
    assert who(second) == (None, None, pid), "and makes nobody ann"
    why = second.execute("select why from ai.whoami()").fetchone()["why"]
    assert "another transaction" in why
    assert second.execute("select from ai.generations").fetchall() == []
    with refused("PT401"):
        second.execute("insert into ai.generations (prompt) values ('as ann?')")
    second.rollback()
    second.execute("select ai.use_session(%s)", [api_key(database, bob)["key"]])
    assert who(second) == ("bob", "session", pid), "what is set for the transaction goes before what is left"
    second.commit()
    assert who(second)[0] is None


@pytest.mark.parametrize("kind", ["token", "key", "rubbish"])
def test_what_was_set_without_a_stamp_is_refused_and_makes_nobody_anybody(
    database: Database, app: Login, bouncer: Pooler, kind: str
) -> None:
    ann, bob = database.member(user_id="ann"), database.member(user_id="bob")
    first, second = bouncer.connect(app), bouncer.connect(app)
    key = api_key(database, ann)["key"]
    value = {"token": token_of(first, key), "key": key, "rubbish": "ann"}[kind]
    first.execute("select set_config('ai.session', %s, false)", [value])
    first.commit()
    with refused("PT401"):
        second.execute("select from ai.generations")
    second.rollback()
    second.execute("select ai.use_session(%s)", [api_key(database, bob)["key"]])
    assert who(second)[:2] == ("bob", "session")
    second.commit()
    second.execute("select ai.logout()")
    second.commit()
    assert who(first)[0] is None, "logout clears the connection"


def test_an_app_behind_the_pooler_asks_reads_and_cancels(
    database: Database, app: Login, bouncer: Pooler, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    model = Providers(database, simulator).model("ttft=30;rate=200;tokens=30")
    member, other = database.member(), database.member()
    client, stranger = bouncer.connect(app), bouncer.connect(app)
    key, others_key = api_key(database, member), api_key(database, other)
    token, others = token_of(client, key["key"]), token_of(stranger, others_key["key"])
    worker(database)

    def as_member(query: str, *arguments: Any, client: Client = client, token: str = token) -> list[dict[str, Any]]:
        client.execute("select ai.use_session(%s)", [token])
        cursor = client.execute(query, arguments or None)
        rows = cursor.fetchall() if cursor.description else []
        client.commit()
        return rows

    asked: uuid.UUID = as_member(
        "insert into ai.generations (prompt, model, stream) values ('Tell!', %s, true) returning id", model
    )[0]["id"]
    assert as_member("select from ai.generations", client=stranger, token=others) == []
    with refused("PT404"):
        as_member("select * from ai.read_stream(%s)", asked, client=stranger, token=others)
    stranger.rollback()
    seen, text, ended = 0, "", False
    while not ended:
        events = as_member("select * from ai.read_stream(%s, %s, 10000)", asked, seen)
        assert events, "it waited ten seconds for nothing"
        for event in events:
            assert event["seq"] == seen + 1
            seen = event["seq"]
            text += event["data"].get("text", "")
            ended = event["type"] == "end"
    row = as_member("select status, output, api_key_id from ai.generations where id = %s", asked)[0]
    assert (row["status"], row["output"], row["api_key_id"]) == ("succeeded", text, key["id"])

    later = as_member(
        "insert into ai.generations (prompt, model, run_after) values ('Later', %s, now() + interval '1 hour')"
        " returning id",
        model,
    )[0]["id"]
    with refused("PT404"):
        as_member("select ai.cancel(%s)", later, client=stranger, token=others)
    stranger.rollback()
    assert as_member("select ai.cancel(%s) as status", later)[0]["status"] == "cancelled"
    assert database.value("select ai.revoke_api_key(%s)", key["id"])
    with refused("PT401"):
        as_member("select from ai.generations")


def test_a_gateway_behind_the_pooler_sets_claims_for_its_transaction(database: Database) -> None:
    ann, bob = database.member(user_id="ann"), database.member(user_id="bob")
    web, gateway = database.login("ai_user"), database.login()
    database.execute(f"alter role {gateway.name} noinherit")
    database.execute(f"grant {web.name} to {gateway.name}")
    database.execute("insert into ai.authenticators (role_name) values (%s)", gateway.name)
    with pooler(database, [gateway]) as bouncer:
        first, second = bouncer.connect(gateway), bouncer.connect(gateway)

        def request(client: Client, claims: str | None, query: str, headers: str = "{}") -> list[dict[str, Any]]:
            client.execute(f"set local role {web.name}")
            if claims is not None:
                client.execute("select set_config('request.jwt.claims', %s, true)", [claims])
            client.execute("select set_config('request.headers', %s, true), ai.pre_request()", [headers])
            rows = client.execute(query).fetchall()
            client.commit()
            return rows

        ask = "insert into ai.generations (prompt) values ('x') returning user_id"
        whose = "select user_id, source from ai.whoami()"
        assert request(first, '{"sub": "ann"}', ask) == [{"user_id": "ann"}]
        assert request(second, None, whose) == [{"user_id": None, "source": None}]
        assert request(second, '{"sub": "bob"}', "select from ai.generations") == []
        assert request(second, '{"sub": "ann"}', "select user_id from ai.generations") == [{"user_id": "ann"}]
        with refused("PT401"):
            request(first, '{"sub": "unknown"}', whose)
        first.rollback()
        key = api_key(database, bob)["key"]
        with_key = f'{{"x-api-key": "{key}"}}'
        assert request(first, '{"sub": "ann"}', whose, with_key) == [{"user_id": "bob", "source": "session"}]
        assert request(first, '{"sub": "ann"}', whose) == [{"user_id": ann.user_id, "source": "jwt"}]


def test_many_clients_in_turns_on_few_connections_are_each_themselves(
    database: Database, app: Login, dice: random.Random
) -> None:
    members: list[Member] = [database.member() for _ in range(4)]
    keys = [api_key(database, member)["key"] for member in members]
    with pooler(database, [app], size=2) as bouncer:
        clients = [bouncer.connect(app) for _ in range(8)]
        tokens = [token_of(clients[0], key) for key in keys]

        def run(number: int, dice: random.Random) -> None:
            client = clients[number]
            for _ in range(40):
                index = dice.randrange(len(members) + 1)
                if index == len(members):
                    assert who(client)[0] is None
                else:
                    secret = tokens[index] if dice.random() < 0.5 else keys[index]
                    client.execute("select ai.use_session(%s)", [secret])
                    client.execute("insert into ai.generations (prompt) values ('x')")
                    rows = client.execute("select distinct user_id from ai.generations").fetchall()
                    assert [row["user_id"] for row in rows] == [members[index].user_id]
                    if dice.random() < 0.2:  # as careless as can be
                        client.execute("select set_config('ai.session', current_setting('ai.session'), false)")
                if dice.random() < 0.3:
                    client.rollback()
                else:
                    client.commit()

        at_once(len(clients), run, dice)
