"""Tools by a real worker: as whom they run, and what they cannot do, however their functions are written."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

import pytest
from databases import Database, Member
from processes import Simulator, Worker
from scripted import ScriptedProvider
from waiting import until

FUNCTIONS = """
create schema app;
create table app.orders (id integer, tenant_id uuid, user_id text, what text);
alter table app.orders enable row level security;
create policy own on app.orders using (tenant_id = (select ai.tenant_id()) and user_id = (select ai.user_id()));
create table app.calls (n serial, what text);
create function app.find_order(p jsonb) returns jsonb language sql stable set search_path = app as $$
  select jsonb_agg(o.what) from orders o
$$;
create function app.who(p jsonb) returns jsonb language plpgsql as $$
begin
  begin
    execute 'reset role';
    execute 'reset session authorization';
  exception when others then
    null;
  end;
  return jsonb_build_object('session', session_user, 'current', current_user, 'user', ai.user_id());
end
$$;
create function app.try(p jsonb) returns text language plpgsql as $$
begin
  insert into app.calls (what) values (p ->> 'sql');
  execute p ->> 'sql';
  return 'done';
end
$$;
create function app.stubborn(p jsonb) returns text language plpgsql as $$
begin
  perform set_config('statement_timeout', '0', false);
  loop
    begin
      perform pg_sleep(60);
    exception when query_canceled then
      null;
    end;
  end loop;
end
$$;
create function app.leave(p jsonb) returns text language plpgsql as $$
begin
  perform set_config('app.left', 'here', false), set_config('search_path', 'app', false), pg_advisory_lock(77);
  create temp table left_here as select 1 as n;
  execute 'prepare left_behind as select 1';
  execute 'listen ai_work';
  return coalesce(current_setting('app.before', true), 'nothing');
end
$$;
create function app.found(p jsonb) returns jsonb language sql as $$
  select jsonb_build_object('setting', coalesce(current_setting('app.left', true), ''),
    'tables', to_regclass('pg_temp.left_here') is not null,
    'prepared', (select count(*) from pg_catalog.pg_prepared_statements s where s.name = 'left_behind'),
    'lock', pg_catalog.pg_try_advisory_lock(77))
$$;
create function app.fire() returns trigger language plpgsql as $$
begin
  insert into app.calls (what) values (session_user || ' ' || current_user);
  return null;
end
$$;
create table app.later (n integer);
create constraint trigger later after insert on app.later deferrable initially deferred
  for each row execute function app.fire();
create function app.defer(p jsonb) returns text language sql as $$ insert into app.later values (1); select 'done' $$;
"""


class Shop:
    """An app with tools: a database with its functions, a login that runs them, a member who asks."""

    def __init__(self, database: Database, simulator: Simulator) -> None:
        self.database = database
        self.tools = database.login("ai_user")
        self.member = database.member()
        database.superuser.execute(FUNCTIONS)
        name = self.tools.name
        database.superuser.execute(f"grant usage on schema app to {name}")
        database.superuser.execute(f"grant all on all tables in schema app to {name}")
        database.superuser.execute(f"grant all on all sequences in schema app to {name}")
        for tool in ("find_order", "who", "try", "stubborn", "leave", "found", "defer"):
            database.execute(
                "insert into ai.tools (name, description, function, parameters, timeout_ms)"
                " values (%s, 'A tool.', %s, '{\"type\": \"object\"}', %s)",
                tool,
                f"app.{tool}",
                300 if tool == "stubborn" else 5000,
            )
        provider = database.provider("sim", f"{simulator.base_url}/v1", secret="SIM_API_KEY")
        self.provider = provider

    def ask(self, tool: str, arguments: dict[str, Any] | None = None, member: Member | None = None) -> uuid.UUID:
        """Asks a model that calls this tool with these arguments, and then answers."""
        name = f"sim/{uuid.uuid4()}"
        wire = f"sim+tool={tool};args={quote_plus(json.dumps(arguments or {}))}"
        self.database.model(self.provider, name, wire)
        return self.ask_model(name, tool, member)

    def ask_model(self, model: str, tool: str, member: Member | None = None) -> uuid.UUID:
        """Asks this model, which may call this tool."""
        connection = self.database.connect(user=member or self.member)
        row = connection.execute(
            "insert into ai.generations (prompt, model, tools) values ('Use it.', %s, %s) returning id", (model, [tool])
        ).fetchone()
        assert row is not None
        return row["id"]

    def ended(self, generation: uuid.UUID) -> dict[str, Any]:
        """The generation when it has ended."""

        def look() -> dict[str, Any] | None:
            row = self.database.execute("select * from ai.generations where id = %s", generation)[0]
            return row if row["finished_at"] else None

        row = until(look, "the end")
        assert row is not None
        return row

    def told(self, tool: str, arguments: dict[str, Any] | None = None, member: Member | None = None) -> Any:
        """What the model is told of one run."""
        generation = self.ask(tool, arguments, member)
        row = self.ended(generation)
        assert row["status"] == "succeeded", row["error"]
        result = self.database.value("select result from ai.tool_calls where generation_id = %s", generation)
        try:
            return json.loads(result)
        except ValueError:
            return result


@pytest.fixture
def shop(database: Database, simulator: Simulator) -> Shop:
    return Shop(database, simulator)


@pytest.fixture
def running(shop: Shop, worker: Callable[..., Worker]) -> Worker:
    """A worker that runs the shop's tools."""
    return worker(shop.database, env={"MARTLET_TOOLS_DATABASE_URL": shop.tools.url})


def test_a_tool_runs_as_the_member_and_each_step_is_on_the_books(shop: Shop, running: Worker) -> None:
    other = shop.database.member(shop.member.tenant_id)
    for member, what in ((shop.member, "a lamp"), (other, "a desk")):
        shop.database.execute("insert into app.orders values (1, %s, %s, %s)", member.tenant_id, member.user_id, what)

    generation = shop.ask("find_order")
    row = shop.ended(generation)

    assert (row["status"], row["steps"], row["attempts"]) == ("succeeded", 1, 2)
    calls = shop.database.execute("select status, cost from ai.llm_calls where generation_id = %s", generation)
    assert [call["status"] for call in calls] == ["succeeded"] * 2
    assert sum(call["cost"] for call in calls) == row["cost"] > 0
    assert shop.database.value("select result from ai.tool_calls where generation_id = %s", generation) == '["a lamp"]'
    assert shop.told("find_order", member=other) == ["a desk"]


def test_a_worker_that_works_once_runs_the_tools_and_goes_on(shop: Shop, worker: Callable[..., Worker]) -> None:
    for tool in ("find_order", "who", "defer"):
        shop.ask(tool)
    process = worker(shop.database, once=True, ready=False, env={"MARTLET_TOOLS_DATABASE_URL": shop.tools.url})
    assert process.wait() == 0
    assert shop.database.execute("select status, steps, count(*) from ai.generations group by 1, 2") == [
        {"status": "succeeded", "steps": 1, "count": 3}
    ]


def test_a_worker_that_works_once_ends_where_it_may_not_ask_for_tools(
    shop: Shop, worker: Callable[..., Worker]
) -> None:
    shop.ask("who")
    shop.database.execute("revoke execute on function ai.worker_tools(uuid, integer) from ai_worker")
    process = worker(shop.database, once=True, ready=False, env={"MARTLET_TOOLS_DATABASE_URL": shop.tools.url})
    assert process.wait() == 1
    assert "permission denied for function worker_tools" in process.text
    assert shop.database.value("select count(*) from ai.leases") == 0
    assert shop.database.value("select status from ai.generations") in ("queued", "running")


def test_a_tool_has_the_rights_of_the_login_for_tools_whatever_it_resets(shop: Shop, running: Worker) -> None:
    told = shop.told("who")
    assert told == {"session": shop.tools.name, "current": shop.tools.name, "user": shop.member.user_id}

    worker, administrator = shop.database.worker.name, shop.database.superuser.info.user
    for statement in (
        f'set role "{worker}"',
        f'set session authorization "{worker}"',
        f'set session authorization "{administrator}"',
        "select * from ai.worker_claim(gen_random_uuid(), 1, null)",
        "select ticket from ai.tool_calls",
        "update ai.tools set enabled = false",
    ):
        assert shop.told("try", {"sql": statement}) == {"error": "the tool may not do this"}, statement
    assert shop.database.value("select count(*) from app.calls") == 0


def test_what_a_tool_defers_runs_with_no_more_rights(shop: Shop, running: Worker) -> None:
    assert shop.told("defer") == "done"
    assert shop.database.value("select what from app.calls") == f"{shop.tools.name} {shop.tools.name}"


def test_what_a_tool_did_is_undone_where_it_fails(shop: Shop, running: Worker) -> None:
    assert shop.told("try", {"sql": "select 1 / 0"}) == {"error": "the tool failed"}
    raised = {"sql": "do $$ begin raise exception 'no such order'; end $$"}
    assert shop.told("try", raised) == {"error": "no such order"}
    for statement in ("commit", "rollback", "do $$ begin commit; end $$"):
        assert shop.told("try", {"sql": statement}) == {"error": "the tool failed"}, statement
    assert shop.database.value("select count(*) from app.calls") == 0


def test_a_tool_that_will_not_stop_is_stopped(shop: Shop, running: Worker) -> None:
    assert shop.told("stubborn") == {"error": "the tool took too long"}
    until(
        lambda: shop.database.value("select count(*) from pg_stat_activity where usename = %s", shop.tools.name) == 0,
        "the database to say so",
    )


def test_a_tool_leaves_nothing_behind_in_its_session(shop: Shop, running: Worker) -> None:
    for _ in range(2):
        assert shop.told("leave") == "nothing"
        assert shop.told("found") == {"setting": "", "tables": False, "prepared": 0, "lock": True}


@pytest.mark.parametrize("what", ["administrator", "worker", "member"])
def test_a_login_with_other_rights_runs_no_tools(shop: Shop, worker: Callable[..., Worker], what: str) -> None:
    database = shop.database
    logins = {"administrator": database.url, "worker": database.worker.url, "member": shop.member.url}
    database.superuser.execute(f"grant ai_user to {database.worker.name}")
    database.superuser.execute("grant usage on schema app to public")
    worker(database, env={"MARTLET_TOOLS_DATABASE_URL": logins[what]})

    told = shop.told("who")

    assert "may not run tools" in told["error"]


def test_a_worker_killed_while_a_tool_runs_leaves_it_to_another(shop: Shop, worker: Callable[..., Worker]) -> None:
    shop.database.execute("update ai.settings set lease_ms = 1000, heartbeat_ms = 200")
    environment = {"MARTLET_TOOLS_DATABASE_URL": shop.tools.url}
    first = worker(shop.database, env=environment)
    shop.database.execute("update ai.tools set timeout_ms = 60000 where name = 'try'")
    generation = shop.ask("try", {"sql": "select pg_sleep(3)"})
    asleep = "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'"
    until(
        lambda: shop.database.value(asleep) > 0,
        "the database to say so",
    )
    first.kill()
    worker(shop.database, env=environment)

    row = shop.ended(generation)

    assert row["status"] == "succeeded"
    # The run of the dead worker ended by itself, or was begun again: never both.
    assert shop.database.value("select count(*) from app.calls") == 1


def test_many_tools_at_once_are_each_run_once(shop: Shop, worker: Callable[..., Worker]) -> None:
    environment = {"MARTLET_TOOLS_DATABASE_URL": shop.tools.url, "MARTLET_TOOLS_CONCURRENCY": "3"}
    for _ in range(2):
        worker(shop.database, env=environment)
    generations = [shop.ask("try", {"sql": f"select {number}"}) for number in range(20)]

    rows = [shop.ended(generation) for generation in generations]

    assert {row["status"] for row in rows} == {"succeeded"}
    said = [row["what"] for row in shop.database.execute("select what from app.calls")]
    assert sorted(said) == sorted(f"select {number}" for number in range(20))


def test_without_a_login_for_tools_they_wait_and_words_stay_out_of_the_log(
    shop: Shop, worker: Callable[..., Worker]
) -> None:
    first = worker(shop.database)
    generation = shop.ask("try", {"sql": "do $$ begin raise exception 'hush-hush'; end $$"})
    until(
        lambda: shop.database.value("select count(*) from ai.tool_calls where status = 'queued'") == 1,
        "the database to say so",
    )

    second = worker(shop.database, env={"MARTLET_TOOLS_DATABASE_URL": shop.tools.url})

    assert shop.ended(generation)["status"] == "succeeded"
    for process in (first, second):
        assert "hush-hush" not in process.text
        assert "mrc_" not in process.text


CALL = {"id": "c1", "type": "function", "function": {"name": "find_order", "arguments": "{}"}}
BLOCKS = [
    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
    {"type": "redacted_thinking", "data": "ZGF0YQ=="},
    {"type": "text", "text": "Let me see."},
    {"type": "tool_use", "id": "c1", "name": "find_order", "input": {}},
]
PARTS = [
    {"text": "Let me see.", "thoughtSignature": "dGV4dA=="},
    {"functionCall": {"name": "find_order", "args": {}}, "thoughtSignature": "c2ln"},
]
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "c2ln"}
RESULT = '["a lamp"]'


def chat(message: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def candidate(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}]}


def response(*output: dict[str, Any]) -> dict[str, Any]:
    return {"id": "resp_1", "object": "response", "status": "completed", "output": output}


# By dialect: the provider's columns, the answer that calls the tool, the one that ends it, and what the second request
# says after the question: in which member, and what.
LOOPS: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, Any], str, list[dict[str, Any]]]] = {
    "openai": (
        {"options": '{"variant": "deepseek"}'},
        chat({"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]}),
        chat({"role": "assistant", "content": "A lamp."}),
        "messages",
        [
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": RESULT},
        ],
    ),
    "anthropic": (
        {},
        {"type": "message", "content": BLOCKS, "stop_reason": "tool_use"},
        {"type": "message", "content": [{"type": "text", "text": "A lamp."}], "stop_reason": "end_turn"},
        "messages",
        [
            {"role": "assistant", "content": BLOCKS},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": RESULT}]},
        ],
    ),
    "gemini": (
        {},
        candidate(PARTS),
        candidate([{"text": "A lamp."}]),
        "contents",
        [
            {"role": "model", "parts": PARTS},
            {"role": "user", "parts": [{"functionResponse": {"name": "find_order", "response": {"output": RESULT}}}]},
        ],
    ),
    "openai_responses": (
        {},
        response(REASONING, {"type": "function_call", "call_id": "c1", "name": "find_order", "arguments": "{}"}),
        response({"type": "message", "content": [{"type": "output_text", "text": "A lamp."}]}),
        "input",
        [
            REASONING,
            {"type": "function_call", "call_id": "c1", "name": "find_order", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": RESULT},
        ],
    ),
}


@pytest.mark.parametrize("dialect", LOOPS)
def test_what_a_provider_wants_again_goes_back_to_it_with_the_result(shop: Shop, running: Worker, dialect: str) -> None:
    columns, calls, ends, member, said = LOOPS[dialect]
    user = shop.member
    shop.database.execute("insert into app.orders values (1, %s, %s, 'a lamp')", user.tenant_id, user.user_id)
    with ScriptedProvider(calls, ends) as provider:
        key = shop.database.provider("scripted", provider.base_url, dialect, secret="SIM_API_KEY", **columns)
        shop.database.model(key, "scripted")

        row = shop.ended(shop.ask_model("scripted", "find_order"))

    assert (row["status"], row["output"]) == ("succeeded", "A lamp."), row["error"]
    assert provider.bodies[1][member][1:] == said


def test_an_answer_is_made_to_fit_its_schema_or_fails(
    database: Database, simulator: Simulator, member: Member, worker: Callable[..., Worker]
) -> None:
    provider = database.provider("sim", f"{simulator.base_url}/v1", secret="SIM_API_KEY")
    database.model(provider, "sim/json", "sim-json", capabilities='{"json_mode": true}')
    database.model(provider, "sim/plain", "sim-plain")
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    params = {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    connection = database.connect(user=member)
    ids = {}
    for model in ("sim/json", "sim/plain"):
        row = connection.execute(
            "insert into ai.generations (prompt, model, params) values ('Why?', %s, %s) returning id",
            (model, json.dumps(params)),
        ).fetchone()
        assert row is not None
        ids[model] = row["id"]
    worker(database)

    def done() -> bool:
        return database.value("select count(*) from ai.generations where finished_at is null") == 0

    until(done, "both ends")
    rows = {row["model"]: row for row in database.execute("select * from ai.generations")}
    assert (rows["sim/json"]["status"], rows["sim/json"]["repairs"]) == ("succeeded", 0)
    typed = connection.execute("select ai.output_as(%s, null::jsonb) ->> 'answer' as a", (ids["sim/json"],)).fetchone()
    assert typed is not None
    assert typed["a"]
    assert (rows["sim/plain"]["status"], rows["sim/plain"]["error"]["class"]) == ("failed", "invalid_output")
    books = database.execute("select status, cost from ai.llm_calls where generation_id = %s", ids["sim/plain"])
    assert [call["status"] for call in books] == ["succeeded"] * 3
    assert sum(call["cost"] for call in books) == rows["sim/plain"]["cost"]
