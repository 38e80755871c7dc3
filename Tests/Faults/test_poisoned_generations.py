"""A generation that the database cannot claim: a value too large, a check that it fails, a function that is wrong for
it. All others are answered, whoever asked them, and whatever it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
import waiting
from asking import ask
from databases import Database, Member
from processes import Simulator, Worker, grow_rarer
from simulated import Providers, all_ended, books_agree_with_the_provider, ended

WORDS = "words of a prompt"


def poison(database: Database, body: str) -> None:
    """Makes the lease of every generation whose metadata say so do this."""
    database.execute(
        "create function public.poison() returns trigger language plpgsql as"
        " $$ begin if exists (select from ai.generations g where g.id = new.generation_id"
        f" and g.metadata ? 'poison') then {body} end if; return new; end $$"
    )
    database.execute("create trigger poison before insert on ai.leases for each row execute function public.poison()")


def raising(sqlstate: str) -> str:
    return f"raise exception '{WORDS}' using errcode = '{sqlstate}';"


def ask_both(database: Database, model: str) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """One tenant asks what is poisoned, at the head of its queue and behind, another what is not; gives both."""
    one, other = database.member(), database.member()

    def asks(member: Member, count: int, **columns: str) -> list[uuid.UUID]:
        return ask(database.connect(user=member), model, count, **columns)

    poisoned = asks(one, 2, metadata='{"poison": true}')
    well = asks(one, 3) + asks(other, 3)
    poisoned += asks(one, 1, metadata='{"poison": true}')
    return poisoned, well + asks(other, 3)


def test_what_cannot_be_claimed_ends_and_all_others_are_answered(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    poison(database, raising("54001"))
    poisoned, well = ask_both(database, Providers(database, simulator).model())
    process = worker(database)
    all_ended(database)
    assert {ended(database, one)["status"] for one in well} == {"succeeded"}
    for one in poisoned:
        row = ended(database, one)
        assert (row["status"], row["attempts"]) == ("failed", 0)
        error = row["error"]
        assert (error["class"], error["code"], error["sqlstate"]) == ("unprepared", "PT500", "54001")
        # Once, by its name and without its words.
        [line] = [line for line in process.text.splitlines() if str(one) in line]
        assert "a generation cannot be claimed, and has ended" in line
        assert "sqlstate=54001" in line
    assert WORDS not in process.text
    books_agree_with_the_provider(database, simulator)


@pytest.mark.parametrize("way", ["XX000", "57014"])
def test_what_may_be_the_databases_doing_waits_and_all_others_are_answered(
    database: Database, simulator: Simulator, worker: Callable[..., Worker], way: str
) -> None:
    """An error without a code of its own, and a generation that alone takes longer than `statement_timeout`."""
    if way == "57014":
        database.execute(f'alter role "{database.worker.name}" set statement_timeout = 500')
    poison(database, "loop perform pg_sleep(1); end loop;" if way == "57014" else raising(way))
    poisoned, well = ask_both(database, Providers(database, simulator).model())
    process = worker(database)
    assert {ended(database, one)["status"] for one in well} == {"succeeded"}
    waiting.until(lambda: database.value("select count(*) from ai.delayed") == len(poisoned), "those that wait")
    assert database.value("select count(*) from ai.generations where status = 'queued'") == len(poisoned)
    for one in poisoned:
        process.says(f"generation={one}")
    # The trouble is over.
    database.execute("drop trigger poison on ai.leases")
    database.execute("update ai.delayed set due_at = now()")
    assert {ended(database, one)["status"] for one in poisoned} == {"succeeded"}
    books_agree_with_the_provider(database, simulator)


def test_an_older_schema_is_asked_again_as_before(
    database: Database, simulator: Simulator, worker: Callable[..., Worker]
) -> None:
    database.execute("drop function ai.worker_claim_one(uuid)")
    poison(database, raising("54001"))
    ask_both(database, Providers(database, simulator).model())
    process = worker(database)
    since = len(process.text)
    waiting.until(lambda: process.text.count("a claim failed, trying again") >= 4, "tries")
    assert database.value("select count(*) from ai.generations where status = 'queued'") == 12
    grow_rarer(process, since)
    database.execute("drop trigger poison on ai.leases")
    all_ended(database)
    assert database.value("select count(*) from ai.generations where status = 'succeeded'") == 12
    books_agree_with_the_provider(database, simulator)
