"""What searches find of what an exact search would, as members of 100 tenants, and how fast beside hand-written SQL.

The CI loads a fifth of the rows. `MARTLET_FULL=1 scripts/with-server 18 scripts/test-python Tests/Retrieval -s` loads
50,000 and prints the speeds; nothing depends on a time. MARTLET_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import databases
import psycopg
import pytest
from clustered import DIMENSIONS, World, load

FULL = os.environ.get("MARTLET_FULL") == "1"
TENANTS = 100
MATCH = "select * from ai.match_documents(%s::vector, %s, %s, 'docs')"


def sizes(shape: str) -> list[int]:
    """50,000 chunks (in CI 10,000) among 100 tenants: all the same, or the n-th a n-th of the first."""
    total = 50_000 if FULL else 10_000
    if shape == "even":
        return [total // TENANTS] * TENANTS
    first = total / sum(1 / n for n in range(1, TENANTS + 1))
    return [max(1, round(first / n)) for n in range(1, TENANTS + 1)]


@pytest.fixture(scope="module", params=["even", "skewed"])
def world(server: str, template: str, request: pytest.FixtureRequest) -> Iterator[World]:
    seed = int(os.environ.get("MARTLET_SEED", random.SystemRandom().randrange(2**32)))
    print(f"MARTLET_SEED={seed}")
    with databases.temporary(server, template) as database:
        world = load(database, sizes(request.param), random.Random(seed))
        world.shape = request.param
        if not FULL:
            # So that some have an index here as well.
            database.execute("update ai.settings set exact_search_size = %s", 700 * DIMENSIONS)
        while database.value("select ai.make_search_indexes(now(), null)"):
            pass
        yield world


def chosen(shape: str) -> list[int]:
    return [0, 1, 2, 3, 5, 10, 50, 99] if shape == "skewed" else [0, 33, 66, 99]


def test_members_find_what_an_exact_search_finds(world: World, dice: random.Random) -> None:
    kinds = set()
    for number in chosen(world.shape):
        connection = world.connect(number)
        status = connection.execute("select search, chunks from ai.collection_status('docs')").fetchone()
        assert status is not None
        assert status["chunks"] == world.sizes[number], "a member sees the own collection, and that only"
        found = wanted = 0
        for query in world.queries(number, 40, dice):
            rows = connection.execute(MATCH, [query, None, 10]).fetchall()
            exact = world.exact(number, query, 10)
            assert len(rows) == min(10, world.sizes[number])
            found += len({row["id"] for row in rows} & set(exact))
            wanted += len(exact)
        recall = found / wanted
        print(f"{world.shape}, {world.sizes[number]} chunks, {status['search']}: recall@10 {recall:.4f} of {wanted}")
        assert recall >= (0.99 if status["search"] == "index" else 1)
        own = connection.execute("select * from ai.recall_check('docs', 20, 10)").fetchone()
        assert own is not None
        assert own["recall"] >= 0.99
        kinds.add(status["search"])
    assert kinds == ({"exact", "index"} if world.shape == "skewed" else {"exact"})


def test_a_filter_and_a_threshold_find_what_they_leave(world: World, dice: random.Random) -> None:
    missed = expected = 0
    for number in (0, 50):
        connection = world.connect(number)
        tenant = world.tenants[number]
        for query in world.queries(number, 10, dice):
            rows = connection.execute(
                "select id from ai.match_documents(%s::vector, null, 10, 'docs', '{\"part\": 3}')", [query]
            ).fetchall()
            wanted = world.database.execute(
                "select id from raw.items where tenant_id = %s and (i / 32) %% 10 = 3"
                " order by embedding <=> %s::vector limit 10",
                tenant,
                query,
            )
            assert {row["id"] for row in rows} == {row["id"] for row in wanted}
            near = connection.execute(MATCH, [query, 0.75, 100]).fetchall()
            wanted = world.database.execute(
                "select id from raw.items where tenant_id = %s and 1 - (embedding <=> %s::vector) >= 0.75"
                " order by embedding <=> %s::vector limit 100",
                tenant,
                query,
                query,
            )
            missed += len({row["id"] for row in wanted} - {row["id"] for row in near})
            expected += len(wanted)
            assert all(row["similarity"] >= 0.75 for row in near)
    assert expected > 0
    assert missed <= expected / 100


def milliseconds(
    connection: psycopg.Connection[Any], statements: dict[str, str], queries: list[str]
) -> dict[str, float]:
    """The median of each prepared statement, all of them in turn, so that they share what else the machine does."""
    times: dict[str, list[float]] = {name: [] for name in statements}
    for turn in range(6 if FULL else 2):
        for query in queries:
            for name, text in statements.items():
                began = time.perf_counter()
                connection.execute(text, {"q": query}, prepare=True).fetchall()
                if turn:
                    times[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


HAND_WRITTEN = """
create schema hand;
create table hand.flat as
  select i.id, i.tenant_id, d.title, d.uri, c.heading, c.content, d.metadata, i.embedding
    from raw.items i join ai.chunks c on c.tenant_id = i.tenant_id and c.id = i.id
    join ai.documents d on d.tenant_id = c.tenant_id and d.id = c.document_id order by i.id;
create table hand.texts as select id, tenant_id, title, uri, heading, content, metadata from hand.flat order by id;
create table hand.vectors as select tenant_id, id, embedding from hand.flat order by id;
alter table hand.flat add primary key (tenant_id, id);
alter table hand.texts add primary key (tenant_id, id);
alter table hand.vectors add primary key (tenant_id, id);
alter table hand.flat enable row level security;
alter table hand.texts enable row level security;
alter table hand.vectors enable row level security;
create policy own on hand.flat for select to ai_user using (tenant_id = (select ai.tenant_id()));
create policy own on hand.texts for select to ai_user using (tenant_id = (select ai.tenant_id()));
create policy own on hand.vectors for select to ai_user using (tenant_id = (select ai.tenant_id()));
grant usage on schema hand to ai_user;
grant select on all tables in schema hand to ai_user;
vacuum analyze;
"""
FLAT = """select * from (
  select id, title, uri, heading, content, metadata, 1 - (embedding <=> %(q)s::vector) as similarity
  from hand.flat order by embedding <=> %(q)s::vector limit 10) n where similarity >= 0.5"""
SPLIT = """select t.id, t.title, t.uri, t.heading, t.content, t.metadata, 1 - n.distance as similarity
  from (select tenant_id, id, embedding <=> %(q)s::vector as distance from hand.vectors order by 3 limit 10) n
  join hand.texts t on t.tenant_id = n.tenant_id and t.id = n.id where 1 - n.distance >= 0.5 order by n.distance"""


def test_searches_are_compared_with_the_best_that_can_be_written_by_hand(
    world: World, dice: random.Random, record_property: Callable[[str, object], None]
) -> None:
    for statement in HAND_WRITTEN.split(";\n"):
        if statement.strip():
            world.database.execute(statement)
    statements = {
        "ai.match_documents": "select * from ai.match_documents(%(q)s::vector, 0.5, 10, 'docs')",
        "by hand, one table": FLAT,
        "by hand, vectors apart": SPLIT,
        "select 1": "select 1 where %(q)s <> ''",
    }
    ratios = []
    for number in chosen(world.shape):
        connection = world.connect(number)
        connection.execute("set enable_seqscan = off")  # for the hand-written ones
        queries = world.queries(number, 40 if FULL else 10, dice)
        status = connection.execute("select search from ai.collection_status('docs')").fetchone()
        exact = status is not None and status["search"] == "exact"
        for query in queries[:10]:
            ours, theirs = (
                [row["id"] for row in connection.execute(statements[name], {"q": query}).fetchall()]
                for name in ("ai.match_documents", "by hand, vectors apart")
            )
            if exact:
                assert ours == theirs, "both find the same"
        times = milliseconds(connection, statements, queries)
        best = min(times["by hand, one table"], times["by hand, vectors apart"])
        ratios.append(best / times["ai.match_documents"])
        print(f"{world.sizes[number]} chunks: " + ", ".join(f"{name} {value:.3f} ms" for name, value in times.items()))
    print(f"speed of the best by hand reached: {', '.join(f'{ratio:.0%}' for ratio in ratios)}")
    record_property("speed", ratios)
