"""No wake-up is lost: a worker that polls never and only waits for notifications finds every row.

The worker here follows docs/worker-protocol.md without the safety poll, so that a lost wake-up is a row that stays.
After each round everything is quiet: nobody's later insert can hide that an earlier one was not announced.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from crowd import at_once
from databases import Database
from inserting import insert_somehow
from protocol import PlainWorker


class Sleeper:
    """A worker that sleeps whenever it finds nothing, on a connection of its own, and listens on a third."""

    def __init__(self, database: Database, dice: random.Random, keeps_the_lock: bool) -> None:
        self.worker, self.sleeping = PlainWorker(database), PlainWorker(database)
        self.listener = database.connect(user=database.worker)
        self.listener.execute("listen ai_work")
        self.dice, self.keeps_the_lock = dice, keeps_the_lock
        self.asleep = False
        self.worked = 0
        self.stopping = threading.Event()

    def _work(self, look_at_everything: bool) -> int:
        claimed = self.worker.claim(50, look_at_everything)
        self.worker.settle(claimed)
        self.worked += len(claimed)
        return len(claimed)

    def run(self) -> None:
        look_at_everything = True
        while not self.stopping.is_set():
            if self._work(look_at_everything):
                look_at_everything = False
                if self.asleep and not (self.keeps_the_lock and self.dice.random() < 0.8):
                    self.sleeping.wake()
                    self.asleep = False
                continue
            if not self.asleep:
                self.sleeping.sleep()
                self.asleep = True
                look_at_everything = True
                continue
            for _ in self.listener.notifies(timeout=600, stop_after=1):
                pass
            look_at_everything = True

    def stop(self, wake: Callable[[], None]) -> None:
        self.stopping.set()
        wake()


def no_wake_up_is_lost(database: Database, dice: random.Random, rounds: int, keeps_the_lock: bool) -> None:
    members = [database.member() for _ in range(4)]
    apps = [database.connect(user=member) for member in members]
    sleeper = Sleeper(database, dice, keeps_the_lock)
    thread = threading.Thread(target=sleeper.run, daemon=True)
    thread.start()
    queued = "select count(*) from ai.generations where finished_at is null"
    inserted = 0
    try:
        for number in range(rounds):
            busy = dice.randrange(1, 5)
            inserted += sum(at_once(busy, lambda n, dice: insert_somehow(apps[n], dice), dice))
            waited = threading.Event()
            for _ in range(1000):
                if database.value(queued) == 0:
                    break
                waited.wait(0.005)
            else:
                raise AssertionError(
                    f"round {number}: {database.value(queued)} rows wait and nobody was woken for them"
                )
    finally:
        sleeper.stop(lambda: database.execute("notify ai_work"))
        thread.join(10)
    assert not thread.is_alive()
    assert sleeper.worked == inserted > 0


def test_no_wake_up_is_lost_by_a_worker_that_keeps_the_lock_while_it_works(
    database: Database, dice: random.Random
) -> None:
    no_wake_up_is_lost(database, dice, rounds=250, keeps_the_lock=True)


def test_no_wake_up_is_lost_by_a_worker_that_lets_the_lock_go_whenever_it_works(
    database: Database, dice: random.Random
) -> None:
    no_wake_up_is_lost(database, dice, rounds=250, keeps_the_lock=False)


def test_inserts_notify_nobody_while_no_worker_sleeps(database: Database, dice: random.Random) -> None:
    app = database.connect(user=database.member())
    listener = database.connect(user=database.worker)
    listener.execute("listen ai_work")
    for _ in range(20):
        insert_somehow(app, dice)
    assert list(listener.notifies(timeout=0.2)) == []
    sleeper = PlainWorker(database)
    sleeper.sleep()
    app.execute("insert into ai.generations (prompt) select 'x' from generate_series(1, 1000)")
    assert len(list(listener.notifies(timeout=30, stop_after=1))) == 1, "one notification a transaction"
    assert list(listener.notifies(timeout=0.2)) == []
    sleeper.wake()
    app.execute("insert into ai.generations (prompt) values ('x')")
    assert list(listener.notifies(timeout=0.2)) == []


def test_falling_asleep_waits_for_the_inserts_in_flight(database: Database) -> None:
    app = database.connect(user=database.member(), autocommit=False)
    app.execute("insert into ai.generations (prompt) values ('in flight')")
    sleeper = PlainWorker(database)
    falls_asleep = threading.Thread(target=sleeper.sleep, daemon=True)
    falls_asleep.start()
    falls_asleep.join(0.3)
    assert falls_asleep.is_alive(), "it slept although an insert was in flight"
    app.commit()
    falls_asleep.join(10)
    assert not falls_asleep.is_alive()
    assert len(PlainWorker(database).claim(10, look_at_everything=True)) == 1


def test_who_waits_for_the_lock_is_told_whether_another_worker_has_it(database: Database) -> None:
    """Then every insert notifies them all, and they can rest; while only an insert is in flight they cannot."""
    first, second = PlainWorker(database), PlainWorker(database)
    sleep = "select ai.worker_sleep() as held"
    inserting = database.connect(user=database.member(), autocommit=False)
    inserting.execute("insert into ai.generations (prompt) values ('not yet committed')")
    assert first.connection.execute(sleep).fetchone() == {"held": False}
    inserting.commit()
    assert first.connection.execute(sleep).fetchone() == {"held": True}
    assert second.connection.execute(sleep).fetchone() == {"held": None}
    first.wake()
    assert second.connection.execute(sleep).fetchone() == {"held": True}
