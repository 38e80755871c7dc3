"""The database is only busy: a lock is held for long, statements are cancelled or lose a race. An answer that was paid
for waits, with all its content.
"""

from __future__ import annotations

from collections.abc import Callable

from asking import ask
from databases import Database
from processes import Simulator, Worker
from psycopg import sql
from simulated import Providers, all_ended, books_agree_with_the_provider, ended


def test_an_answer_waits_with_its_content_however_often_the_database_is_too_busy(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    # As a lock would that is not let go within lock_timeout: of an answer, and of nothing that goes without one.
    database.execute(
        "create function public.busy() returns trigger language plpgsql as"
        " $$ begin raise exception 'canceling statement due to lock timeout' using errcode = '55P03'; end $$"
    )
    database.execute(
        "create trigger busy before update on ai.generations for each row when (new.output is not null)"
        " execute function public.busy()"
    )
    providers = Providers(database, simulator)
    process = worker(database)
    [asked] = ask(database.connect(user=database.member()), providers.model("answer=Patience"), 1)
    process.says("the database refuses results")
    process.says("sqlstate=55P03")
    assert database.value("select status from ai.generations") == "running"
    database.execute("drop trigger busy on ai.generations")
    row = ended(database, asked)
    assert (row["status"], row["output"]) == ("succeeded", "Patience")
    books_agree_with_the_provider(database, simulator)


def test_workers_see_what_the_others_have_committed_whatever_the_default(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    database.execute("create table public.levels (level text)")
    database.execute("grant insert on public.levels to public")
    database.execute(
        "create function public.note_level() returns trigger language plpgsql as"
        " $$ begin insert into public.levels values (current_setting('transaction_isolation')); return null; end $$"
    )
    for table in ("leases", "llm_calls", "stream_events"):
        database.execute(
            f"create trigger note_level after insert on ai.{table} for each row execute function public.note_level()"
        )
    database.execute(
        sql.SQL("alter role {} set default_transaction_isolation = 'repeatable read'")
        .format(sql.Identifier(database.worker.name))
        .as_string()
    )
    providers = Providers(database, simulator)
    worker(database)
    ask(database.connect(user=database.member()), providers.model("tokens=20"), 5, stream=True)
    all_ended(database)
    assert {row["level"] for row in database.execute("select level from public.levels")} == {"read committed"}
