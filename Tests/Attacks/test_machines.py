"""Past Martlet, through the server it runs on; and what a stolen login of a machine is worth."""

# ruff: noqa: E501 (a statement of an attack is read in one piece)
from __future__ import annotations

import uuid

import pytest
from Attacks.tenants import MARKER, World, outcome
from databases import refused
from protocol import PlainWorker

SERVER = {
    "a program by COPY": "copy (select 1) to program 'id'",
    "a program's output": "copy ai.generations (prompt) from program 'id'",
    "a file by COPY": "copy (select 1) to '/tmp/x'",
    "a file to a table": "copy ai.generations (prompt) from '/etc/passwd'",
    "rows past admission": "copy ai.generations (prompt) from stdin",
    "a file": "select pg_read_file('/etc/passwd')",
    "a file in bytes": "select pg_read_binary_file('PG_VERSION')",
    "a directory": "select pg_ls_dir('.')",
    "a file as a large object": "select lo_import('/etc/passwd')",
    "a large object as a file": "select lo_export(1, '/tmp/x')",
    "another's large object": "select lo_get(1)",
    "the end of another session": "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'postgres' and pid <> pg_backend_pid()",
    "the end of another statement": "select pg_cancel_backend(pid) from pg_stat_activity where usename = 'postgres' and pid <> pg_backend_pid()",
    "settings of the database": "alter database current_database set search_path = public",
    "a library": "load 'auto_explain'",
    "an extension": "create extension dblink",
    "a language": "create language plpython3u",
    "a replication slot": "select pg_create_logical_replication_slot('x', 'pgoutput')",
    "the log": "select pg_current_logfile()",
    "configuration": "select * from pg_hba_file_rules",
    "passwords": "select rolpassword from pg_authid",
    "user mappings": "select * from pg_user_mapping",
    "a dump of shared memory": "select * from pg_get_shmem_allocations()",
}


@pytest.mark.parametrize("what", SERVER)
def test_no_member_gets_at_the_server(filled: World, what: str) -> None:
    """As an admin of a tenant: 42501 and the like, whatever the schema's owner may. Nor its settings (outside of a transaction)."""
    with refused("42501"):
        filled.connect("adm").execute("alter system set log_statement = 'all'")
    state, said = outcome(filled.connect("adm"), SERVER[what])
    assert state in ("42501", "0A000", "3F000", "3D000", "42704", "55000", "58P01", "42703"), (state, said)


def test_what_is_copied_out_is_what_is_seen(filled: World) -> None:
    """COPY of every relation that ann may select in full: nothing of beta's. Control: bob's holds it."""
    for name, expected in (("ann", False), ("bob", True)):
        connection = filled.connect(name)
        with connection.cursor().copy("copy (select * from ai.generations) to stdout") as copy:
            text = b"".join(bytes(block) for block in copy).decode()
        assert (MARKER in text) is expected
    with filled.connect("bob").cursor().copy("copy ai.messages to stdout") as copy:
        text = b"".join(bytes(block) for block in copy).decode()
    assert str(filled.beta) in text
    assert str(filled.alpha) not in text


def test_prepared_transactions_of_others_cannot_be_ended(filled: World) -> None:
    """Neither committed nor rolled back by who did not begin them."""
    for statement in ("commit prepared 'x'", "rollback prepared 'x'"):
        with pytest.raises(Exception, match="does not exist"):
            filled.connect("ann").execute(statement)


def test_a_stolen_login_of_a_worker_reads_no_table(filled: World) -> None:
    """Only ai.worker_…() and who it is; every relation, every other function: 42501. (It is handed prompts by claiming: that is its work.)"""
    worker = filled.connect("worker")
    relations = filled.database.execute(
        "select relname from pg_class where relnamespace = 'ai'::regnamespace and relkind in ('r', 'p', 'v')"
    )
    for relation in relations:
        for statement in ("select from ai.{}", "delete from ai.{}", "insert into ai.{} default values"):
            assert outcome(worker, statement.format(relation["relname"]))[0] in ("42501", "55000"), relation
    callable_ = filled.database.execute(
        "select p.proname from pg_proc p where p.pronamespace = 'ai'::regnamespace and has_function_privilege('ai_worker', p.oid, 'execute')"
    )
    others = {row["proname"] for row in callable_ if not row["proname"].startswith("worker_")}
    assert others <= {"identity", "tenant_id", "user_id", "only_user", "may", "whoami"}
    assert outcome(worker, "select ai.generate(prompt => 'x')")[0] == "42501"


def test_a_worker_cannot_report_for_another_or_for_an_old_attempt(world: World) -> None:
    """Without the other's id it has nothing; with it, and a wrong attempt, the report is stale and changes nothing."""
    mine, thief = PlainWorker(world.database, "mine"), PlainWorker(world.database, "thief")
    asked = (
        world.connect("bob")
        .execute("insert into ai.generations (prompt, model) values ('x', 'shared/model') returning id")
        .fetchone()
    )
    assert asked is not None
    (attempt,) = mine.claim()
    assert thief.settle([attempt], output="forged") == {attempt: "stale"}
    assert thief.publish(attempt, "forged") == [attempt]
    old = type(attempt)(attempt.generation_id, attempt.attempt + 1)
    assert mine.settle([old], output="forged") == {old: "stale"}
    assert thief.connection.execute("select * from ai.worker_leases(%s)", [uuid.uuid4()]).fetchall() == []
    assert mine.settle([attempt], output="right") == {attempt: "ended"}
    assert world.database.value("select output from ai.generations where id = %s", asked["id"]) == "right"


def test_a_monitor_sees_no_content_and_no_tenant(filled: World) -> None:
    """Every column that it may select, as text: no id of a tenant, no member, no text. Its functions: aggregates."""
    monitor = filled.connect("monitor")
    columns = monitor.execute(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped"
        " where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v') and has_column_privilege(c.oid, a.attnum, 'select')"
    ).fetchall()
    assert columns
    assert {row["attname"] for row in columns} & {
        "prompt",
        "messages",
        "output",
        "user_id",
        "content",
        "secret",
        "hash",
        "key",
    } == set()
    for row in columns:
        seen = repr(monitor.execute(f"select {row['attname']}::text from ai.{row['relname']}").fetchall())
        assert MARKER not in seen
        assert str(filled.beta) not in seen


# Channels


def test_channels_cannot_be_computed_from_what_an_app_knows(filled: World) -> None:
    """The functions that name channels, and their key, are nobody's; names have 160 bits, differ for each generation and member, and show nothing of their ids."""
    ann, bob = filled.connect("ann"), filled.connect("bob")
    for call in (
        "ai.stream_channel(%s, %s)",
        "ai.member_channel(%s, %s::text)",
        "ai.channel_name('x', %s, uuid_send(%s))",
    ):
        assert outcome(ann, f"select {call}", filled.beta, filled.belongings["generation"])[0] == "42501"
    assert outcome(ann, "select key from ai.realtime_key")[0] == "42501"
    own = bob.execute("select ai.subscribe() as c").fetchone()["c"]
    stream = bob.execute("select ai.subscribe(%s) as c", [filled.belongings["generation"]]).fetchone()["c"]
    other = filled.connect("bev").execute("select ai.subscribe() as c").fetchone()["c"]
    assert len({own, stream, other}) == 3
    for channel in (own, stream, other):
        digits = channel.removeprefix("ai_")
        assert len(digits) == 40
        int(digits, 16)
        assert filled.belongings["generation"].hex not in channel
        assert filled.beta.hex not in channel


def test_who_listens_everywhere_it_can_guess_hears_nothing(world: World) -> None:
    """ann listens to the public channels, to names made of ids, and to her own; beta's stream is published and ends."""
    ann, bob = world.connect("ann"), world.connect("bob")
    worker = PlainWorker(world.database)
    asked = bob.execute(
        "insert into ai.generations (prompt, model, stream) values (%s, 'shared/model', true) returning id", [MARKER]
    ).fetchone()["id"]
    guesses = [
        "ai_work",
        "ai",
        "ai_generations",
        f"ai_{asked}",
        f"ai_{asked.hex}",
        f"ai_stream_{asked}",
        str(asked),
        f"ai_{world.beta}",
        f"ai_{world.beta.hex}",
        "ai_bob",
        "bob",
        ann.execute("select ai.subscribe() as c").fetchone()["c"],
    ]
    for name in guesses:
        ann.execute(f'listen "{name[:63]}"')
    right = bob.execute("select ai.subscribe(%s) as c", [asked]).fetchone()["c"]
    bob.execute(f'listen "{right}"')
    (attempt,) = worker.claim()
    worker.publish(attempt, f"delta {MARKER}")
    worker.settle([attempt], output=f"delta {MARKER}", tail="")
    assert MARKER in repr(list(bob.notifies(timeout=30, stop_after=2))), "control"
    heard = list(ann.notifies(timeout=0.2))
    assert all(notice.payload == "" and notice.channel == "ai_work" for notice in heard), heard


def test_forged_notifications_do_a_worker_no_harm(world: World) -> None:
    """Junk on ai_work and on a worker's own channel: it is a reason to look, and nothing else. Claims, heartbeats and cancellations go on."""
    worker = PlainWorker(world.database)
    worker.connection.execute("listen ai_work")
    worker.connection.execute(f'listen "{worker.channel}"')
    ann = world.connect("ann")
    for payload in ("", "x" * 7999, '{"cancel": "everything"}', "'; select 1; --", "\x01\x1b[31m"):
        for channel in ("ai_work", worker.channel):
            ann.execute("select pg_notify(%s, %s)", [channel, payload])
    world.connect("bob").execute("insert into ai.generations (prompt, model) values ('x', 'shared/model')")
    assert worker.cancellations() == []
    assert worker.heartbeat()
    (attempt,) = worker.claim(look_at_everything=True)
    assert worker.settle([attempt]) == {attempt: "ended"}


def test_a_subscription_outlives_its_right_without_a_text(world: World) -> None:
    """A developer listens to the changes of its own, is switched off, and goes on listening: nothing new is handed out, and what is still
    notified on the old channel is state without a word of anybody's. Known limit: channel names do not change."""
    bev = world.connect("bev")
    channel = bev.execute("select ai.subscribe() as c").fetchone()["c"]
    bev.execute(f'listen "{channel}"')
    bev.execute("insert into ai.generations (prompt, model, stream) values (%s, 'shared/model', true)", [MARKER])
    worker = PlainWorker(world.database)
    (attempt,) = worker.claim()
    world.database.execute("update ai.members set enabled = false where user_id = 'bev'")
    worker.publish(attempt, MARKER)
    worker.settle([attempt], output=MARKER, tail=MARKER, finish_reason="stop")
    assert MARKER not in repr(list(bev.notifies(timeout=0.3)))
    for call in ("ai.subscribe()", "ai.read_stream(%s)"):
        with refused("PT401"):
            bev.execute(f"select {call}", [attempt.generation_id] if "%s" in call else None)
