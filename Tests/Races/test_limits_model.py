"""Reserving and settling against a model in Python: random limits, generations, ends and time, one step after another.

What the model says must happen: the verdict of each row, the balance of each counter and window, which lanes are
parked. The seed of a failing run is printed (MARTLET_SEED).
"""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from databases import Database

PERIODS = ["second", "minute", "hour", "day", "week", "month"]
METRICS = ["requests", "tokens", "cost", "concurrency", "credit"]
# A million input tokens cost at most 6, a million output tokens at most 20.
RATES = '{"input": 3, "cache_write_1h": 6, "output": 15, "reasoning": 20}'
START = datetime(2026, 12, 31, 23, 59, 58, tzinfo=UTC)


def window(period: str | None, at: datetime) -> tuple[datetime | None, datetime | None]:
    """Begin and end of the window that a moment lies in."""
    if period is None:
        return None, None
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "month":
        first = day.replace(day=1)
        return first, (first + timedelta(days=32)).replace(day=1)
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[period]
    begin = day + timedelta(seconds=(at - day) // timedelta(seconds=seconds) * seconds)
    return begin, begin + timedelta(seconds=seconds)


@dataclass
class Rule:
    """A row of ai.limits."""

    id: int
    per: str
    user: str | None
    model: str | None
    metric: str
    period: str | None
    amount: Decimal
    soft: bool
    on_limit: str

    def concerns(self, user: str, model: str) -> bool:
        return self.user in (None, user) and self.model in (None, model)


@dataclass
class Running:
    """A reservation as a lease keeps it, with the rules it is on."""

    counters: list[int]
    amounts: list[Decimal]
    claimed_at: datetime
    rules: list[tuple[Rule, str]]


@dataclass
class Model:
    """What the counters should say."""

    rules: list[Rule]
    credit: Decimal
    now: datetime = START
    balances: dict[tuple[int, str, datetime | None], Decimal] = field(default_factory=dict)
    late: dict[tuple[int, str, datetime | None], Decimal] = field(default_factory=dict)
    parked: dict[tuple[str, str], set[tuple[int, str]]] = field(default_factory=dict)

    def counters(self, user: str, model: str) -> list[tuple[Rule, str]]:
        return [(r, user if r.per == "member" else "") for r in self.rules if r.concerns(user, model)]

    def key(self, rule: Rule, subject: str, at: datetime) -> tuple[int, str, datetime | None]:
        return rule.id, subject, window(rule.period, at)[0]

    def fold(self, counters: set[tuple[int, str]]) -> set[tuple[int, str]]:
        """Whoever holds counters writes down what was settled without holding them; gives those that have more room."""
        freed = set()
        for key in [key for key in self.late if key[:2] in counters]:
            delta = self.late.pop(key)
            self.balances[key] = self.balances.get(key, Decimal(0)) + delta
            if delta < 0:
                freed.add(key[:2])
        return freed

    def reserve(self, rows: list[dict[str, Any]], order: dict[tuple[int, str], int]) -> list[tuple[str, str | None]]:
        """The verdicts and error codes of a batch, in order; `order` has the ids of counters."""
        self.fold({(r.id, s) for row in rows for r, s in self.counters(row["user"], row["model"])})
        verdicts: list[tuple[str, str | None]] = []
        waiting: set[tuple[str, str]] = set()
        for row in rows:
            lane = row["user"], row["model"]
            if lane in waiting:
                verdicts.append(("wait", None))
                continue
            needs = []
            verdict, code, worst = "go", None, None
            for rule, subject in sorted(self.counters(*lane), key=lambda c: order[c[0].id, c[1]]):
                need = self.need(rule, row)
                needs.append((rule, subject, need))
                used = self.balances.get(self.key(rule, subject, self.now), Decimal(0))
                bound = rule.amount + (self.credit if rule.metric == "credit" else 0)
                if rule.soft or need == 0 or used + need <= bound:
                    continue
                if rule.on_limit == "reject" or (need > bound and rule.metric != "credit"):
                    verdict, code = "reject", "PT402" if rule.metric in ("cost", "credit") else "PT429"
                    break
                until = window(rule.period, self.now)[1] or datetime.max.replace(tzinfo=UTC)
                if worst is None or until > worst[0]:
                    verdict, worst = "wait", (until, rule, subject)
            if verdict == "go":
                row["needs"] = needs
                for rule, subject, need in needs:
                    key = self.key(rule, subject, self.now)
                    self.balances[key] = self.balances.get(key, Decimal(0)) + need
            elif verdict == "wait" and worst:
                waiting.add(lane)
                self.parked.setdefault(lane, set()).add((worst[1].id, worst[2]))
            verdicts.append((verdict, code))
        return verdicts

    @staticmethod
    def need(rule: Rule, row: dict[str, Any]) -> Decimal:
        if rule.metric == "requests":
            return Decimal(row["first"])
        if row["follows"]:
            return Decimal(0)
        if rule.metric == "tokens":
            return Decimal(row["input"] + row["output"])
        if rule.metric == "concurrency":
            return Decimal(1)
        return (Decimal(6 * row["input"]) + Decimal(20 * row["output"])) / 1_000_000

    def settle(self, done: list[tuple[Running, dict[str, Any]]], later: bool) -> None:
        changes: dict[tuple[int, str, datetime | None], Decimal] = {}
        for running, end in done:
            for (rule, subject), amount in zip(running.rules, running.amounts, strict=True):
                delta = {
                    "requests": -amount if not end["sent"] and end["ended"] else Decimal(0),
                    "concurrency": -amount,
                    "tokens": (end["tokens"] or 0) - amount,
                }.get(rule.metric, Decimal(end["cost"] or 0) - amount)
                key = self.key(rule, subject, running.claimed_at)
                changes[key] = changes.get(key, Decimal(0)) + delta
        if later:
            for key, delta in changes.items():
                if delta:
                    self.late[key] = self.late.get(key, Decimal(0)) + delta
            return
        # Held are counters that change, in any window; whoever holds one writes what was left on it by others, too.
        # More room have those on which more was given back than used.
        held = {key[:2] for key, delta in changes.items() if delta}
        for key in [key for key in self.late if key[:2] in held]:
            changes[key] = changes.get(key, Decimal(0)) + self.late.pop(key)
        for key, delta in changes.items():
            self.balances[key] = self.balances.get(key, Decimal(0)) + delta
        freed = {key[:2] for key, delta in changes.items() if delta < 0}
        self.parked = {lane: counters for lane, counters in self.parked.items() if not counters & freed}


class Subject:
    """The functions of the database, in one transaction whose clock the test moves."""

    def __init__(self, database: Database) -> None:
        self.tenant = database.tenant()
        provider = database.provider("p", "http://p.test")
        self.models = {name: database.model(provider, name, rates=RATES) for name in ("p/a", "p/b")}
        self.connection = database.connect(autocommit=False)
        # Rolled back with everything else: the role that may move the clock belongs to the whole server.
        self.connection.execute("create role ai_tester")
        self.connection.execute("set constraints all immediate")

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return self.connection.execute(query, arguments or None).fetchall()

    def at(self, query: str, now: datetime, *arguments: Any) -> list[dict[str, Any]]:
        """Runs a statement in which it is `now`: the offset is measured in the statement that uses it."""
        return self.rows(
            "with clock as materialized"
            " (select set_config('ai.clock_offset', (%s - statement_timestamp())::text, true))"
            f" {query}",
            now,
            *arguments,
        )

    def lane(self, user: str, model: str) -> int:
        self.rows("select ai.make_counters(%s, %s, 'chat', %s, null)", self.tenant, user, model)
        self.rows(
            "insert into ai.lanes (tenant_id, priority, counters)"
            " select %s, 'normal', ai.generation_counters(%s, %s, 'chat', %s, null)"
            " on conflict do nothing returning id",
            self.tenant,
            self.tenant,
            user,
            model,
        )
        return self.rows(
            "select id from ai.lanes where tenant_id = %s and priority = 'normal' and batch_id is null"
            " and counters = ai.generation_counters(%s, %s, 'chat', %s, null)",
            self.tenant,
            self.tenant,
            user,
            model,
        )[0]["id"]

    def reserve(
        self, now: datetime, rows: list[dict[str, Any]], lanes: dict[tuple[str, str], int]
    ) -> list[dict[str, Any]]:
        return self.at(
            ", moved as materialized (select count(*) from clock)"
            " select u.verdict, u.counters::bigint[], u.amounts::numeric[], u.error"
            " from moved, lateral ai.reserve_limits(%s, %s, %s, %s, %s, %s, %s, '{}', %s) r,"
            " lateral unnest(r.verdicts, r.counters, r.amounts, r.errors) u (verdict, counters, amounts, error)",
            now,
            [uuid.uuid4() for _ in rows],
            [self.tenant for _ in rows],
            [lanes[row["user"], row["model"]] for row in rows],
            [self.models[row["model"]] for row in rows],
            [row["input"] for row in rows],
            [row["output"] for row in rows],
            [0 if row["first"] else 1 for row in rows],
            [uuid.uuid4() if row["follows"] else None for row in rows],
        )


def some_rule(dice: random.Random, number: int) -> dict[str, Any]:
    metric = dice.choice(METRICS)
    credit = metric == "credit"
    amounts = {
        "requests": [0, 1, 3, 10, 40],
        "tokens": [0, 100, 1000, 10000],
        "cost": ["0", "0.001", "0.01", "0.1"],
        "concurrency": [0, 1, 2, 5],
        "credit": ["0", "0.005"],
    }
    return {
        "per": "tenant" if credit else dice.choice(["tenant", "member"]),
        "user_id": None if credit else dice.choice([None, None, "ann"]),
        "model": None if credit else dice.choice([None, None, "p/a"]),
        "metric": metric,
        "period": None if metric in ("concurrency", "credit") else dice.choice(PERIODS),
        "amount": Decimal(dice.choice(amounts[metric])),
        "soft": dice.random() < 0.15,
        "on_limit": dice.choice(["wait", "wait", "reject"]),
    }


@pytest.mark.parametrize("walk", range(6))
def test_reserving_and_settling_do_what_the_model_says(database: Database, dice: random.Random, walk: int) -> None:
    subject = Subject(database)
    rules = []
    for number in range(dice.randrange(1, 7)):
        columns = some_rule(dice, number)
        [row] = subject.rows(
            "insert into ai.limits (tenant_id, per, user_id, model, metric, period, amount, soft, on_limit)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s) returning id",
            dice.choice([None, subject.tenant]),
            *columns.values(),
        )
        columns["user"] = columns.pop("user_id")
        rules.append(Rule(id=row["id"], **columns))
    credit = Decimal(dice.choice(["0", "0.01", "0.05"]))
    if credit:
        subject.rows("insert into ai.credits (tenant_id, amount) values (%s, %s) returning id", subject.tenant, credit)
    model = Model(rules, credit)
    users, names = ["ann", "abe", "eve"], ["p/a", "p/b"]
    lanes = {(user, name): subject.lane(user, name) for user in users for name in names}
    # Lanes with the same counters are one lane; the model tells them apart by who and what, so they are made one.
    same: dict[int, tuple[str, str]] = {}
    one = {key: same.setdefault(lane, key) for key, lane in lanes.items()}
    counters = {
        (row["limit_id"], row["subject"]): row["id"] for row in subject.rows("select * from ai.counters order by id")
    }
    running: list[Running] = []

    for _ in range(60):
        what = dice.random()
        if what < 0.5:
            rows = []
            for _ in range(dice.choice([1, 2, 5, 12])):
                user, name = one[dice.choice(users), dice.choice(names)]
                rows.append(
                    {
                        "user": user,
                        "model": name,
                        "input": dice.choice([0, 1, 50, 700]),
                        "output": dice.choice([0, 10, 100, 800]),
                        "first": dice.random() < 0.8,
                        "follows": dice.random() < 0.1,
                    }
                )
            expected = model.reserve(rows, counters)
            found = subject.reserve(model.now, rows, lanes)
            assert [(row["verdict"], (row["error"] or {}).get("code")) for row in found] == expected
            for row, given in zip(rows, found, strict=True):
                if given["verdict"] == "go" and given["counters"]:
                    assert given["counters"] == [counters[r.id, s] for r, s, _ in row["needs"]]
                    assert given["amounts"] == [need for _, _, need in row["needs"]]
                    running.append(
                        Running(given["counters"], given["amounts"], model.now, [(r, s) for r, s, _ in row["needs"]])
                    )
        elif what < 0.85 and running:
            dice.shuffle(running)
            count = dice.randrange(1, len(running) + 1)
            batch, running = running[:count], running[count:]
            ends = [
                {
                    "tokens": dice.choice([None, 0, 5, 300, 5000]),
                    "cost": dice.choice([None, "0", "0.000123456789", "0.004", "0.5"]),
                    "sent": dice.random() < 0.7,
                    "ended": dice.random() < 0.7,
                }
                for _ in batch
            ]
            done = [
                {
                    "counters": one_running.counters,
                    "amounts": [str(a) for a in one_running.amounts],
                    "claimed_at": one_running.claimed_at.isoformat(),
                    **end,
                }
                for one_running, end in zip(batch, ends, strict=True)
            ]
            later = dice.random() < 0.3
            before = len(model.parked)
            model.settle(list(zip(batch, ends, strict=True)), later)
            [answer] = subject.rows(f"select ai.settle_{'later' if later else 'limits'}(%s) as woken", json.dumps(done))
            if not later:
                assert answer["woken"] == (len(model.parked) < before)
        elif what < 0.95:
            model.now += timedelta(seconds=dice.choice([0.001, 0.5, 1, 30, 61, 3601, 86400, 2678400]))
        else:
            rule = dice.choice(rules)
            rule.amount = Decimal(dice.choice(["0", "0.02", "1", "5", "1000", "100000"]))
            rule.on_limit = dice.choice(["wait", "reject"])
            rule.soft = dice.random() < 0.2
            subject.rows(
                "update ai.limits set amount = %s, on_limit = %s, soft = %s where id = %s returning id",
                rule.amount,
                rule.on_limit,
                rule.soft,
                rule.id,
            )
            model.parked = {}  # whoever waits is looked at again

        parked = {row["lane_id"] for row in subject.rows("select lane_id from ai.parked_lanes")}
        assert parked == {lanes[lane] for lane in model.parked}
        balances = {
            (row["limit_id"], row["subject"], row["window"]): row["balance"]
            for row in subject.rows(
                "select distinct on (c.id, e.window_start) c.limit_id, c.subject, e.balance,"
                " nullif(e.window_start, '-infinity') as window"
                " from ai.counter_entries e join ai.counters c on c.id = e.counter_id"
                " order by c.id, e.window_start, e.seq desc"
            )
        }
        assert {k: v for k, v in balances.items() if v} == {k: v for k, v in model.balances.items() if v}

    # All end: what is left is what was used, and nothing runs.
    model.settle(
        [(one_running, {"tokens": 0, "cost": None, "sent": True, "ended": True}) for one_running in running], False
    )
    if running:
        subject.rows(
            "select ai.settle_limits(%s)",
            json.dumps(
                [
                    {
                        "counters": r.counters,
                        "amounts": [str(a) for a in r.amounts],
                        "claimed_at": r.claimed_at.isoformat(),
                        "sent": True,
                        "ended": True,
                    }
                    for r in running
                ]
            ),
        )
    model.fold(set(counters))
    subject.rows("select ai.prune_counters('-infinity')")
    for rule in rules:
        if rule.metric == "concurrency":
            assert all(v == 0 for key, v in model.balances.items() if key[0] == rule.id)
    subject.connection.rollback()
