"""Being somebody else: by settings, roles, claims, keys and what is left behind on a connection."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from Attacks.tenants import MARKER, World, outcome
from databases import Login, refused
from psycopg import sql

# Settings that functions of the schema read, or that change how they run, with values that an attacker would like to count.
SETTINGS = {
    "request.jwt.claims": '{"sub": "boss", "tenant_id": "%(beta)s", "role": "service_role", "app_metadata": {"tenant_id": "%(beta)s"}}',
    "request.headers": '{"x-api-key": "mrt_0000000000_0"}',
    "ai.clock_offset": "-100 years",
    "ai.estimates": "0 {}",
    "ai.searched": "1",
    "ai.claimed_after": "%(beta)s",
    "ai.overdue_after": "1:%(beta)s",
    "hnsw.ef_search": "1000",
    "hnsw.iterative_scan": "relaxed_order",
    "search_path": "pg_temp, public, ai",
    "plan_cache_mode": "force_custom_plan",
    "statement_timeout": "1min",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "debug_parallel_query": "on",
    "force_parallel_mode": "on",
    "enable_indexscan": "off",
    "DateStyle": "SQL, DMY",
    "TimeZone": "Pacific/Kiritimati",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "check_function_bodies": "off",
    "session_replication_role": "replica",
    "row_security": "off",
    "ai.session": "mrs_0000",
    "ai.appending": "on",
    "role": "postgres",
    "session_authorization": "postgres",
}
# What they are refused with: here, or by the next statement.
REFUSED = {
    "session_replication_role": "42501",
    "row_security": "42501",
    "role": "42501",
    "session_authorization": "42501",
}
READ = {
    "role",
    "server_version_num",
    "transaction_isolation",
    "transaction_read_only",
    "hnsw.ef_search",
    "hnsw.iterative_scan",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["ann", "stray"])
def test_no_setting_makes_a_session_somebody_else(filled: World, name: str, setting: str) -> None:
    """With any setting, ann sees her own tenant and nobody sees nothing; the identity is as before, or the statement is refused."""
    if setting in ("debug_parallel_query", "force_parallel_mode"):
        new = filled.database.superuser.info.server_version >= 160000
        if (setting == "debug_parallel_query") != new:
            setting = "debug_parallel_query" if new else "force_parallel_mode"
    connection = filled.connect(name)
    before = connection.execute("select tenant_id, user_id, role from ai.whoami()").fetchone()
    value = SETTINGS[setting] % {"beta": filled.beta} if "%(" in SETTINGS[setting] else SETTINGS[setting]
    expected = REFUSED.get(setting, "PT401" if setting == "ai.session" else None)

    def attack() -> tuple[Any, str]:
        connection.execute("select set_config(%s, %s, false)", [setting, value])
        after = connection.execute("select tenant_id, user_id, role from ai.whoami()").fetchone()
        rows = connection.execute("select prompt, tenant_id from ai.generations").fetchall()
        return after, repr((rows, connection.execute("select name from ai.collections").fetchall()))

    if expected:
        with refused(expected):
            attack()
        return
    after, seen = attack()
    assert after == before
    assert MARKER not in seen
    assert str(filled.beta) not in seen


def test_every_setting_that_functions_read_was_tried(filled: World) -> None:
    """From the catalog: a function that reads a new setting needs an attack with it."""
    read = {
        row["name"]
        for row in filled.database.execute(
            "select distinct m[1] as name from pg_proc p, regexp_matches(p.prosrc, 'current_setting\\(''([^'']+)''', 'g') m where p.pronamespace = 'ai'::regnamespace"
        )
    }
    assert read - set(SETTINGS) - READ == set()


@pytest.mark.parametrize(
    "target", ["postgres", "boss", "worker", "monitor", "ai_worker", "ai_monitor", "pg_read_all_data"]
)
@pytest.mark.parametrize("statement", ["set role {}", "set session authorization {}"])
def test_nobody_becomes_a_role_it_was_not_given(filled: World, statement: str, target: str) -> None:
    """42501. Control: the groups that it was given."""
    role = filled.role(target) if target in filled.logins else target
    ann = filled.connect("ann")
    with refused("42501"):
        ann.execute(sql.SQL(statement).format(sql.Identifier(role)))
    ann.execute("set role ai_user")


def test_a_role_that_one_may_set_lends_its_rights_and_not_its_membership(filled: World) -> None:
    """ann was granted bob's login role: by SET ROLE she has its rights, and is still ann of alpha."""
    filled.database.execute(
        sql.SQL("grant {} to {}")
        .format(sql.Identifier(filled.role("bob")), sql.Identifier(filled.role("ann")))
        .as_string()
    )
    ann = filled.connect("ann", autocommit=False)
    ann.execute(sql.SQL("set local role {}").format(sql.Identifier(filled.role("bob"))))
    assert ann.execute("select user_id from ai.whoami()").fetchone() == {"user_id": "ann"}
    assert ann.execute("select from ai.generations where tenant_id = %s", [filled.beta]).fetchall() == []
    filled.database.execute(
        sql.SQL("revoke {} from {}")
        .format(sql.Identifier(filled.role("bob")), sql.Identifier(filled.role("ann")))
        .as_string()
    )


@pytest.fixture
def gateway(filled: World) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A session of a registered gateway, as PostgREST's: it may set claims, and took the role ai_user."""
    login = filled.database.login("ai_user")
    filled.database.execute("insert into ai.authenticators (role_name) values (%s)", login.name)
    yield filled.database.connect(user=login)
    filled.database.execute("delete from ai.authenticators where role_name = %s", login.name)


HOSTILE_CLAIMS = {
    "a subject of another tenant, with one's own tenant": '{"sub": "bob", "tenant_id": "%(alpha)s"}',
    "one's own subject, with another tenant": '{"sub": "ann", "tenant_id": "%(beta)s"}',
    "two tenants": '{"sub": "ann", "tenant_id": "%(alpha)s", "app_metadata": {"tenant_id": "%(beta)s"}}',
    "a list of subjects": '{"sub": ["ann", "boss"]}',
    "an object as subject": '{"sub": {"user_id": "ann"}}',
    "a number as subject": '{"sub": 1}',
    "a list of tenants": '{"sub": "ann", "tenant_id": ["%(alpha)s"]}',
    "an object as tenant": '{"sub": "ann", "app_metadata": {"tenant_id": {"eq": "%(alpha)s"}}}',
    "two subjects": '{"sub": "ann", "sub": "boss", "tenant_id": "%(beta)s"}',
    "two subjects, one escaped": '{"sub": "ann", "s\\u0075b": "boss"}',
    "two tenants in one object": '{"sub": "ann", "tenant_id": "%(alpha)s", "tenant_id": "%(beta)s"}',
    "NUL in the subject": '{"sub": "ann\\u0000"}',
    "half a surrogate": '{"sub": "ann\\ud800"}',
    "a Cyrillic a": '{"sub": "\\u0430nn"}',
    "full width": '{"sub": "\\uff41\\uff4e\\uff4e"}',
    "a combining mark": '{"sub": "ann\\u0301"}',
    "a zero-width space": '{"sub": "ann\\u200b"}',
    "a soft hyphen": '{"sub": "a\\u00adnn"}',
    "capitals": '{"sub": "ANN"}',
    "a wildcard": '{"sub": "%%"}',
    "SQL": "{\"sub\": \"ann' or 'a' = 'a\"}",
    "nested without end": "[" * 20000 + "]" * 20000,
    "nested in a claim": '{"sub": "ann", "x": ' + "[" * 5000 + "]" * 5000 + "}",
    "huge": '{"sub": "ann", "x": "' + "x" * 1_000_000 + '"}',
    "two objects": '{"sub": "ann"}{"sub": "boss"}',
    "not JSON": "sub=ann",
    "expired": '{"sub": "ann", "tenant_id": "%(alpha)s", "exp": 1000000000}',
    "not yet": '{"sub": "ann", "tenant_id": "%(alpha)s", "nbf": 99999999999}',
    "an expiry that is none": '{"sub": "ann", "tenant_id": "%(alpha)s", "exp": "never"}',
}


@pytest.mark.parametrize("what", HOSTILE_CLAIMS)
def test_claims_that_are_wrong_are_nobodys_and_nothing_is_seen(
    filled: World, gateway: psycopg.Connection[dict[str, Any]], what: str
) -> None:
    """PT401 for every read and write, without a value of the claims in the error. Control: right ones are ann's."""
    for claims, states in ((HOSTILE_CLAIMS[what], {"PT401"}), ('{"sub": "ann", "tenant_id": "%(alpha)s"}', {"ok"})):
        if "%(" in claims:
            claims = claims % {"alpha": filled.alpha, "beta": filled.beta}
        gateway.execute("select set_config('request.jwt.claims', %s, false)", [claims])
        said = [
            outcome(gateway, query)
            for query in (
                "select from ai.generations",
                "insert into ai.generations (prompt, model) values ('x', 'shared/model')",
                "select ai.subscribe()",
            )
        ]
        assert {state for state, _ in said} == states, said
        if states == {"PT401"}:
            assert all(word not in repr(said) for word in (str(filled.alpha), str(filled.beta), "boss"))


def test_claims_that_name_nobody_are_an_anonymous_reader_of_nothing(
    filled: World, gateway: psycopg.Connection[dict[str, Any]]
) -> None:
    """PostgREST's anonymous role: nothing is seen, nothing can be asked."""
    gateway.execute("select set_config('request.jwt.claims', '{\"role\": \"anon\"}', false)")
    assert outcome(gateway, "select from ai.generations") == ("ok", [])
    assert outcome(gateway, "insert into ai.generations (prompt) values ('x')")[0] == "PT401"


def test_claims_of_a_login_that_is_no_gateway_are_not_even_read(filled: World) -> None:
    """The stray login sets ann's claims, in every form: it stays nobody."""
    stray = filled.connect("stray")
    for setting in ("request.jwt.claims", "request.jwt.claim.sub", "request.jwt"):
        stray.execute(
            "select set_config(%s, %s, false)", [setting, json.dumps({"sub": "ann", "tenant_id": str(filled.alpha)})]
        )
        assert outcome(stray, "select from ai.generations") == ("ok", [])
        assert outcome(stray, "select user_id from ai.whoami()") == ("ok", [{"user_id": None}])


def test_a_plan_made_for_one_subject_shows_nothing_of_it_to_the_next(
    filled: World, gateway: psycopg.Connection[dict[str, Any]]
) -> None:
    """One pooled connection, one prepared statement, claims of bob and then of ann: each sees its own, also by the fifth execution."""
    gateway.execute("prepare mine as select prompt, tenant_id from ai.generations")
    for _ in range(6):
        for tenant, user in ((filled.beta, "bob"), (filled.alpha, "ann")):
            gateway.execute(
                "select set_config('request.jwt.claims', %s, false)",
                [json.dumps({"sub": user, "tenant_id": str(tenant)})],
            )
            rows = gateway.execute("execute mine").fetchall()
            assert {row["tenant_id"] for row in rows} <= {tenant}
            assert (MARKER in repr(rows)) == (user == "bob")


def test_a_gateway_without_claims_is_nobody_and_cannot_be_bound(
    filled: World, gateway: psycopg.Connection[dict[str, Any]]
) -> None:
    """A role is a gateway or a member: else its sessions would be that member wherever claims are missing."""
    assert outcome(gateway, "select tenant_id from ai.whoami()") == ("ok", [{"tenant_id": None}])
    with refused("PT409"):
        filled.database.execute(
            "insert into ai.role_bindings (role_name, tenant_id, user_id) values (%s, %s, 'ann')",
            gateway.info.user,
            filled.alpha,
        )


@pytest.mark.parametrize("table", ["role_bindings", "authenticators", "members", "tenants", "roles", "permissions"])
@pytest.mark.parametrize("name", ["ann", "adm", "stray", "worker"])
def test_nobody_writes_the_tables_that_say_who_is_who(filled: World, name: str, table: str) -> None:
    """INSERT, UPDATE, DELETE, TRUNCATE, and locks on them: 42501."""
    connection = filled.connect(name)
    for statement in (
        f"insert into ai.{table} default values",
        f"delete from ai.{table}",
        f"truncate ai.{table} cascade",
        f"lock table ai.{table} in exclusive mode",
    ):
        assert outcome(connection, statement)[0] == "42501", statement
    column = filled.database.value(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum = 1", f"ai.{table}"
    )
    assert outcome(connection, f"update ai.{table} set {column} = {column}")[0] == "42501"


def test_a_member_that_is_switched_off_is_nobody_in_the_connections_it_has(filled: World) -> None:
    """From its next statement on. Control: it was somebody before."""
    eva = filled.database.connect(user=filled.database.member(filled.alpha, "eva"))
    assert outcome(eva, "insert into ai.generations (prompt, model) values ('x', 'shared/model')")[0] == "ok"
    filled.database.execute("update ai.members set enabled = false where user_id = 'eva'")
    assert outcome(eva, "select from ai.generations") == ("ok", [])
    assert outcome(eva, "insert into ai.generations (prompt, model) values ('x', 'shared/model')")[0] == "PT401"
    assert outcome(eva, "select ai.subscribe()")[0] == "PT401"


# API keys and sessions


def key_of(connection: psycopg.Connection[dict[str, Any]], call: str) -> dict[str, Any]:
    row = connection.execute(f"select * from {call}").fetchone()
    assert row is not None
    return row


def anns_key(world: World) -> dict[str, Any]:
    return key_of(world.connect("adm"), "ai.create_api_key('k', 'ann')")


@pytest.fixture(scope="module")
def pool(filled: World) -> Login:
    """The login role of an app that comes with API keys, and is nobody itself."""
    return filled.database.login("ai_user")


def as_key(world: World, pool: Login, key: str) -> psycopg.Connection[dict[str, Any]]:
    connection = world.database.connect(user=pool)
    connection.execute("select ai.login(%s, true)", [key])
    return connection


@pytest.mark.parametrize(
    "what", ["unknown", "cut", "longer", "prefix", "capitals", "hash", "empty", "huge", "token as key"]
)
def test_a_key_that_is_nearly_right_is_refused_like_one_that_is_wrong(filled: World, pool: Login, what: str) -> None:
    """PT401 with one text, whatever is wrong: nothing tells how near a guess was. Control: the key itself."""
    key = anns_key(filled)["key"]
    app = filled.database.connect(user=pool)
    stored = filled.database.value("select encode(hash, 'hex') from ai.api_keys limit 1")
    guesses = {
        "unknown": "mrt_0123456789_" + "0" * 64,
        "cut": key[:-1],
        "longer": key + "0",
        "prefix": key[:14],
        "capitals": key.upper(),
        "hash": stored,
        "empty": "",
        "huge": key + "x" * 1_000_000,
        "token as key": "mrs_" + key[15:],
    }
    right = outcome(app, "select ai.login(%s)", key)
    assert right[0] == "ok"
    said = {repr(outcome(app, call, guesses[what])) for call in ("select ai.login(%s)", "select ai.use_session(%s)")}
    assert said == {repr(outcome(app, "select ai.login(%s)", "mrt_9999999999_" + "9" * 64))}
    assert next(iter(said)).startswith("('PT401'")


def test_a_token_left_on_a_pooled_connection_is_nobodys(filled: World, pool: Login) -> None:
    """use_session() in one transaction; the next client's transaction on the connection is nobody, also with the setting still there."""
    key = filled.belongings["api_key"]
    app = filled.database.connect(user=pool)
    app.execute("begin")
    app.execute("select ai.use_session(%s)", [key])
    value = app.execute("select current_setting('ai.session') as v").fetchone()["v"]
    assert app.execute("select from ai.generations").fetchall() != [], "control: it is bob"
    app.execute("commit")
    assert app.execute("select from ai.generations").fetchall() == []
    app.execute("select set_config('ai.session', %s, false)", [value])
    assert app.execute("select from ai.generations").fetchall() == []
    other = filled.database.connect(user=pool)
    other.execute("select set_config('ai.session', %s, false)", [value])
    assert other.execute("select from ai.generations").fetchall() == []


def test_a_token_of_one_connection_is_worth_nothing_on_another(filled: World, pool: Login) -> None:
    """ai.login(…, for the connection): its token, stolen from the setting, raises PT401 elsewhere."""
    key = anns_key(filled)["key"]
    mine = as_key(filled, pool, key)
    token = mine.execute("select current_setting('ai.session') as v").fetchone()["v"]
    thief = filled.database.connect(user=pool)
    thief.execute("select set_config('ai.session', %s, false)", [token])
    assert outcome(thief, "select from ai.generations")[0] == "PT401"
    assert outcome(mine, "select user_id from ai.whoami()") == ("ok", [{"user_id": "ann"}])


@pytest.mark.parametrize("end", ["revoked", "expired", "member off", "tenant off", "logged out"])
def test_a_session_ends_at_once_when_its_ground_is_gone(filled: World, pool: Login, end: str) -> None:
    """The next statement of an open session is PT401, also within an open transaction; never anybody else's."""
    db = filled.database
    tenant = db.tenant()
    admin = db.connect(user=db.member(tenant, "chief", "admin"))
    db.execute("insert into ai.members (tenant_id, user_id) values (%s, 'eve')", tenant)
    key = key_of(admin, "ai.create_api_key('k', 'eve')")
    app = as_key(filled, pool, key["key"])
    app.execute("begin")
    assert app.execute("select user_id from ai.whoami()").fetchone() == {"user_id": "eve"}
    if end == "revoked":
        admin.execute("select ai.revoke_api_key(%s)", [key["id"]])
    elif end == "expired":
        db.execute("update ai.api_keys set expires_at = created_at + interval '1 microsecond' where id = %s", key["id"])
    elif end == "member off":
        admin.execute("select ai.disable_member('eve')")
    elif end == "tenant off":
        db.execute("update ai.tenants set enabled = false where id = %s", tenant)
    else:
        token = app.execute("select current_setting('ai.session') as v").fetchone()["v"]
        db.connect(user=pool).execute("select ai.logout(%s)", [token])
    with pytest.raises(psycopg.Error) as caught:
        app.execute("insert into ai.generations (prompt, model) values ('x', 'shared/model')")
    assert caught.value.sqlstate == "PT401"
    app.execute("rollback")
    assert outcome(app, "select from ai.generations")[0] == "PT401"


def test_a_key_of_another_tenants_member_cannot_be_made_rotated_or_revoked(filled: World) -> None:
    """An admin of alpha against beta's tenant, members and keys: PT403 or PT404, and the key goes on. Control: beta's admin."""
    adm, boss = filled.connect("adm"), filled.connect("boss")
    assert outcome(adm, "select ai.create_api_key('x', 'bob', p_tenant_id => %s)", filled.beta)[0] == "PT403"
    assert outcome(adm, "select ai.create_api_key('x', 'bob')")[0] == "PT404"
    for call in ("ai.rotate_api_key(%s)", "ai.revoke_api_key(%s)"):
        assert outcome(adm, f"select {call}", filled.belongings["api_key_id"])[0] == "PT404"
        assert outcome(boss, f"select {call}", filled.belongings["api_key_id"])[0] == "ok"


ESCALATIONS = {
    "a key for an admin": "select ai.create_api_key('x', 'adm')",
    "a key with everything": "select ai.create_api_key('x', p_permissions => '{*}')",
    "a key with more": "select ai.create_api_key('x', p_permissions => '{inference:execute,policy:write}')",
    "a role with everything": "select ai.set_role('mine', '{*}')",
    "a role with more": "select ai.set_role('mine', '{secret:write}')",
    "one's own role with more": "select ai.set_role('keeper', '{key:write,member:write,policy:write}')",
    "the shared role user with more": "select ai.set_role('user', '{*}')",
    "the shared role admin for less": "select ai.set_role('admin', '{}')",
    "an admin": "select ai.add_member('evil', 'admin')",
    "being an admin": "select ai.set_member_role('kim', 'admin')",
    "the fall of the admin": "select ai.set_member_role('adm', 'user')",
    "the admin switched off": "select ai.disable_member('adm')",
}


@pytest.mark.parametrize("what", ESCALATIONS)
def test_who_keeps_keys_and_members_does_not_get_more_than_it_has(filled: World, what: str) -> None:
    """A member with key:write and member:write and little else: PT403, PT409 for each way up. Control: what it may give."""
    if "kim" not in filled.logins:
        filled.connect("adm").execute(
            "select ai.set_role('keeper', '{key:write,member:write,key:read,member:read,inference:execute}')"
        )
        filled.logins["kim"] = filled.database.member(filled.alpha, "kim", "admin")
        filled.database.execute("update ai.members set role = 'keeper' where user_id = 'kim'")
    kim = filled.connect("kim")
    assert outcome(kim, ESCALATIONS[what])[0] in ("PT403", "PT409"), outcome(kim, ESCALATIONS[what])
    assert outcome(kim, "select ai.create_api_key('x', p_permissions => '{inference:execute}')")[0] == "ok"
    assert outcome(kim, "select ai.set_role('mine', '{key:read}')")[0] == "ok"


def test_a_key_with_few_permissions_cannot_make_one_with_more(filled: World, pool: Login) -> None:
    """The admin's key for one purpose: nothing else is allowed with it, neither directly nor by another key, nor for longer."""
    row = key_of(
        filled.connect("adm"),
        "ai.create_api_key('k', p_permissions => '{key:write,key:read}', p_expires_at => now() + interval '1 hour')",
    )
    app = as_key(filled, pool, row["key"])
    assert outcome(app, "insert into ai.generations (prompt, model) values ('x', 'shared/model')")[0] == "PT403"
    assert outcome(app, "select ai.create_api_key('x', p_permissions => '{*}')")[0] == "PT403"
    assert outcome(app, "select ai.create_api_key('x', 'ann')")[0] == "PT403"
    assert (
        outcome(
            app,
            "select ai.create_api_key('x', p_permissions => '{key:read}', p_expires_at => now() + interval '2 hours')",
        )[0]
        == "PT403"
    )
    made = key_of(app, "ai.create_api_key('x')")
    stored = filled.database.execute(
        "select permissions, expires_at <= now() + interval '1 hour' as within from ai.api_keys where id = %s",
        made["id"],
    )
    assert stored == [{"permissions": ["key:read", "key:write"], "within": True}]


def test_hashes_of_keys_and_sessions_are_nobodys_to_read(filled: World) -> None:
    """Not a column, not a row, by no app role; and the visible prefix is not enough to log in."""
    for name in ("bob", "boss", "adm", "stray", "worker", "monitor"):
        connection = filled.connect(name)
        assert outcome(connection, "select hash from ai.api_keys")[0] == "42501"
        assert outcome(connection, "select from ai.sessions")[0] == "42501"
    prefix = filled.connect("boss").execute("select prefix from ai.api_keys").fetchone()["prefix"]
    assert filled.belongings["api_key"].startswith(prefix)
    assert outcome(filled.connect("stray"), "select ai.login(%s)", prefix)[0] == "PT401"


def test_ids_of_others_generations_cannot_be_guessed(filled: World) -> None:
    """Version 7: 62 random bits behind a time that an attacker may know to the microsecond."""
    ids = [row["id"] for row in filled.database.execute("select ai.uuid_v7() as id from generate_series(1, 2000)")]
    tails = {uuid.UUID(str(one)).int & (2**62 - 1) for one in ids}
    assert len(tails) == 2000
    assert all(
        any(tail >> bit & 1 for tail in tails) and any(not tail >> bit & 1 for tail in tails) for bit in range(62)
    )
