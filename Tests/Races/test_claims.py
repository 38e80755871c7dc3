"""However many workers claim, settle and die at once, each generation has one worker and one end (promises 1, 2)."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter

import psycopg
from crowd import at_once
from databases import Database, Member
from protocol import Attempt, PlainWorker


def ask(database: Database, member: Member, count: int, priority: str = "normal") -> None:
    database.connect(user=member).execute(
        "insert into ai.generations (prompt, priority) select 'question ' || n, %s from generate_series(1, %s) n",
        [priority, count],
    )


def test_no_generation_is_claimed_twice_while_rows_keep_coming(database: Database, dice: random.Random) -> None:
    members = [database.member() for _ in range(4)]
    done_inserting = threading.Event()

    def insert(number: int, dice: random.Random) -> list[Attempt]:
        for _ in range(12):
            ask(database, members[number], dice.randrange(1, 60), dice.choice(["high", "normal", "low"]))
        return []

    def work(dice: random.Random) -> list[Attempt]:
        worker = PlainWorker(database)
        taken: list[Attempt] = []
        while True:
            ended = done_inserting.is_set()
            claimed = worker.claim(dice.randrange(1, 40), look_at_everything=dice.random() < 0.3)
            taken += claimed
            results = worker.settle(claimed)
            assert set(results.values()) <= {"ended"}
            if not claimed and ended and not worker.claim(1, look_at_everything=True):
                return taken

    finished = Counter[int]()

    def run(number: int, dice: random.Random) -> list[Attempt]:
        if number >= 4:
            return work(dice)
        try:
            return insert(number, dice)
        finally:
            finished[number] += 1
            if len(finished) == 4:
                done_inserting.set()

    taken = [attempt for share in at_once(8, run, dice) for attempt in share]
    ids = [attempt.generation_id for attempt in taken]
    assert len(ids) == len(set(ids))
    assert set(ids) == {row["id"] for row in database.execute("select id from ai.generations")}
    assert database.value("select count(*) from ai.generations where status <> 'succeeded' or attempts <> 1") == 0
    assert database.value("select count(*) from ai.llm_calls") == len(ids)
    assert database.value("select count(*) from ai.queue") + database.value("select count(*) from ai.leases") == 0


def test_a_claim_that_is_rolled_back_leaves_everything_as_it_was(
    database: Database, member: Member, dice: random.Random
) -> None:
    ask(database, member, 300)

    def work(number: int, dice: random.Random) -> list[Attempt]:
        worker = PlainWorker(database)
        kept: list[Attempt] = []
        while True:
            if number < 2 and dice.random() < 0.7:  # its connection dies before the commit
                worker.connection.autocommit = False
                worker.claim(dice.randrange(1, 30), look_at_everything=True)
                worker.connection.rollback()
                worker.connection.autocommit = True
            claimed = worker.claim(dice.randrange(1, 30), look_at_everything=True)
            if not claimed:
                return kept
            kept += claimed
            worker.settle(claimed)

    at_once(4, work, dice)
    leftovers = PlainWorker(database)
    leftovers.settle(leftovers.claim(1000, look_at_everything=True))
    assert database.value("select count(*) from ai.generations where status = 'succeeded' and attempts = 1") == 300
    assert database.value("select count(*) from ai.llm_calls where status = 'succeeded'") == 300


def test_what_cannot_be_claimed_ends_once_and_nothing_else_does(database: Database, dice: random.Random) -> None:
    """Workers whose claims fail claim one by one, beside each other and beside claims that do not fail, with limits."""
    members = [database.member() for _ in range(3)]
    database.execute("insert into ai.limits (per, metric, period, amount) values ('member', 'requests', 'day', 100000)")
    database.execute("create table public.ends (id uuid)")
    database.execute(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin if exists (select from ai.generations g where g.id = new.generation_id"
        " and g.metadata ? 'poison') then raise exception 'no' using errcode = '22001'; end if; return new; end $$"
    )
    database.execute("create trigger refuse before insert on ai.leases for each row execute function public.refuse()")
    database.execute(
        "create function public.note_end() returns trigger language plpgsql as"
        " $$ begin insert into public.ends values (new.id); return null; end $$"
    )
    database.execute(
        "create trigger note_end after update on ai.generations for each row when (new.finished_at is not null)"
        " execute function public.note_end()"
    )
    for member in members:
        database.connect(user=member).execute(
            "insert into ai.generations (prompt, metadata) select 'question ' || n,"
            " case when n %% 7 = 0 then '{\"poison\": true}'::jsonb end from generate_series(1, 70) n",
            [],
        )

    def work(number: int, dice: random.Random) -> list[uuid.UUID]:
        worker = PlainWorker(database)
        ended: list[uuid.UUID] = []
        while True:
            try:
                claimed = worker.claim(dice.randrange(1, 20), look_at_everything=True)
                if not claimed and not worker.wait_ms:
                    return ended
            except psycopg.errors.StringDataRightTruncation:
                claimed = []
                for _ in range(dice.randrange(1, 20)):
                    one, header = worker.claim_one()
                    claimed += one
                    if header["faulty_id"]:
                        assert (header["faulty_state"], header["faulty_ended"]) == ("22001", True)
                        ended.append(header["faulty_id"])
            assert set(worker.settle(claimed).values()) <= {"ended"}

    ended = [one for share in at_once(4, work, dice) for one in share]
    guilty = {row["id"] for row in database.execute("select id from ai.generations where metadata ? 'poison'")}
    assert len(guilty) == 30
    assert Counter(ended) == Counter(guilty)
    ends = {row["id"]: row["n"] for row in database.execute("select id, count(*) as n from public.ends group by id")}
    assert (len(ends), set(ends.values())) == (210, {1})
    statuses = database.execute("select status, attempts, count(*) as n from ai.generations group by 1, 2 order by 1")
    assert [tuple(row.values()) for row in statuses] == [("failed", 0, 30), ("succeeded", 1, 180)]
    assert database.value("select count(*) from ai.queue") + database.value("select count(*) from ai.leases") == 0


def test_of_several_reports_of_the_same_attempt_one_counts(
    database: Database, member: Member, dice: random.Random
) -> None:
    ask(database, member, 50)
    worker = PlainWorker(database)
    claimed = worker.claim(100)
    assert len(claimed) == 50
    outcomes = ["succeeded", "failed", "cancelled"]
    twins = [PlainWorker(database) for _ in range(3)]
    for twin in twins:
        twin.id = worker.id

    def settle(number: int, dice: random.Random) -> Counter[tuple[Attempt, str]]:
        mine = dice.sample(claimed, len(claimed))
        found: Counter[tuple[Attempt, str]] = Counter()
        while mine:
            batch, mine = mine[:7], mine[7:]
            extra = {"signal": "http", "http_status": 400} if outcomes[number] == "failed" else {}
            found.update(twins[number].settle(batch, outcome=outcomes[number], **extra).items())
        return found

    results = sum(at_once(3, settle, dice), Counter())
    for attempt in claimed:
        assert results[attempt, "ended"] == 1
        assert results[attempt, "stale"] == 2
    assert database.value("select count(*) from ai.llm_calls") == 50
    # What the books say is what the generation says.
    same = (
        "select count(*) from ai.generations g join ai.llm_calls c on c.generation_id = g.id where c.status = g.status"
    )
    assert database.value(same) == 50


def test_a_worker_that_was_declared_dead_can_change_nothing(database: Database, member: Member) -> None:
    ask(database, member, 10)
    slow, quick = PlainWorker(database, "slow"), PlainWorker(database, "quick")
    mine = slow.claim(10)
    assert len(mine) == 10
    database.execute("update ai.workers set heartbeat_at = heartbeat_at - interval '1 hour' where id = %s", slow.id)
    assert quick.maintain()["rescued"] == 10
    database.execute("update ai.delayed set due_at = now()")
    again = quick.claim(10, look_at_everything=True)
    assert {one.generation_id for one in again} == {one.generation_id for one in mine}
    assert {one.attempt for one in again} == {2}

    assert slow.heartbeat() is False
    assert set(slow.settle(mine, output="too late").values()) == {"stale"}
    assert set(slow.publish(mine[0], "too late")) == {mine[0]}
    # Not even with the number of the attempt that runs now.
    assert set(slow.settle(again, output="too late").values()) == {"stale"}
    assert set(quick.settle(again, output="in time").values()) == {"ended"}
    assert set(slow.settle(again, output="too late").values()) == {"stale"}
    assert database.value("select count(*) from ai.generations where output = 'in time' and attempts = 2") == 10
    books = database.execute("select status, estimated, count(*) as n from ai.llm_calls group by 1, 2 order by 1")
    assert [(row["status"], row["n"]) for row in books] == [("abandoned", 10), ("succeeded", 10)]


def test_a_worker_cannot_report_on_an_older_attempt_of_its_own(database: Database, member: Member) -> None:
    database.execute("delete from ai.breaker_settings")  # ten failures at once would fence the model off
    ask(database, member, 10)
    worker = PlainWorker(database)
    first = worker.claim(10)
    assert len(first) == 10
    failed = worker.settle(first, outcome="failed", signal="http", http_status=503, output="")
    assert set(failed.values()) == {"requeued"}
    database.execute("update ai.delayed set due_at = now()")
    second = worker.claim(10, look_at_everything=True)
    assert {one.attempt for one in second} == {2}

    assert set(worker.settle(first, output="of the first attempt").values()) == {"stale"}
    assert worker.publish(first[0], "of the first attempt") == [first[0]]
    assert database.value("select count(*) from ai.leases") == 10
    assert set(worker.settle(second, output="of the second").values()) == {"ended"}
    assert database.value("select count(*) from ai.generations where output = 'of the second'") == 10
    assert database.value("select count(*) from ai.llm_calls") == 20


def test_a_rescue_and_a_settle_at_the_same_moment_do_not_both_count(
    database: Database, member: Member, dice: random.Random
) -> None:
    for round_number in range(15):
        ask(database, member, 20)
        slow = PlainWorker(database, f"slow {round_number}")
        rescuers = [PlainWorker(database, f"rescuer {round_number}.{n}") for n in range(2)]
        claimed = slow.claim(100, look_at_everything=True)
        database.execute("update ai.workers set heartbeat_at = heartbeat_at - interval '1 hour' where id = %s", slow.id)

        def run(number: int, dice: random.Random, slow=slow, rescuers=rescuers, claimed=claimed) -> dict[Attempt, str]:
            if number < 2:
                rescuers[number].maintain()
                return {}
            return slow.settle(dice.sample(claimed, len(claimed)))

        results = at_once(3, run, dice)[2]
        database.execute("update ai.delayed set due_at = now()")
        ended = {one.generation_id for one, result in results.items() if result == "ended"}
        again = rescuers[0].claim(100, look_at_everything=True)
        assert {one.generation_id for one in again} == {one.generation_id for one in claimed} - ended
        rescuers[0].settle(again)
    twice = database.execute(
        "select generation_id from ai.llm_calls where status = 'succeeded' group by 1 having count(*) <> 1"
    )
    assert twice == []
    assert database.value("select count(*) from ai.generations where status <> 'succeeded'") == 0


def test_two_that_settle_overlapping_batches_in_opposite_order_do_not_deadlock(
    database: Database, member: Member, dice: random.Random
) -> None:
    worker = PlainWorker(database)
    twins = [PlainWorker(database) for _ in range(4)]
    for twin in twins:
        twin.id = worker.id
    for _ in range(20):
        ask(database, member, 60)
        claimed = worker.claim(100, look_at_everything=True)
        results = at_once(4, lambda n, dice, c=claimed: twins[n].settle(dice.sample(c, len(c))), dice)
        assert Counter(result for one in results for result in one.values()) == {"ended": 60, "stale": 180}
