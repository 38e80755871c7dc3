"""Hand-written, minimal SQL on the same server: what nobody who keeps rows in PostgreSQL can do better."""

from __future__ import annotations

from Benchmarks import pgbench
from Benchmarks.installation import Installation
from Benchmarks.setting import Setting

PROMPT = "What is a swift? " * 12

# The table of Martlet's shape and keys, without its triggers, policies, partitions and queue.
_TABLES = """
create table floor_plain (like ai.generations including defaults including constraints including storage)
  with (fillfactor = 50);
alter table floor_plain add primary key (tenant_id, id);
create table floor_notified (like floor_plain including all) with (fillfactor = 50);
create function floor_notify() returns trigger language plpgsql as
  $$ begin perform pg_notify('floor', ''); return null; end $$;
create trigger floor_notify after insert on floor_notified for each statement execute function floor_notify();

create table floor_jobs (
  id bigint generated always as identity primary key, payload text not null, state smallint not null default 0,
  output text
) with (fillfactor = 50);
create index floor_jobs_queued on floor_jobs (id) where state = 0;
"""


class Floors:
    """The floors of one database."""

    def __init__(self, setting: Setting, installed: Installation) -> None:
        self._setting, self._database = setting, installed.database
        self._database.superuser.execute(_TABLES)

    def _insert(self, table: str) -> str:
        tenant = "00000000-0000-7000-8000-000000000000"
        return (
            f"insert into {table} (tenant_id, user_id, model, prompt)"
            f" values ('{tenant}', 'bench', 'local/extract', '{PROMPT}');"
        )

    def inserts(self, table: str, clients: int, seconds: float) -> float:
        """Single-row transactions a second into floor_plain or floor_notified."""
        return pgbench.transactions_a_second(
            self._database.url, self._setting.folder, self._insert(table), clients, seconds
        )

    def enqueue(self, rows: int) -> None:
        self._database.execute("truncate floor_jobs")
        self._database.execute("insert into floor_jobs (payload) select %s from generate_series(1, %s)", PROMPT, rows)

    def drain(self, rows: int, batch: int = 100) -> float:
        """Jobs a second through claim and completion, two transactions a batch, one client."""
        self.enqueue(rows)
        script = f"""
with claimed as (
  update floor_jobs set state = 1
   where id = any (array(select id from floor_jobs where state = 0 order by id limit {batch} for update skip locked))
  returning id
) select array_agg(id) as ids from claimed \\gset
update floor_jobs set state = 2, output = 'done' where id = any (':ids'::bigint[]);
"""
        batches = rows // batch
        return batch * pgbench.transactions_a_second(
            self._database.url, self._setting.folder, script, clients=1, each=batches
        )
