"""What can be learnt without being told: plans, statistics, order of evaluation, counters, locks, activity."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from Attacks.tenants import MARKER, World, outcome
from databases import refused

CONTENT = "b.typname in ('text', 'name', '_text', 'json', 'jsonb', 'bytea', 'varbit', 'vector', 'tsvector')"


def plan(connection: psycopg.Connection[dict[str, Any]], query: str, *arguments: Any, options: str = "") -> str:
    rows = connection.execute(f"explain ({options or 'costs on'}) {query}", arguments or None).fetchall()
    return "\n".join(row["QUERY PLAN"] for row in rows)


@pytest.fixture(scope="module")
def analysed(filled: World) -> World:
    """Beta asked one thing often; every table is analysed."""
    filled.connect("bob").execute(
        "insert into ai.generations (prompt, model, metadata) select %s, 'shared/model', %s from generate_series(1, 400)",
        [f"frequent {MARKER}", '{"tag": "frequent"}'],
    )
    filled.database.execute("analyze")
    return filled


def rows_expected(text: str) -> int:
    found = re.search(r"rows=(\d+)", text)
    assert found
    return int(found.group(1))


@pytest.mark.parametrize(
    ("guessed", "wrong"),
    [
        (f"prompt = 'frequent {MARKER}'", f"prompt = 'seldom {MARKER}'"),
        (f"prompt between 'frequent' and 'frequent {MARKER}z'", "prompt between 'rare' and 'rarez'"),
        ("user_id = 'bob'", "user_id = 'nobody'"),
        ("model = 'shared/model'", "model = 'no/model'"),
    ],
)
def test_a_plan_does_not_tell_what_others_ask(analysed: World, guessed: str, wrong: str) -> None:
    """EXPLAIN expects as many rows for a right guess of others' texts and users as for a wrong one. (Comparisons are leakproof, so
    the planner would use the statistics of the whole table.)"""
    ann = analysed.connect("ann")
    expected = [
        rows_expected(plan(ann, f"select from ai.generations where {condition}")) for condition in (guessed, wrong)
    ]
    assert expected[0] == expected[1]


def test_the_planner_keeps_no_content(analysed: World) -> None:
    """Every column of content of every table and partition: no target, and nothing kept. So plans and pg_statistic tell nothing, also after an erasure."""
    kept = analysed.database.execute(
        f"""
        select c.relname, a.attname
          from pg_class c
          join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
          join pg_type t on t.oid = a.atttypid
          join pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
         where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and {CONTENT}
           and (coalesce(a.attstattarget, -1) <> 0
                or exists (select from pg_statistic s where s.starelid = c.oid and s.staattnum = a.attnum))
        """
    )
    assert kept == []
    assert MARKER not in repr(analysed.database.execute("select * from pg_stats where schemaname = 'ai'"))


@pytest.mark.parametrize("view", ["pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"])
@pytest.mark.parametrize("name", ["ann", "adm", "monitor"])
def test_views_of_statistics_show_no_values(analysed: World, name: str, view: str) -> None:
    """Row-level security hides them. Control: the superuser sees some."""
    assert (
        analysed.connect(name)
        .execute(f"select from {view} where schemaname = 'ai' and tablename in ('generations', 'members', 'llm_calls')")
        .fetchall()
        == []
    )
    with refused("42501"):
        analysed.connect(name).execute("select from pg_statistic")


@pytest.mark.parametrize(
    ("table", "condition", "wrong"),
    [("members", "user_id = 'bob'", "user_id = 'none'"), ("generations", f"prompt = 'frequent {MARKER}'", "prompt = 'none'"), ("collections", f"name = 'collection {MARKER}'", "name = 'none'"),
     ("documents", f"uri = 'uri:{MARKER}'", "uri = 'none'"), ("tenants", "name = 'x'", "name = 'y'"), ("api_keys", "name = 'x'", "name = 'y'")],
)  # fmt: skip
def test_an_analysed_run_does_not_tell_whether_others_have_a_row(
    analysed: World, table: str, condition: str, wrong: str
) -> None:
    """EXPLAIN (ANALYZE) by index: as many rows removed by row-level security for what exists in beta as for what exists nowhere.

    Not so for the names of rows in tables that also have shared rows (models, profiles, templates): known, in the threat model.
    """
    ann = analysed.connect("ann")
    ann.execute("set enable_seqscan = off")
    said = [
        plan(ann, f"select from ai.{table} where {one}", options="analyze, costs off, timing off, summary off")
        for one in (condition, wrong)
    ]
    removed = [re.findall(r"Rows Removed by [A-Za-z ]+: \d+", text) for text in said]
    assert removed[0] == removed[1]


def test_no_index_leads_with_what_an_app_chose(filled: World) -> None:
    """From the catalog: an index of a table under row-level security that apps read, which leads with a text of theirs, has the tenant in it."""
    found = filled.database.execute(
        """
        select i.indexrelid::regclass::text as index
          from pg_index i
          join pg_class c on c.oid = i.indrelid and c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
          join pg_attribute f on f.attrelid = c.oid and f.attnum = i.indkey[0]
          join pg_type t on t.oid = f.atttypid and t.typname in ('text', 'name', 'jsonb', 'bytea')
         where exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
           and has_column_privilege('ai_admin', c.oid, i.indkey[0], 'select')
           and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnum = any (i.indkey::int2[]))
        """
    )
    assert found == []


def leaky(world: World) -> tuple[psycopg.Connection[dict[str, Any]], str]:
    """A connection of ann's with a cheap function that tells whatever it is given, an operator and a cast that use it."""
    schema = world.schema("ann")
    ann = world.connect("ann")
    heard: list[str] = []
    ann.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
    ann.heard = heard  # type: ignore[attr-defined]
    if ann.execute("select to_regproc(%s) as f", [f"{schema}.tell"]).fetchone() == {"f": None}:
        ann.execute(
            f"create function {schema}.tell(text) returns boolean language plpgsql immutable cost 0.0000001 as $$ begin raise notice 'heard %', $1; return true; end $$"
        )
        ann.execute(
            f"create function {schema}.tell2(text, text) returns boolean language sql immutable cost 0.0000001 as 'select {schema}.tell($1)'"
        )
        ann.execute(f"create operator {schema}.<<>> (leftarg = text, rightarg = text, function = {schema}.tell2)")
        ann.execute(f"create type {schema}.wrapped as (body text)")
        ann.execute(f"create domain {schema}.checked as text check ({schema}.tell(value))")
        ann.execute(
            f"create function {schema}.gather(text, text) returns text language plpgsql as $$ begin raise notice 'heard %', $2; return $1; end $$"
        )
        ann.execute(f"create aggregate {schema}.listen(text) (sfunc = {schema}.gather, stype = text)")
    return ann, schema


LEAKS = {
    "a cheap function in WHERE": "select from ai.generations where {s}.tell(prompt)",
    "beside a true condition": "select from ai.generations where true or {s}.tell(prompt)",
    "in OR": "select from ai.generations where {s}.tell(prompt) or user_id = 'bob'",
    "an operator of one's own": "select from ai.generations where prompt operator({s}.<<>>) 'x'",
    "a domain": "select prompt::{s}.checked from ai.generations",
    "an aggregate": "select {s}.listen(prompt) from ai.generations",
    "in ORDER BY": "select from ai.generations order by {s}.tell(prompt)",
    "in a join": "select from ai.generations g join (values ('x')) v (x) on {s}.tell(g.prompt)",
    "in a subquery": "select (select {s}.tell(g.prompt)) from ai.generations g",
    "in a lateral": "select from ai.generations g cross join lateral {s}.tell(g.prompt)",
    "in RETURNING": "insert into ai.generations (prompt, model) select 'x', 'shared/model' from ai.generations where {s}.tell(prompt) returning {s}.tell(prompt)",
    "a tid": "select from ai.generations where ctid >= '(0,0)' and {s}.tell(prompt)",
    "documents": "select from ai.documents where {s}.tell(content)",
    "messages": "select from ai.messages where {s}.tell(content)",
    "tablesample": "select from ai.conversations tablesample bernoulli (100) where {s}.tell(title)",
    "a cursor": "declare c cursor for select from ai.generations where {s}.tell(prompt)",
}  # fmt: skip


@pytest.mark.parametrize("what", LEAKS)
def test_a_condition_that_tells_what_it_is_given_is_never_given_rows_of_others(filled: World, what: str) -> None:
    """However cheap it says it is, it runs after row-level security. Control: with a view without a barrier of one's own, it hears one's own rows."""
    ann, schema = leaky(filled)
    ann.execute("begin")
    ann.execute("set local enable_seqscan = off")
    try:
        cursor = ann.execute(LEAKS[what].format(s=schema))
        if cursor.description is None and what == "a cursor":
            ann.execute("fetch all from c")
    finally:
        ann.execute("rollback")
    assert MARKER not in repr(ann.heard)  # type: ignore[attr-defined]
    ann.execute(f"select {schema}.tell('control')")
    assert "heard control" in ann.heard  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "condition",
    ["1 / (case when prompt like '%%quartz%%' then 0 else 1 end) = 1", "prompt::integer = 1", "(prompt::jsonb) is not null", "prompt::uuid is not null", "convert_from(prompt::bytea, 'LATIN1') is null",
     "to_number(prompt, '9') > 0", "prompt::tsquery is not null", "regexp_match(prompt, prompt) is null", "repeat(prompt, 1000000000) = ''", "prompt::regclass is not null", "prompt ~ '('"],
)  # fmt: skip
def test_an_error_in_a_condition_does_not_tell_of_others_rows(filled: World, condition: str) -> None:
    """Casts and divisions that fail on beta's texts: no row reaches them. (A pattern that is wrong by itself fails for everybody.)"""
    said = outcome(filled.connect("ann"), f"select from ai.generations where {condition.replace('%%', '%')}")
    assert said[0] in ("ok", "2201B")
    assert MARKER not in repr(said)
    assert filled.connect("bob").execute("select from ai.generations where prompt like '%%quartz%%'").fetchall(), (
        "control"
    )


def test_nobody_makes_a_function_leakproof(filled: World) -> None:
    """Which would let it run before the policies."""
    _, schema = leaky(filled)
    with refused("42501"):
        filled.connect("ann").execute(f"alter function {schema}.tell(text) leakproof")
    assert filled.database.execute("select from pg_proc where pronamespace = 'ai'::regnamespace and proleakproof") == []


@pytest.mark.parametrize("name", ["ann", "adm", "stray", "worker", "monitor"])
def test_sequences_tell_nobody_how_much_was_made(filled: World, name: str) -> None:
    """nextval, currval, setval, and reading a sequence: 42501; pg_sequences shows no last value."""
    connection = filled.connect(name)
    sequences = filled.database.execute(
        "select relname from pg_class where relnamespace = 'ai'::regnamespace and relkind = 'S'"
    )
    assert len(sequences) >= 10
    for sequence in sequences:
        for call in ("nextval('ai.{}')", "setval('ai.{}', 1)", "last_value from ai.{}"):
            assert outcome(connection, "select " + call.format(sequence["relname"]))[0] == "42501"
    assert (
        connection.execute("select from pg_sequences where schemaname = 'ai' and last_value is not null").fetchall()
        == []
    )


@pytest.mark.parametrize("name", ["ann", "stray", "worker", "monitor"])
def test_statements_of_others_are_not_shown(filled: World, name: str) -> None:
    """pg_stat_activity of another login: no text, no address. (Its name and the application's are shown to everybody.)"""
    bob = filled.connect("bob")
    bob.execute(f"select '{MARKER}'")
    seen = filled.connect(name).execute("select * from pg_stat_activity").fetchall()
    assert MARKER not in repr(seen)
    assert MARKER in repr(filled.database.execute("select query from pg_stat_activity")), "control"


@pytest.mark.parametrize("setting", ["debug_print_plan", "debug_print_rewritten", "debug_print_parse"])
def test_printed_plans_of_definer_functions_hold_no_secret(filled: World, setting: str) -> None:
    """Anybody may have the plans of what runs printed to them, also inside definer functions: not the key that names channels, no text of others."""
    key = bytes(filled.database.value("select key from ai.realtime_key"))
    printed = " ".join(str(byte - 256 if byte > 127 else byte) for byte in key)
    ann = filled.connect("ann")
    heard: list[str] = []
    ann.add_notice_handler(lambda notice: heard.append(f"{notice.message_primary} {notice.message_detail}"))
    ann.execute("set client_min_messages = log")
    ann.execute(f"set {setting} = on")
    ann.execute("insert into ai.generations (prompt, model) values ('x', 'shared/model')")
    ann.execute("select ai.subscribe(), ai.subscribe(id) from ai.generations limit 1")
    outcome(ann, "select ai.login('mrt_0000000000_0')")
    text = " ".join(heard)
    assert len(text) > 10_000, "control: plans are printed"
    assert printed not in text
    assert MARKER not in text


def test_sizes_of_the_queue_and_of_other_tenants_are_nobodys(filled: World) -> None:
    """The tables of queue, leases, lanes, limits and ledger: 42501 for all app roles and machines."""
    for name in ("ann", "adm", "stray", "worker", "monitor", "public"):
        connection = filled.connect(name)
        for table in ("queue", "delayed", "leases", "lanes", "active_lanes", "parked_lanes", "waiting", "counters", "counter_entries", "unsettled", "cache_entries", "cache_questions",
                      "cache_spaces", "leaders", "idempotency_keys", "stream_events", "prepared", "redactions", "realtime_key", "embedding_jobs", "vectorizer_versions", "staged_vectors",
                      "sessions", "secrets", "data_keys", "sealed_calls"):  # fmt: skip
            assert outcome(connection, f"select from ai.{table}")[0] == "42501", (name, table)
