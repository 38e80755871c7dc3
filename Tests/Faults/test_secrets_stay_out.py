"""No key and no prompt gets into a log, an error or the books, whatever goes wrong (promise 11)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from conftest import SIMULATOR_KEY
from databases import Database, Member
from processes import Simulator, Worker
from sealed import Keeper, KeyedProvider, asked
from simulated import Providers, all_ended, calls, ended

PROMPT = "a prompt that nobody else may read 7f3a"


def everything_stored(database: Database) -> str:
    """All tables of the schema as text, but for what the app itself put in and got back."""
    tables = database.execute(
        "select c.oid::regclass::text as name from pg_class c where c.relnamespace = 'ai'::regnamespace"
        " and c.relkind = 'r' order by 1"
    )
    lines = []
    for table in tables:
        for row in database.execute(
            f"select to_jsonb(t) - 'prompt' - 'output' - 'output_message' as row from {table['name']} t"
        ):
            lines.append(f"{table['name']} {row['row']}")
    return "\n".join(lines)


def test_neither_keys_nor_prompts_are_in_logs_or_tables_after_every_kind_of_fault(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    providers = Providers(database, simulator, max_attempts=2)
    process = worker(database, log_level="trace")
    app = database.connect(user=member)
    faults = [
        "",
        "status=401",
        "status=400",
        "status=500",
        "reset",
        "html",
        "malformed",
        "empty",
        "hang",
        "embedded_error=1",
    ]
    for dialect in ("openai", "anthropic", "gemini"):
        for directives in faults:
            for stream in (False, True):
                app.execute(
                    "insert into ai.generations (prompt, model, stream, deadline_ms) values (%s, %s, %s, 2000)",
                    [PROMPT, providers.model(f"answer=nothing+of+it;{directives}", dialect), stream],
                )
    all_ended(database)
    assert process.terminate() == 0
    stored = everything_stored(database)
    assert len(stored) > 10_000
    for place, text in (("the log", process.text), ("a table", stored)):
        assert SIMULATOR_KEY not in text, place
        assert PROMPT not in text, place


def test_a_key_that_is_missing_fails_the_generation_and_names_the_secret(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    provider = database.provider("locked", f"{simulator.base_url}/v1", secret="NO_SUCH_API_KEY")
    database.model(provider, "locked/model")
    worker(database)
    app = database.connect(user=member)
    generation_id = app.execute("select ai.generate(prompt => 'x', model => 'locked/model') as id").fetchone()["id"]
    row = ended(database, generation_id)
    assert (row["status"], row["error"]["class"]) == ("failed", "unsendable")
    assert "NO_SUCH_API_KEY" in row["error"]["message"]
    assert [call["cost"] for call in calls(database, generation_id)] == [0]
    assert simulator.requests() == []


def test_a_key_is_taken_from_a_file_of_its_name(
    database: Database, member: Member, simulator: Simulator, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    provider = database.provider("filed", f"{simulator.base_url}/v1", secret="FILED_API_KEY")
    database.model(provider, "filed/model")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    worker(database, env={"MARTLET_SECRETS_DIR": str(secrets)})
    app = database.connect(user=member)
    (secrets / "FILED_API_KEY").write_text("sk-from-a-file\n")
    generation_id = app.execute("select ai.generate(prompt => 'x', model => 'filed/model') as id").fetchone()["id"]
    assert ended(database, generation_id)["status"] == "succeeded"


@contextmanager
def watched(database: Database) -> Iterator[list[str]]:
    """What others see while the block runs: the statements of all sessions, the arguments of all processes, and what
    comes over the channels that everybody can guess."""
    seen: set[str] = set()
    stop = threading.Event()
    ears = database.connect()
    ears.execute("listen ai_work")
    with psycopg.connect(database.url, autocommit=True) as eyes:

        def look() -> None:
            while not stop.is_set():
                for row in eyes.execute("select application_name, query, backend_type from pg_stat_activity"):
                    seen.add(f"a session: {row}")
                for path in Path("/proc").glob("[0-9]*/cmdline"):
                    try:
                        seen.add(f"a command line: {path.read_bytes()!r}")
                    except OSError:
                        continue
                stop.wait(0.02)

        thread = threading.Thread(target=look)
        thread.start()
        result: list[str] = []
        try:
            yield result
        finally:
            stop.set()
            thread.join()
    result += sorted(seen)
    result += [f"a notification: {note}" for note in ears.notifies(timeout=0.2)]


def visible_to(database: Database, member: Member) -> str:
    """Everything that a member can read of every table and view."""
    app = database.connect(user=member)
    names = database.execute(
        "select c.oid::regclass::text as name from pg_class c"
        " where c.relnamespace = 'ai'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') order by 1"
    )
    lines = []
    for table in names:
        columns = app.execute(
            "select string_agg(quote_ident(attname), ', ') as list from pg_attribute where attrelid = %s::regclass"
            " and attnum > 0 and not attisdropped and has_column_privilege(attrelid, attnum, 'select')",
            [table["name"]],
        ).fetchone()
        if columns and columns["list"]:
            for row in app.execute(f"select row({columns['list']})::text as row from {table['name']}"):
                lines.append(f"{table['name']} {row['row']}")
    return "\n".join(lines)


def test_markers_that_are_planted_everywhere_are_found_nowhere_else(
    database: Database,
    simulator: Simulator,
    worker: Callable[..., Worker],
    martlet_bin: Path,
    tmp_path: Path,
) -> None:
    keeper = Keeper(database, martlet_bin, tmp_path)
    providers = Providers(database, simulator, max_attempts=2)
    admin, stranger = database.member(role="admin"), database.member(role="admin")
    app = database.connect(user=admin)
    files = tmp_path / "files"
    files.mkdir()
    keys = {
        "a key in the environment": "sk-environment-8d1f00",
        "a key in a file": "sk-file-7c2e11",
        "a sealed key of the operator": "sk-operator-6b3d22",
        "a sealed key of a tenant": "sk-tenant-5a4c33",
        "the simulator's key": SIMULATOR_KEY,
        "the worker's password": database.worker.password,
        "a member's password": admin.login.password,
    }
    (files / "FILED_API_KEY").write_text(keys["a key in a file"])
    keeper.set("SEALED_API_KEY", keys["a sealed key of the operator"])
    keeper.set("TENANT_API_KEY", keys["a sealed key of a tenant"], admin.tenant_id)
    keeper.capture("all")
    for number, key in enumerate(keeper.keys):
        keys[f"master key {number}"] = key.partition(":")[2] or key
    # The echo's answers are the prompts.
    contents = {"a prompt or an answer": PROMPT, "a header": "header-of-a-tenant-29ab"}

    # One that accepts, and one that quotes in its error what it was shown.
    with KeyedProvider() as honest, KeyedProvider(lambda key: (401, {"error": {"message": f"bad {key}!"}})) as rude:
        models = [
            providers.model(),
            providers.model("embedded_error=1", "anthropic"),
            providers.model("reset_after=1"),
            providers.model("status=500"),
        ]
        for name in ("ENV_API_KEY", "FILED_API_KEY", "SEALED_API_KEY", "TENANT_API_KEY", "MISSING_API_KEY"):
            models.append(keeper.shared_provider(honest, name, f"honest-{name.lower()}"))
            models.append(keeper.shared_provider(rude, name, f"rude-{name.lower()}"))
        own = database.provider(
            "own",
            honest.base_url,
            secret="TENANT_API_KEY",
            tenant_id=admin.tenant_id,
            headers=f'{{"x-mark": "{contents["a header"]}"}}',
        )
        database.model(own, "own/model", tenant_id=admin.tenant_id)
        models.append("own/model")
        with watched(database) as seen:
            process = worker(
                database,
                log_level="trace",
                env={
                    **keeper.env,
                    "ENV_API_KEY": keys["a key in the environment"],
                    "MARTLET_SECRETS_DIR": str(files),
                },
            )
            made = app.execute("select key from ai.create_api_key('marked')").fetchone()
            keys["an API key"] = made["key"]
            token = app.execute("select ai.login(%s) as token", [made["key"]]).fetchone()
            keys["a session token"] = token["token"]
            asking = {
                asked(database, admin, model, PROMPT, stream=stream): model
                for model in models
                for stream in (False, True)
            }
            all_ended(database)
            assert process.terminate() == 0
        sent = set(honest.keys)
        quoted = set(rude.keys)
    # They were really there.
    for name in (
        "a key in the environment",
        "a key in a file",
        "a sealed key of the operator",
        "a sealed key of a tenant",
    ):
        assert keys[name] in sent & quoted, name
    assert {row["status"] for row in database.execute("select status from ai.generations")} == {"succeeded", "failed"}
    assert len(asking) == len(models) * 2
    stored = everything_stored(database)
    assert len(stored) > 10_000
    assert any("a command line" in line and "martlet" in line for line in seen)
    assert any("a session" in line and "worker_claim" in line for line in seen)
    assert any("a notification" in line for line in seen)

    public = {"the log": process.text, "what everybody sees": "\n".join(seen)}
    for what, marker in {**keys, **contents}.items():
        for place, text in public.items():
            assert marker not in text, f"{what} is in {place}: {context(text, marker)}"
        others = visible_to(database, stranger)
        assert marker not in others, f"{what} is visible to another tenant: {context(others, marker)}"
    everybody = stored + visible_to(database, admin)
    for what, marker in keys.items():
        assert marker not in everybody, f"{what} is in a table: {context(everybody, marker)}"


def context(text: str, marker: str) -> str:
    """The place where it was found."""
    at = text.find(marker)
    return text[max(0, at - 200) : at + len(marker) + 50]
