"""Vectors that lie in clusters, as those of texts do, loaded into collections of many tenants.

On vectors without clusters every approximate index fails, and none that an app has looks like that.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import Any

import psycopg
from databases import Database
from psycopg import sql

DIMENSIONS = 384
CENTRES = 400
# Two texts of one topic are about this similar: 1 / (1 + SPREAD²).
SPREAD = 0.65

_CENTRES = """
create table {schema}.centres as
select c.id,
       (select array_agg(random() * 2 - 1) from generate_series(1, %(dimensions)s) where c.id > 0)::vector as centre
  from generate_series(1, %(centres)s) c (id)
"""
# Whose rows follow each other in runs of 32, as batches of embeddings leave them.
_ITEMS = """
create table {schema}.items as
with tenants as (
  select n, tenant_id, size
    from unnest(%(tenants)s::uuid[], %(sizes)s::integer[]) with ordinality t (tenant_id, size, n)
), rows as (
  select t.*, i, md5(%(seed)s || ':' || t.n || ':' || i / 32) as run
    from tenants t cross join lateral generate_series(0, t.size - 1) i
)
select row_number() over (order by r.run, r.i) as id, r.tenant_id, r.n, r.i,
       c.centre + (select array_agg((random() * 2 - 1) * %(spread)s)
                     from generate_series(1, %(dimensions)s) where r.i >= 0)::vector as embedding
  from rows r
  join {schema}.centres c on c.id = 1 + (r.n * 7919 + (r.i * 31 %% 20) * 104729) %% %(centres)s
 order by r.run, r.i
"""
# Passages of about 300 tokens, of words, which compress as text does: what is beside a vector decides whether it is
# kept in its row.
_TEXTS = """
create table {schema}.sentences as
select s.id, string_agg(substr(md5(w::text), 1, 2 + w %% 9), ' ' order by md5(s.id || '-' || w)) || '.' as sentence
  from generate_series(0, 999) s (id) join generate_series(1, 200) w on (w * 37 + s.id * 11) %% 15 = 0 group by s.id
"""
_COLLECTIONS = """
insert into ai.collections (tenant_id, name, model, dimensions, chunks)
select tenant_id, 'docs', 'local/hash', %(dimensions)s, count(*) from {schema}.items group by tenant_id;
insert into ai.documents
  (tenant_id, collection_id, title, uri, content, metadata, hash, status, chunks, live_revision, user_id)
select c.tenant_id, c.id, 'Document ' || d.n, 'urn:doc:' || d.n, '-', jsonb_build_object('part', d.n %% 10), '\\x00',
       'ready', d.rows, 1, 'loader'
  from (select tenant_id, i / 32 as n, count(*) as rows from {schema}.items group by 1, 2) d
  join ai.collections c on c.tenant_id = d.tenant_id;
insert into ai.chunks
  (id, tenant_id, collection_id, document_id, revision, position, tokens, live, heading, content, tsv)
overriding system value
select i.id, i.tenant_id, c.id, d.id, 1, i.i + 1, 300, true, 'Heading',
       (select string_agg(s.sentence, ' ') from generate_series(1, 14) k
          join {schema}.sentences s on s.id = (i.id * 7 + k * 131 + k * k * i.i) %% 1000),
       array_to_tsvector(array[' ' || c.id, 'passag', i.i::text])
  from {schema}.items i
  join ai.collections c on c.tenant_id = i.tenant_id
  join ai.documents d on d.tenant_id = i.tenant_id and d.collection_id = c.id and d.uri = 'urn:doc:' || i.i / 32
 order by i.id;
insert into ai.chunk_vectors (tenant_id, collection_id, version, chunk_id, document_id, embedding)
select c.tenant_id, c.collection_id, 1, c.id, c.document_id, i.embedding
  from {schema}.items i join ai.chunks c on c.tenant_id = i.tenant_id and c.id = i.id order by i.id;
"""


@dataclass
class World:
    """What was loaded: a tenant is an id and a number of chunks."""

    database: Database
    tenants: list[str]
    sizes: list[int]
    schema: str = "raw"
    shape: str = ""

    def connect(self, tenant: int) -> psycopg.Connection[dict[str, Any]]:
        """As a member of the tenant."""
        return self.database.connect(user=self.database.member(uuid.UUID(self.tenants[tenant])))

    def queries(self, tenant: int, count: int, dice: random.Random) -> list[str]:
        """Vectors near to what the tenant has, but none of them."""
        rows = self.database.execute(
            f"""
            select (embedding + (select array_agg((random() * 2 - 1) * %s)
                                   from generate_series(1, %s) where i.id > 0)::vector)::text as q
              from (select id, embedding from {self.schema}.items where tenant_id = %s
                     order by md5(%s || id::text) limit %s) i
            """,
            SPREAD / 2,
            DIMENSIONS,
            self.tenants[tenant],
            str(dice.random()),
            count,
        )
        return [row["q"] for row in rows]

    def exact(self, tenant: int, query: str, count: int) -> list[int]:
        """The truth: no index, no policy, no function of Martlet's."""
        rows = self.database.execute(
            f"select id from {self.schema}.items where tenant_id = %s order by embedding <=> %s::vector limit %s",
            self.tenants[tenant],
            query,
            count,
        )
        return [row["id"] for row in rows]


def load(database: Database, sizes: list[int], dice: random.Random) -> World:
    """A collection of each size, each of a tenant of its own."""
    world = World(database, [str(database.tenant()) for _ in sizes], sizes)
    values: dict[str, Any] = {
        "dimensions": DIMENSIONS,
        "centres": CENTRES,
        "spread": SPREAD,
        "seed": str(dice.random()),
        "tenants": world.tenants,
        "sizes": sizes,
    }
    database.execute("create schema raw")
    connection = database.superuser
    connection.execute("select setseed(%s)", [dice.random()])
    for text in [_CENTRES, _ITEMS, _TEXTS, *_COLLECTIONS.split(";\n")]:
        if text.strip():
            connection.execute(sql.SQL(text).format(schema=sql.Identifier("raw")), values)
    database.execute("create index on raw.items (tenant_id)")
    database.execute("analyze")
    return world
