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

# What is left of Martlet's insert if a question is admitted and queued by as few statements as can be: a policy,
# a trigger that looks up who asks, one that looks up the lane and queues, a share of a lock. Nothing is checked.
_ASKED = """
create table floor_who (role_name text primary key, tenant_id uuid not null, user_id text not null);
create table floor_lanes (tenant_id uuid, model text, lane_id bigint, primary key (tenant_id, model));
create table floor_queue (lane_id bigint, generation_id uuid, tenant_id uuid, primary key (lane_id, generation_id));
create function floor_tenant() returns uuid language plpgsql stable security definer
  set search_path = pg_catalog, public as
  $$ begin return (select w.tenant_id from floor_who w where w.role_name = session_user); end $$;
create function floor_admit() returns trigger language plpgsql security definer set search_path = pg_catalog, public as
  $$ begin
    select w.tenant_id, w.user_id into new.tenant_id, new.user_id from floor_who w where w.role_name = session_user;
    return new;
  end $$;
create function floor_enqueue() returns trigger language plpgsql security definer
  set search_path = pg_catalog, public set plan_cache_mode = force_generic_plan as
  $$ begin
    insert into floor_queue
    select l.lane_id, i.id, i.tenant_id
      from inserted i join floor_lanes l on l.tenant_id = i.tenant_id and l.model = i.model;
    if not pg_try_advisory_xact_lock_shared(1634300099, 0) then perform pg_notify('floor', ''); end if;
    return null;
  end $$;
create table floor_asked (like floor_plain including defaults including constraints including storage)
  partition by range (id);
alter table floor_asked add primary key (tenant_id, id);
create table floor_asked_default partition of floor_asked default with (fillfactor = 50);
alter table floor_asked enable row level security;
create policy own on floor_asked for insert with check (tenant_id = (select floor_tenant()));
create trigger admit before insert on floor_asked for each row execute function floor_admit();
create trigger enqueue after insert on floor_asked referencing new table as inserted
  for each statement execute function floor_enqueue();
grant insert on floor_asked to public;
insert into floor_who select role_name, tenant_id, user_id from ai.role_bindings;
insert into floor_lanes select tenant_id, 'local/extract', 1 from ai.role_bindings on conflict do nothing;
"""


class Floors:
    """The floors of one database."""

    def __init__(self, setting: Setting, installed: Installation) -> None:
        self._setting, self._database, self._member = setting, installed.database, installed.member
        self._database.superuser.execute(_TABLES + _ASKED)

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

    def asked(self, clients: int, seconds: float) -> float:
        """Single-row transactions a second of a member into floor_asked."""
        insert = f"insert into floor_asked (model, prompt) values ('local/extract', '{PROMPT}');"
        return pgbench.transactions_a_second(self._member.url, self._setting.folder, insert, clients, seconds)

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
