"""Reaching into another tenant: by relation, by id, by name, by what a statement says when it fails."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import uuid
from typing import Any

import psycopg
import pytest
from Attacks.tenants import MARKER, VECTOR, World, outcome
from psycopg import sql

ALPHAS = ("ann", "abe", "dev", "adm", "stray")
NOT_BETAS = (*ALPHAS, "worker", "monitor", "public")


def readable(world: World, connection: psycopg.Connection[dict[str, Any]]) -> dict[str, list[str]]:
    """Relations and columns of the schema that this login may select, from the catalog."""
    rows = connection.execute(
        """
        select c.relname, array_agg(a.attname::text order by a.attnum) as columns
          from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
         where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
           and has_column_privilege(c.oid, a.attnum, 'select')
         group by 1
        """
    ).fetchall()
    return {row["relname"]: row["columns"] for row in rows}


@pytest.mark.parametrize("name", NOT_BETAS)
def test_nobody_outside_of_a_tenant_reads_anything_of_it_in_any_relation(filled: World, name: str) -> None:
    """Every column of every relation that the login may select, as text: neither beta's texts nor its id are in it.

    Control: a user of beta sees them in a dozen relations.
    """
    seen: dict[str, dict[str, bool]] = {}
    for who in (name, "boss"):
        connection = filled.connect(who)
        if who in ("worker", "public"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("select from ai.generations")
        seen[who] = {}
        for relation, columns in readable(filled, connection).items():
            rows = connection.execute(
                sql.SQL("select {} from ai.{}").format(
                    sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c)) for c in columns),
                    sql.Identifier(relation),
                )
            ).fetchall()
            text = repr(rows)
            seen[who][relation] = MARKER in text or str(filled.beta) in text
    assert not any(seen[name].values()), [relation for relation, leaked in seen[name].items() if leaked]
    assert sum(seen["boss"].values()) >= 12, "the control sees nothing either: this test proves nothing"


@pytest.mark.parametrize("name", ALPHAS)
def test_a_partition_cannot_be_read_past_its_parent(filled: World, name: str) -> None:
    """The policies are the parent's; partitions have none, and no grants."""
    connection = filled.connect(name)
    partitions = filled.database.execute(
        "select relname from pg_class where relnamespace = 'ai'::regnamespace and relispartition and relkind = 'r'"
    )
    assert len(partitions) >= 6
    for partition in partitions:
        assert outcome(connection, f"select from ai.{partition['relname']}")[0] == "42501", partition


# Arguments of functions by which an app names something of its tenant's, and what beta has of the kind.
NAMED = {
    "batch": "batch",
    "batch_id": "batch",
    "conversation": "conversation",
    "provider_batch": "provider_batch",
    "collection": "collection",
    "p_generation": "generation",
    "p_id": "generation",
    "id": "document",
    "p_vectorizer": "vectorizer_id",
    "template": "template",
    "model": "model",
    "profile": "profile",
    "p_profile": "profile",
    "tag": "tag",
    "user_id": "user",
    "p_user_id": "user",
    "role": "role",
    "p_opening": "opening",
    "p_tenant": "tenant",
    "p_tenant_id": "tenant",
    "tenant_id": "tenant",
    "vector_model": "model",
}
# The same name means something else there.
EXCEPTIONS = {
    ("artifact_content", "id"): "artifact",
    ("recall_artifact", "id"): "artifact",
    ("delete_artifact", "id"): "artifact",
    ("revoke_api_key", "p_id"): "api_key_id",
    ("rotate_api_key", "p_id"): "api_key_id",
    ("collection_to_search", "p_name"): "collection",
    ("find_vectorizer", "p_name"): "vectorizer",
    ("managed_vectorizer", "p_name"): "vectorizer",
    ("vectorize_progress", "name"): "vectorizer",
    ("vectorize_retry", "name"): "vectorizer",
    ("refresh_vectorizer", "name"): "vectorizer",
    ("revectorize", "name"): "vectorizer",
    ("search_rows", "name"): "vectorizer",
    ("stop_vectorizing", "name"): "vectorizer",
    ("drop_role", "name"): "role",
    ("idempotent_generation", "p_key"): "key_name",
    ("remove_secret", "p_name"): "secret",
    ("audit_hash", "p_tenant"): None,  # arithmetic
    ("no_collection", "p_name"): None,  # raises what it is told
}
# What the other arguments of a function get, by name; null where nothing is said and there is no default.
OTHERS: dict[str, str] = {
    "content": "'x'",
    "prompt": "'x'",
    "text": "'x'",
    "input": "'x'",
    "name": "'x'",
    "p_name": "'x'",
    "query_text": "'content'",
    "query_embedding": f"'{VECTOR}'",
    "query_vec": f"'{VECTOR}'",
    "p_vector": f"'{VECTOR}'",
    "p_count": "5",
    "p_k": "50",
    "p_dimensions": "384",
    "p_version": "1",
    "p_indexed": "false",
    "p_filter": "'{}'",
    "p_collection": "1",
    "p_words": "'{1,2,3}'",
    "p_word_weight": "1",
    "p_near_weight": "1",
    "match_threshold": "-1",
    "similarity_threshold": "0",
    "columns": "array['body']",
    "table_name": "'pg_class'",
    "p_table": "'pg_class'",
    "p_columns": "array['body']",
    "p_model": "'local/hash'",
    "model": "'local/hash'",
    "p_first": "false",
    "p_keys": "array['k']",
    "p_contents": "array['c']",
    "p_tenants": "array[gen_random_uuid()]",
    "role": "'user'",
    "permissions": "'{}'",
    "p_permissions": "'{}'",
}


def absent(kind: str, given: Any) -> Any:
    """Something of the same form that exists nowhere."""
    if isinstance(given, uuid.UUID):
        return uuid.uuid4()
    if isinstance(given, int):
        return 999_999
    return f"no such {kind}"[: len(str(given))].replace(" ", "-")


def cases(world: World) -> list[tuple[str, str, str, str]]:
    """(function, argument, kind, call) for each argument of each function that an app may call and that names something."""
    functions = world.database.execute(
        """
        select p.proname, p.oid::regprocedure::text as signature, p.prokind, coalesce(p.proargnames[1:p.pronargs], '{}') as names,
               p.pronargs - p.pronargdefaults as required
          from pg_proc p
         where p.pronamespace = 'ai'::regnamespace and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype
           and (has_function_privilege('ai_admin', p.oid, 'execute') or has_function_privilege('ai_user', p.oid, 'execute'))
         order by 2
        """
    )
    found = []
    for function in functions:
        for argument in function["names"]:
            kind = EXCEPTIONS.get((function["proname"], argument), NAMED.get(argument))
            if kind is None:
                continue
            others = [
                f"{name} => {OTHERS.get(name, 'null')}"
                for n, name in enumerate(function["names"])
                if name != argument and (n < function["required"] or name in ("content", "prompt", "text", "input"))
            ]
            given = [f"{argument} => %s", *others]
            found.append(
                (function["signature"], argument, kind, f"select * from ai.{function['proname']}({', '.join(given)})")
            )
    return found


def neutral(said: tuple[str, Any], given: Any) -> str:
    """What was said, without what the caller said itself, and without ids that are new each time."""
    state, rows = said
    if state == "ok" and isinstance(rows, list):
        rows = [{k: ("new" if isinstance(v, uuid.UUID | float) else v) for k, v in row.items()} for row in rows]
    return repr((state, rows)).replace(str(given), "…")


@pytest.mark.parametrize("name", ["ann", "dev", "adm", "stray"])
def test_what_another_tenant_has_looks_to_every_function_like_what_nobody_has(filled: World, name: str) -> None:
    """Each function that an app may call, each argument that names something: with beta's, and with one that exists nowhere.

    State, message, detail, hint and rows are the same, and nothing of beta's is in them. From the catalog: a function with an
    argument of a new kind is found by test_every_function_that_apps_may_call_is_attacked.
    """
    connection = filled.connect(name)
    filled.belongings |= {"tenant": filled.beta, "opening": uuid.uuid4(), "secret": "BETA_API_KEY"}
    differing = []
    for signature, argument, kind, call in cases(filled):
        given = filled.belongings[kind]
        other = absent(kind, given)
        with_betas, with_none = outcome(connection, call, given), outcome(connection, call, other)
        if neutral(with_betas, given) != neutral(with_none, other) or MARKER in repr(with_betas).replace(
            str(given), ""
        ):
            differing.append((signature, argument, with_betas, with_none))
    assert differing == []


def test_every_function_that_apps_may_call_is_attacked(filled: World) -> None:
    """Each argument of type uuid or text of a function for apps is either a name of something, or known to be none."""
    known = {
        "a", "answer", "b", "cache", "content", "filter", "format", "idempotency_key", "input", "kind", "language", "name", "p_action", "p_after",
        "p_at", "p_by", "p_id", "p_kind", "p_login", "p_model", "p_name", "p_object", "p_permission", "p_source", "p_user", "p_api_key", "p_tenant",
        "p_tenant_column", "p_token", "p_what", "priority", "prompt", "query_text", "tenant_column", "text", "title", "uri", "p_user_tenant", "p_format",
        "media_type", "p_cache", "p_class", "p_priority", "p_purpose", "p_service", "p_service_tier", "p_status", "p_text", "p_where",
    }  # fmt: skip
    arguments = filled.database.execute(
        """
        select p.oid::regprocedure::text as signature, p.proname, n.name
          from pg_proc p cross join unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) with ordinality n (name, type, at)
         where p.pronamespace = 'ai'::regnamespace and p.prokind = 'f' and has_function_privilege('ai_admin', p.oid, 'execute')
           and n.type in ('uuid'::regtype, 'text'::regtype)
        """
    )
    unknown = [
        a
        for a in arguments
        if a["name"] not in known and a["name"] not in NAMED and (a["proname"], a["name"]) not in EXCEPTIONS
    ]
    assert unknown == []
    assert len(cases(filled)) > 50


@pytest.mark.parametrize(
    ("column", "kind"),
    [("conversation_id", "conversation"), ("batch_id", "batch"), ("collection", "collection"), ("template", "template"), ("model", "model"), ("profile", "profile")],
)  # fmt: skip
def test_a_generation_cannot_refer_to_what_another_tenant_has(filled: World, column: str, kind: str) -> None:
    """PT404 in the same words as for what exists nowhere. Control: beta's own user may."""
    query = f"insert into ai.generations (prompt, {column}) values ('x', %s)"
    if column not in ("model", "profile"):
        query = f"insert into ai.generations (prompt, model, {column}) values ('x', 'shared/model', %s)"
    given = filled.belongings[kind]
    other = absent(kind, given)
    with_betas, with_none = (outcome(filled.connect("ann"), query, value) for value in (given, other))
    assert with_betas[0] == "PT404"
    assert neutral(with_betas, given) == neutral(with_none, other)
    assert outcome(filled.connect("bob"), query, given)[0] == "ok"


TAKEN = [
    ("a member", "insert into ai.generations (tenant_id, user_id, prompt, model) values (%(beta)s, %(thing)s, 'x', 'shared/model')", "bob"),
    ("an idempotency key", "insert into ai.generations (tenant_id, user_id, prompt, model, idempotency_key) values (%(beta)s, 'bob', 'x', 'shared/model', %(thing)s)", f"idempotent {MARKER}"),
    ("a collection", "insert into ai.generations (tenant_id, user_id, prompt, model, collection) values (%(beta)s, 'bob', 'x', 'shared/model', %(thing)s)", f"collection {MARKER}"),
    ("a template", "insert into ai.prompt_templates (tenant_id, name, version, system) values (%(beta)s, %(thing)s, 1, 'x')", f"template-{MARKER}"),
    ("a model", "insert into ai.guardrails (tenant_id, name, detector, options) values (%(beta)s, 'x', 'moderation', jsonb_build_object('model', %(thing)s::text))", f"model-{MARKER}"),
    ("a profile", "insert into ai.profiles (tenant_id, name) values (%(beta)s, %(thing)s)", f"profile-{MARKER}"),
    ("a guardrail", "insert into ai.guardrails (tenant_id, name, detector) values (%(beta)s, %(thing)s, 'email')", f"rule {MARKER}"),
    ("a provider", "insert into ai.providers (tenant_id, name, dialect, base_url) values (%(beta)s, %(thing)s, 'openai', 'https://x.test')", f"p-{MARKER}"),
    ("a route", "insert into ai.routes (tenant_id, profile, model_id) select %(beta)s, %(thing)s, id from ai.models where name = 'shared/model'", f"profile-{MARKER}"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "query", "thing"), TAKEN, ids=[what for what, *_ in TAKEN])
def test_an_admin_cannot_probe_whether_another_tenant_has(filled: World, what: str, query: str, thing: str) -> None:
    """Rows in beta's name are refused in one way, whether beta has such a thing, has none, or there is no such tenant.

    What a trigger would say about it (PT409, PT400, a row left out) comes before row-level security: none of it may depend on beta.
    """
    adm = filled.connect("adm")
    said = {
        repr(outcome_of_named(adm, query, beta=tenant, thing=name))
        for tenant in (filled.beta, uuid.uuid4())
        for name in (thing, f"x{thing[1:-2]}")
    }
    assert len(said) == 1, said
    assert said.pop().startswith(("('42501'", "('PT403'"))


def outcome_of_named(connection: psycopg.Connection[dict[str, Any]], query: str, **arguments: Any) -> tuple[str, Any]:
    """outcome() with named arguments, without a row's contents in the detail."""
    connection.execute("begin")
    try:
        cursor = connection.execute(query, arguments)
        return "ok", cursor.rowcount
    except psycopg.Error as error:
        return error.sqlstate or "", (error.diag.message_primary or "").replace(str(arguments.get("thing")), "…")
    finally:
        connection.execute("rollback")


@pytest.mark.parametrize("name", ["ann", "adm"])
def test_no_policy_row_of_another_tenant_is_updated_or_returned(filled: World, name: str) -> None:
    """UPDATE … RETURNING with the widest condition, on every column that the login may update: nothing of beta's or shared."""
    connection = filled.connect(name)
    columns = connection.execute(
        """
        select c.relname, min(a.attname) as column
          from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
         where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and has_column_privilege(c.oid, a.attnum, 'update')
           and has_column_privilege(c.oid, a.attnum, 'select') group by 1
        """
    ).fetchall()
    assert (len(columns) >= 6) == (name == "adm"), columns
    for one in columns:
        state, rows = outcome(
            connection, f"update ai.{one['relname']} set {one['column']} = {one['column']} returning 1 as n"
        )
        assert (state, rows) in (("ok", []), ("42501", rows)), (one, state, rows)


def test_on_conflict_and_merge_do_not_tell_whether_a_row_is_there(filled: World) -> None:
    """INSERT … ON CONFLICT DO NOTHING and MERGE into rows of another tenant: refused, as in a tenant that does not exist."""
    adm = filled.connect("adm")
    for query in (
        "insert into ai.profiles (tenant_id, name) values (%(beta)s, %(thing)s) on conflict do nothing",
        "merge into ai.profiles p using (select %(beta)s::uuid as tenant_id, %(thing)s::text as name) n on p.tenant_id = n.tenant_id and p.name = n.name"
        " when not matched then insert (tenant_id, name) values (n.tenant_id, n.name) when matched then update set degrade = true",
    ):
        said = {
            repr(outcome_of_named(adm, query, beta=tenant, thing=thing))
            for tenant in (filled.beta, uuid.uuid4())
            for thing in (f"profile-{MARKER}", "none")
        }
        assert len(said) == 1, said
        assert said.pop().startswith("('42501'")


def test_a_foreign_key_does_not_tell_which_ids_exist(filled: World) -> None:
    """Models on a provider, prices and routes of a model: another tenant's id is refused as one that exists nowhere is."""
    adm = filled.connect("adm")
    queries = {
        "insert into ai.models (tenant_id, provider_id, name, wire_name) values (%(alpha)s, %(thing)s, 'm', 'm')": filled.belongings[
            "provider"
        ],
        'insert into ai.prices (model_id, rates) values (%(thing)s, \'{"input": 1, "output": 1}\')': filled.belongings[
            "model_id"
        ],
        "insert into ai.routes (tenant_id, profile, model_id) values (%(alpha)s, 'p', %(thing)s)": filled.belongings[
            "model_id"
        ],
        "insert into ai.provider_accounts (provider_id, position, secret) values (%(thing)s, 1, 'X_API_KEY')": filled.belongings[
            "provider"
        ],
    }
    for query, betas in queries.items():
        said = {outcome_of_named(adm, query, alpha=filled.alpha, thing=thing) for thing in (betas, 999_999)}
        assert len(said) == 1, (query, said)
        assert next(iter(said))[0] in ("42501", "PT403"), (query, said)


def test_no_foreign_key_of_an_apps_own_can_ask_for_ids(filled: World) -> None:
    """Referential checks pass by row-level security: so nobody may refer to Martlet's tables."""
    ann = filled.connect("ann")
    schema = filled.schema("ann")
    state, _ = outcome(ann, f"create table {schema}.probe (tenant uuid references ai.tenants (id))")
    assert state == "42501"


def test_a_view_shows_its_reader_and_not_its_maker(filled: World) -> None:
    """A view that bob made over his generations, read by ann: hers, because who asks is who logged in; also as a barrier or by a definer."""
    schema = filled.schema("bob")
    bob, ann = filled.connect("bob"), filled.connect("ann")
    bob.execute(f"grant usage on schema {schema} to public")
    bob.execute(f"create view {schema}.mine as select prompt, user_id from ai.generations")
    bob.execute(f"create view {schema}.barred with (security_barrier) as select prompt, user_id from ai.generations")
    bob.execute(
        f"create function {schema}.given() returns setof text language sql security definer as 'select prompt from ai.generations'"
    )
    bob.execute(f"grant select on {schema}.mine, {schema}.barred to public")
    for query in (f"select * from {schema}.mine", f"select * from {schema}.barred", f"select {schema}.given()"):
        assert bob.execute(query).fetchall(), "control"
        assert ann.execute(query).fetchall() == []


@pytest.mark.parametrize("column", ["tableoid", "ctid", "xmin", "xmax"])
def test_system_columns_find_no_row_of_others(filled: World, column: str) -> None:
    """By place and by transaction: no rows, also where the place of one is known."""
    known = filled.database.execute(
        f"select {column}::text as known from ai.generations where tenant_id = %s", filled.beta
    )
    ann = filled.connect("ann")
    for one in {row["known"] for row in known}:
        cast = {"tableoid": "regclass", "ctid": "tid"}.get(column, "xid")
        assert ann.execute(f"select from ai.generations where {column} = %s::{cast}", [one]).fetchall() == []


def test_lists_of_ids_and_unions_do_not_cross(filled: World) -> None:
    """Composite keys without their tenant: the ids of beta's rows are known, and give nothing."""
    ann = filled.connect("ann")
    for table, key in (
        ("generations", "id"),
        ("documents", "id"),
        ("chunks", "id"),
        ("conversations", "id"),
        ("batches", "id"),
        ("llm_calls", "generation_id"),
    ):
        ids = [
            row["k"]
            for row in filled.database.execute(f"select {key} as k from ai.{table} where tenant_id = %s", filled.beta)
        ]
        assert ids, table
        assert ann.execute(f"select from ai.{table} where {key} = any (%s)", [ids]).fetchall() == []
        assert ann.execute(f"select from ai.{table} where tenant_id = %s", [filled.beta]).fetchall() == []
