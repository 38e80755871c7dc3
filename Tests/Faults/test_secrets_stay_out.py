"""No key and no prompt gets into a log, an error or the books, whatever goes wrong (promise 11)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conftest import SIMULATOR_KEY
from databases import Database, Member
from processes import Simulator, Worker
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
    for dialect in ("openai", "anthropic"):
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
