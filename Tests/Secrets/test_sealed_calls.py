"""What is kept of calls, who may open it, and how it is made unreadable."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from databases import Database, Member, refused
from processes import Simulator, Worker
from sealed import Keeper, KeyedProvider, asked
from simulated import Providers, all_ended, calls, ended

PROMPT = "what only the tenant may read 5d1e"


def kept(database: Database) -> int:
    return database.value("select count(*) from ai.sealed_calls")


def test_all_keeps_the_request_as_it_was_sent_and_the_response_as_it_came(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider)
    keeper.set("OWN_API_KEY", "sk-planted-planted", member.tenant_id)
    keeper.capture("all", member.tenant_id)
    worker(database, env=keeper.env)
    for stream in (False, True):
        provider.bodies.clear()
        generation_id = asked(database, member, model, PROMPT, stream=stream)
        assert ended(database, generation_id)["output"] == PROMPT
        (call,) = keeper.show(generation_id)
        assert (call["attempt"], call["mode"]) == (1, "content")
        assert json.loads(call["request"]) == provider.bodies[0]
        facts = call["facts"]
        assert facts["http_status"] == 200
        assert facts["request_sha256"] == hashlib.sha256(call["request"].encode()).hexdigest()
        assert facts["response_sha256"] == hashlib.sha256(call["response"].encode()).hexdigest()
        assert facts["response_bytes"] == len(call["response"].encode())
        assert (facts["request_truncated"], facts["response_truncated"]) == (False, False)
        assert call["response"].startswith("data: " if stream else "{")
        assert [row["capture"] for row in calls(database, generation_id)] == ["content"]
        assert "sk-planted" not in json.dumps(call)


def test_metadata_keeps_sizes_and_hashes_and_nothing_that_was_said(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("metadata")
    worker(database, env=keeper.env)
    generation_id = asked(database, member, model, PROMPT)
    ended(database, generation_id)
    (call,) = keeper.show(generation_id)
    assert call["mode"] == "metadata"
    assert "request" not in call
    assert "response" not in call
    assert call["facts"]["request_bytes"] > len(PROMPT)
    assert len(call["facts"]["request_sha256"]) == 64
    assert PROMPT not in json.dumps(call)
    assert database.execute("select request, response from ai.sealed_calls") == [{"request": None, "response": None}]
    assert [row["capture"] for row in calls(database, generation_id)] == ["metadata"]


def test_sampled_keeps_some_and_off_keeps_none_and_the_tenant_s_own_policy_goes_first(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    quiet = database.member()
    keeper.capture("sampled", percent=30)
    keeper.capture("off", quiet.tenant_id)
    worker(database, env=keeper.env)
    for who in (member, quiet):
        database.connect(user=who).execute(
            "insert into ai.generations (prompt, model) select 'p' || n, %s from generate_series(1, 200) n", [model]
        )
    all_ended(database)
    assert 30 <= kept(database) <= 95
    wrong = database.execute(
        """
        select c.generation_id from ai.llm_calls c
          left join ai.sealed_calls s
                 on s.tenant_id = c.tenant_id and s.generation_id = c.generation_id and s.attempt = c.attempt
         where (c.capture is not null) <> (s.generation_id is not null)
            or (c.capture is not null) <> (c.tenant_id = %s and ai.is_sampled(c.generation_id, 30))
        """,
        member.tenant_id,
    )
    assert wrong == []


def test_every_attempt_is_kept_also_of_what_failed_and_the_answer_s_quotation_of_the_key_is_taken_out(
    database: Database, member: Member, keeper: Keeper, worker: Callable[..., Worker]
) -> None:
    key = "sk-planted-in-an-answer"

    def refuse(shown: str) -> tuple[int, dict[str, object]]:
        return 500, {"error": {"message": f"what is {shown}? {shown}"}}

    with KeyedProvider(refuse) as provider:
        model = keeper.shared_provider(provider)
        keeper.set("OWN_API_KEY", key, member.tenant_id)
        keeper.capture("all")
        database.execute("update ai.settings set max_attempts = 3")
        worker(database, env=keeper.env)
        generation_id = asked(database, member, model, PROMPT)
        assert ended(database, generation_id)["status"] == "failed"
    opened = keeper.show(generation_id)
    assert [call["attempt"] for call in opened] == [1, 2, 3]
    assert {call["facts"]["http_status"] for call in opened} == {500}
    assert {call["response"] for call in opened} == {'{"error": {"message": "what is [key]? [key]"}}'}
    assert [call["attempt"] for call in keeper.show(generation_id, "--attempt", "2")] == [2]


def test_of_large_bodies_the_first_mebibyte_is_kept_and_the_rest_is_told(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    worker(database, env=keeper.env)
    generation_id = asked(database, member, model, "x" * 1_500_000)
    ended(database, generation_id)
    (call,) = keeper.show(generation_id)
    assert len(call["request"]) == len(call["response"]) == 1 << 20
    assert (call["facts"]["request_truncated"], call["facts"]["response_truncated"]) == (True, True)
    assert call["facts"]["request_bytes"] > 1_500_000


def test_every_dialect_and_kind_is_kept(
    database: Database, member: Member, keeper: Keeper, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    keeper.capture("all")
    worker(database, env=keeper.env)
    asked_for = [
        asked(database, member, providers.model(dialect="anthropic"), PROMPT, stream=True),
        asked(database, member, providers.model(), PROMPT),
        asked(database, member, providers.model(kind="embedding"), PROMPT, kind="embedding"),
        asked(database, member, "local/extract", PROMPT),
    ]
    for generation_id in asked_for:
        assert ended(database, generation_id)["status"] == "succeeded"
        (call,) = keeper.show(generation_id)
        assert PROMPT in call["request"]
        assert call["response"]


def test_without_a_master_key_calls_are_made_and_say_that_they_are_not_kept(
    database: Database, member: Member, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    process = worker(database)
    for _ in range(3):
        generation_id = asked(database, member, model)
        assert ended(database, generation_id)["status"] == "succeeded"
        assert [row["capture"] for row in calls(database, generation_id)] == ["lost"]
    assert kept(database) == 0
    assert process.text.count("capture is lost") == 1


def test_what_a_killed_worker_had_in_hand_is_lost_and_says_so(
    database: Database, member: Member, keeper: Keeper, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator)
    keeper.capture("all")
    process = worker(database, env=keeper.env)
    generation_id = asked(database, member, providers.model("hang;times=1"), PROMPT)
    simulator.is_asked(1)
    process.kill()
    worker(database, env=keeper.env)
    assert ended(database, generation_id)["status"] == "succeeded"
    assert [row["capture"] for row in calls(database, generation_id)] == ["lost", "content"]


def test_only_who_may_opens_and_every_opening_is_on_the_audit_log(
    database: Database, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    worker(database, env=keeper.env)
    tenant = database.tenant()
    admin, developer, user = (database.member(tenant, role=role) for role in ("admin", "developer", "user"))
    stranger = database.member(role="admin")
    generation_id = asked(database, user, model, PROMPT)
    ended(database, generation_id)

    before = database.value("select count(*) from ai.audit_log where action = 'open'")
    assert PROMPT in keeper.show(generation_id, url=admin.url)[0]["request"]
    assert PROMPT in keeper.show(generation_id)[0]["request"], "the owner of the schema"
    assert database.value("select count(*) from ai.audit_log where action = 'open'") == before + 2
    for who, state in (
        (developer, "PT403"),
        (user, "PT403"),
        (stranger, "PT404"),
        (database.login("ai_user"), "PT401"),
    ):
        done = keeper.run("calls", "show", str(generation_id), url=who.url)
        assert done.returncode == 1
        assert state in done.stderr
        assert PROMPT not in done.stdout + done.stderr
        with refused("42501"):
            database.connect(user=who).execute("select * from ai.sealed_calls")
    # A role of the tenant's own that may.
    database.execute("insert into ai.roles (tenant_id, name, permissions) values (%s, 'opener', '{call:open}')", tenant)
    database.execute(
        "update ai.members set role = 'opener' where tenant_id = %s and user_id = %s", tenant, user.user_id
    )
    assert PROMPT in keeper.show(generation_id, url=user.url)[0]["request"]


def test_an_opening_that_is_rolled_back_has_shown_nothing(
    database: Database, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    worker(database, env=keeper.env)
    admin = database.member(role="admin")
    colleague = database.member(admin.tenant_id, role="admin")
    generation_id = asked(database, admin, model, PROMPT)
    ended(database, generation_id)
    session = database.connect(user=admin, autocommit=False)
    opening = session.execute("select ai.open_call(%s) as id", [generation_id]).fetchone()["id"]
    with refused("PT409"), session.transaction():
        session.execute("select * from ai.opened_call(%s)", [opening])
    session.rollback()
    with refused("PT404"):
        session.execute("select * from ai.opened_call(%s)", [opening])
    session.rollback()
    opening = session.execute("select ai.open_call(%s) as id", [generation_id]).fetchone()["id"]
    session.commit()
    assert len(session.execute("select * from ai.opened_call(%s)", [opening]).fetchall()) == 1
    session.rollback()
    with refused("PT404"):
        database.connect(user=colleague).execute("select * from ai.opened_call(%s)", [opening])
    database.execute("update ai.call_openings set created_at = created_at - interval '61 s'")
    with refused("PT404"):
        session.execute("select * from ai.opened_call(%s)", [opening])


def test_a_destroyed_key_makes_a_tenant_s_calls_unreadable_and_no_other_s(
    database: Database, keeper: Keeper, provider: KeyedProvider, worker: Callable[..., Worker]
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    worker(database, env=keeper.env)
    gone, stays = (database.member(role="admin") for _ in range(2))
    first, other = (asked(database, who, model, PROMPT) for who in (gone, stays))
    all_ended(database)
    plain = database.member(gone.tenant_id)
    with refused("PT403"):
        database.connect(user=plain).execute("select ai.destroy_data_keys()")
    with refused("PT403"):
        database.connect(user=gone).execute("select ai.destroy_data_keys(%s)", [stays.tenant_id])
    assert database.connect(user=gone).execute("select ai.destroy_data_keys() as n").fetchone()["n"] == 1
    done = keeper.run("calls", "show", str(first), "--json")
    assert done.returncode == 1
    assert "destroyed" in json.loads(done.stdout)[0]["error"]
    assert PROMPT in keeper.show(other)[0]["request"]
    # A new key at the next need.
    second = asked(database, gone, model, PROMPT)
    ended(database, second)
    assert PROMPT in keeper.show(second)[0]["request"]
    assert keeper.run("calls", "show", str(first)).returncode == 1
    assert (
        database.value(
            "select count(*) from ai.audit_log where object = 'data_keys' and after ->> 'destroyed_at' is not null"
        )
        == 1
    )


@pytest.mark.parametrize("part", ["facts", "request", "response"])
def test_a_changed_or_moved_call_does_not_open(
    database: Database,
    member: Member,
    keeper: Keeper,
    provider: KeyedProvider,
    worker: Callable[..., Worker],
    part: str,
) -> None:
    model = keeper.shared_provider(provider, secret=None)
    keeper.capture("all")
    worker(database, env=keeper.env)
    one, two = (asked(database, member, model, f"{PROMPT} {n}") for n in range(2))
    all_ended(database)
    database.execute(
        f"update ai.sealed_calls s set {part} = o.{part} from ai.sealed_calls o"
        " where s.generation_id = %s and o.generation_id = %s",
        one,
        two,
    )
    database.execute(
        f"update ai.sealed_calls set {part} = set_byte({part}, 20, get_byte({part}, 20) # 1) where generation_id = %s",
        two,
    )
    for generation_id in (one, two):
        done = keeper.run("calls", "show", str(generation_id), "--json")
        assert done.returncode == 1
        assert "does not open" in json.loads(done.stdout)[0]["error"]


def test_neither_keys_nor_prompts_lie_open_anywhere(
    database: Database,
    member: Member,
    keeper: Keeper,
    provider: KeyedProvider,
    worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    key = "sk-planted-91c7-sealed-key"
    model = keeper.shared_provider(provider)
    keeper.set("OWN_API_KEY", key, member.tenant_id)
    keeper.capture("all")
    process = worker(database, env=keeper.env, log_level="trace")
    generation_id = asked(database, member, model, PROMPT)
    ended(database, generation_id)
    opened = keeper.run("calls", "show", str(generation_id))
    assert PROMPT in opened.stdout
    # What the app itself put in and got back is its own business.
    database.execute("update ai.generations set prompt = null, messages = '[]', output = null, output_message = null")
    database.execute("delete from ai.stream_events")
    with psycopg.connect(database.url) as session:
        tables = [
            row[0]
            for row in session.execute(
                "select oid::regclass::text from pg_class where relnamespace = 'ai'::regnamespace and relkind = 'r'"
            )
        ]
        texts = []
        for table in tables:
            with session.cursor().copy(f"copy {table} to stdout") as rows:
                texts.append(b"".join(bytes(row) for row in rows).decode(errors="replace"))
        dump = "\n".join(texts)
        assert "sealed" not in dump or len(dump) > 10_000
        activity = str(session.execute("select query from pg_stat_activity").fetchall())
    commands = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    master = keeper.keys[0].split(":", 1)[1]
    for place, text in (("a table", dump), ("the log", process.text), ("pg_stat_activity", activity), ("ps", commands)):
        for secret in (key, PROMPT, master):
            assert secret not in text, place
            assert secret.encode().hex() not in text, place
