"""The database is only busy: a lock is held for long, statements are cancelled or lose a race. An answer that was paid
for waits, with all its content.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from asking import ask
from databases import Database
from processes import Simulator, Worker
from psycopg import sql
from psycopg.types.json import Jsonb
from simulated import Providers, all_ended, books_agree_with_the_provider, ended
from waiting import until


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


def test_plain_answers_do_not_wait_for_one_that_the_database_looks_at(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    # The database looks at the answer of one tenant until the lock is let go.
    database.execute(
        "create function public.look() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock_shared(42, 0); return new; end $$"
    )
    database.execute(
        "create trigger look before update on ai.generations for each row"
        " when (new.output is not null and new.params ? 'response_format') execute function public.look()"
    )
    providers = Providers(database, simulator)
    model = providers.model("answer=%7B%22a%22%3A1%7D")
    eye = database.connect()
    eye.execute("select pg_advisory_lock(42, 0)")
    worker(database)
    [slow] = ask(
        database.connect(user=database.member()), model, 1, params=Jsonb({"response_format": {"type": "json_object"}})
    )
    looking = "select count(*) from pg_locks where locktype = 'advisory' and classid = 42 and not granted"
    until(lambda: database.value(looking), "the database looks at the answer")
    [plain] = ask(database.connect(user=database.member()), model, 1)
    assert ended(database, plain)["status"] == "succeeded"
    assert database.value("select status from ai.generations where id = %s", slow) == "running"
    eye.execute("select pg_advisory_unlock(42, 0)")
    assert ended(database, slow)["status"] == "succeeded"
    books_agree_with_the_provider(database, simulator)


def too_slow(database: Database, unless: str) -> None:
    """What has an answer takes longer to store than a statement may, `unless` this holds."""
    database.execute(
        "create function public.slow() returns trigger language plpgsql as $$ begin"
        f" if {unless} then return new; end if;"
        " raise exception 'canceling statement due to statement timeout' using errcode = '57014'; end $$"
    )
    database.execute(
        "create trigger slow before update on ai.generations for each row when (new.output is not null)"
        " execute function public.slow()"
    )


def test_an_answer_that_takes_longer_than_a_statement_may_has_more_time_by_itself(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    too_slow(database, "current_setting('statement_timeout') = '1min'")
    providers = Providers(database, simulator)
    worker(database)
    [asked] = ask(database.connect(user=database.member()), providers.model("answer=Patience"), 1)
    row = ended(database, asked)
    assert (row["status"], row["output"]) == ("succeeded", "Patience")
    books_agree_with_the_provider(database, simulator)


def test_an_answer_that_takes_too_long_in_any_case_is_given_up_with_its_price(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    too_slow(database, "false")
    providers = Providers(database, simulator)
    worker(database)
    [asked] = ask(database.connect(user=database.member()), providers.model("usage=input:1000,output:50"), 1)
    row = ended(database, asked)
    assert (row["status"], row["output"]) == ("failed", None)
    assert row["error"]["message"] == "the database takes too long to store what the provider answered"
    calls = database.execute("select input_tokens, output_tokens, estimated, cost from ai.llm_calls")
    assert [(call["input_tokens"], call["output_tokens"], call["estimated"]) for call in calls] == [
        (1000, 50, False)
    ] * len(calls)
    assert row["cost"] == sum(call["cost"] for call in calls) > 0


@pytest.mark.parametrize("default", ["repeatable read", "serializable"])
def test_workers_see_what_the_others_have_committed_whatever_the_default(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], default: str
) -> None:
    database.execute("create table public.levels (level text)")
    database.execute("grant insert on public.levels to public")
    database.execute(
        "create function public.note_level() returns trigger language plpgsql as"
        " $$ begin insert into public.levels values (current_setting('transaction_isolation')); return null; end $$"
    )
    for table in ("workers", "leases", "llm_calls", "stream_events"):
        database.execute(
            f"create trigger note_level after insert or update on ai.{table}"
            " for each row execute function public.note_level()"
        )
    database.execute(
        sql.SQL("alter role {} set default_transaction_isolation = {}")
        .format(sql.Identifier(database.worker.name), sql.Literal(default))
        .as_string()
    )
    providers = Providers(database, simulator)
    process = worker(database)
    ask(database.connect(user=database.member()), providers.model("tokens=20"), 5, stream=True)
    all_ended(database)
    assert process.terminate() == 0
    assert database.value("select ending from ai.workers") == "stopped"
    assert {row["level"] for row in database.execute("select level from public.levels")} == {"read committed"}
