"""What claims note of questions is true at every commit, whoever changes models, providers and limits meanwhile."""

from __future__ import annotations

import random
import threading
from collections import Counter

import psycopg
import waiting
from crowd import at_once, commits_some
from databases import Database
from protocol import PlainWorker

MODELS = ["race/one", "race/two"]

# In one snapshot: what is valid, beside what there is to be found without it.
WRONG = """
select w.tenant_id, w.user_id, w.model, l.counters, f.counters as found_counters, w.model_id, f.model_id as found_model
  from ai.known_ways w
  join (select sum(c.changes) as version from ai.policy_changes c) v on v.version = w.version
  join ai.lanes l on l.id = w.lane_id
 cross join lateral (
   select ai.generation_counters(w.tenant_id, coalesce(nullif(w.user_id, ''), 'any'), w.kind, w.model, null)
            as counters,
          ai.target_model(w.tenant_id, w.kind, w.model, null, 1) as model_id) f
 where l.counters is distinct from f.counters or w.model_id is distinct from f.model_id
    or w.limited is distinct from (l.counters <> '{}') or l.tenant_id <> w.tenant_id or l.priority <> w.priority
"""
VALID = "select count(*) from ai.known_ways w where w.version = (select sum(c.changes) from ai.policy_changes c)"


def test_what_is_noted_is_what_would_be_found(database: Database, dice: random.Random) -> None:
    members = [database.member() for _ in range(2)]
    members += [database.member(member.tenant_id) for member in members]
    provider = database.provider("race", "http://127.0.0.1:1")
    for name in MODELS:
        database.model(provider, name)
    own = database.provider("race-own", "http://127.0.0.1:1")
    over = threading.Event()
    finished, rounds = Counter[int](), Counter[object]()

    def change(connection: psycopg.Connection, dice: random.Random) -> None:
        tenant = dice.choice([*[member.tenant_id for member in members], None])
        match dice.randrange(6):
            case 0:
                connection.execute("update ai.models set enabled = not enabled where name = %s", [dice.choice(MODELS)])
            case 1:
                connection.execute("update ai.providers set enabled = not enabled where id = %s", [own])
            case 2:
                query = (
                    "insert into ai.models (tenant_id, provider_id, name, wire_name, kind)"
                    " values (%s, %s, %s, 'own', 'chat') on conflict do nothing"
                )
                connection.execute(query, [tenant or members[0].tenant_id, own, dice.choice(MODELS)])
            case 3:
                connection.execute("delete from ai.models where provider_id = %s and tenant_id is not null", [own])
            case 4:
                query = (
                    "insert into ai.limits (tenant_id, per, metric, period, amount)"
                    " values (%s, %s, 'requests', 'day', 1000000)"
                )
                connection.execute(query, [tenant, dice.choice(["tenant", "member"])])
            case _:
                connection.execute("update ai.limits set enabled = not enabled where id %% 3 = %s", [dice.randrange(3)])

    def decide(dice: random.Random) -> int:
        connection, done = database.connect(autocommit=False), 0
        connection.execute("set deadlock_timeout = '20ms'")
        connection.commit()
        for _ in range(60):
            if dice.random() < 0.5:  # so that something is noted between two changes
                then = rounds.total() + 6
                waiting.until(lambda then=then: rounds.total() >= then or over.is_set(), "claims", every=0.001)
            done += commits_some(connection, change, dice)
        return done

    def ask(dice: random.Random) -> int:
        connections, asked = [database.connect(user=member) for member in members], 0
        while not over.is_set():
            try:
                dice.choice(connections).execute(
                    "insert into ai.generations (model, prompt) values (%s, 'x')", [dice.choice(MODELS)]
                )
                asked += 1
            except psycopg.Error as error:
                if error.sqlstate != "PT404":
                    raise
        return asked

    def answer(dice: random.Random) -> int:
        worker, seen = PlainWorker(database), 0
        while not over.is_set():
            if dice.random() < 0.1:
                worker.maintain()
            worker.settle(worker.claim(dice.randrange(1, 20), look_at_everything=dice.random() < 0.5))
            seen += database.value(VALID)
            assert database.execute(WRONG) == []
            rounds[worker.id] += 1
        return seen

    def run(number: int, dice: random.Random) -> tuple[int, int, int]:
        if number < 2:
            try:
                return decide(dice), 0, 0
            finally:
                finished[number] += 1
                if len(finished) == 2:
                    over.set()
        if number < 4:
            return 0, ask(dice), 0
        try:
            return 0, 0, answer(dice)
        finally:
            over.set()

    done, asked, seen = (sum(share) for share in zip(*at_once(6, run, dice), strict=True))
    assert done > 40, "hardly any change went through"
    assert asked > 50, "hardly anything was asked"
    assert seen > 0, "nothing was ever known"
    assert database.execute(WRONG) == []
