-- migrate:up
-- The schema, who may do what in it (group roles), the record of migrations, the settings, and the two functions
-- that defaults of later tables need: time-ordered ids and the clock.

create schema if not exists ai;
comment on schema ai is 'Martlet: generations asked of language models, their answers, their cost.';

create table ai.migrations (
  version    text        not null constraint migrations_pkey primary key,
  name       text        not null,
  checksum   text        not null,
  door       text        not null constraint migrations_door check (door in ('martlet', 'bundle', 'extension')),
  applied_at timestamptz not null default now()
);
comment on table ai.migrations is
  'Which migrations are applied, by which door, with the SHA-256 of each file; version ''sql'' stands for the replaceable part.';

-- Roles belong to the cluster: another database may have made them already, perhaps at this very moment.
do $$
declare
  v_role text;
begin
  foreach v_role in array array['ai_user', 'ai_developer', 'ai_admin', 'ai_worker', 'ai_monitor'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception when duplicate_object or unique_violation then
        null;
      end;
    end if;
  end loop;
  -- A developer may do what a user may, an admin what a developer may.
  if not pg_has_role('ai_developer', 'ai_user', 'member') then
    begin
      grant ai_user to ai_developer;
    exception when unique_violation then null;
    end;
  end if;
  if not pg_has_role('ai_admin', 'ai_developer', 'member') then
    begin
      grant ai_developer to ai_admin;
    exception when unique_violation then null;
    end;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'authenticated')
     and not pg_has_role('authenticated', 'ai_user', 'member') then
    grant ai_user to authenticated;
  end if;
  if exists (select from pg_catalog.pg_roles where rolname = 'service_role')
     and not pg_has_role('service_role', 'ai_admin', 'member') then
    grant ai_admin to service_role;
  end if;
end
$$;

revoke all on schema ai from public;
grant usage on schema ai to ai_user, ai_worker, ai_monitor;
-- What a database's owner may have granted by default to everybody is taken back for this schema.
alter default privileges in schema ai revoke all on tables from public;

create extension if not exists vector;

do $$
declare
  v_version text := (select extversion from pg_catalog.pg_extension where extname = 'vector');
begin
  if string_to_array(v_version, '.')::int[] < array[0, 8, 3] then
    raise warning 'pgvector % is older than 0.8.3', v_version
      using hint = 'alter extension vector update; 0.8.2 and older have a security hole, 0.8.3 mends vacuuming of HNSW indexes.';
  end if;
end
$$;

-- A domain, so that functions with a fixed search_path can name the type wherever pgvector is installed.
do $$
begin
  execute format('create domain ai.embedding as %s',
    (select t.oid::regtype from pg_catalog.pg_type t
      join pg_catalog.pg_depend d on d.objid = t.oid and d.classid = 'pg_type'::regclass and d.deptype = 'e'
      join pg_catalog.pg_extension e on e.oid = d.refobjid and e.extname = 'vector'
     where t.typname = 'vector'));
end
$$;
comment on domain ai.embedding is 'A vector of pgvector, of any size.';

-- A UUID of version 7 (RFC 9562): 48 bits of milliseconds, 12 bits of the millisecond's fraction, 62 random bits.
-- PostgreSQL has its own from version 18 only.
create function ai.uuid_v7() returns uuid
language sql volatile parallel safe
return (
  left(overlay(lpad(to_hex((extract(epoch from clock_timestamp()) * 65536000)::bigint), 16, '0') placing '7' from 13 for 0), 16)
  || right(replace(gen_random_uuid()::text, '-', ''), 16)
)::uuid;
comment on function ai.uuid_v7() is 'A time-ordered UUID, version 7.';
-- Revoking by default privileges of a schema takes nothing from everybody, so each function says it. The default of a
-- column is evaluated with the rights of who inserts.
revoke execute on function ai.uuid_v7() from public;
grant execute on function ai.uuid_v7() to ai_user;

create table ai.settings (
  only_row           boolean  not null default true
                              constraint settings_pkey primary key constraint settings_only_row check (only_row),
  heartbeat_ms       integer  not null default 2000   constraint settings_heartbeat check (heartbeat_ms between 100 and 60000),
  lease_ms           integer  not null default 15000  constraint settings_lease check (lease_ms between 500 and 600000),
  maintain_ms        integer  not null default 5000   constraint settings_maintain check (maintain_ms between 100 and 600000),
  publish_ms         integer  not null default 30     constraint settings_publish check (publish_ms between 1 and 1000),
  max_attempts       smallint not null default 5      constraint settings_max_attempts check (max_attempts between 1 and 100),
  backoff_base_ms    integer  not null default 500    constraint settings_backoff_base check (backoff_base_ms between 1 and 600000),
  backoff_cap_ms     integer  not null default 30000  constraint settings_backoff_cap check (backoff_cap_ms between 1 and 3600000),
  retry_after_cap_ms integer  not null default 120000 constraint settings_retry_after_cap check (retry_after_cap_ms between 0 and 86400000),
  deadline_ms        integer  not null default 600000 constraint settings_deadline check (deadline_ms between 1 and 86400000),
  max_input_bytes    integer  not null default 4194304
                              constraint settings_max_input check (max_input_bytes between 1 and 67108864),
  default_profile    text     not null default 'medium',
  idempotency_days   integer  not null default 7      constraint settings_idempotency check (idempotency_days between 1 and 3650),
  constraint settings_heartbeat_within_lease check (heartbeat_ms * 2 <= lease_ms)
);
insert into ai.settings default values;

comment on table ai.settings is 'One row: how the queue, the workers and the limits of an input behave.';
comment on column ai.settings.heartbeat_ms is 'How often a worker says that it lives.';
comment on column ai.settings.lease_ms is 'After how long a silence its generations are rescued. At least twice heartbeat_ms.';
comment on column ai.settings.maintain_ms is 'How often a worker runs ai.worker_maintain().';
comment on column ai.settings.publish_ms is 'The shortest time between two publications of streamed text by one worker.';
comment on column ai.settings.max_attempts is 'Attempts a generation gets, over all targets of its route.';
comment on column ai.settings.backoff_base_ms is 'The first retry waits up to this, doubled by each further attempt.';
comment on column ai.settings.backoff_cap_ms is 'No backoff is longer. A Retry-After of the provider may be, up to retry_after_cap_ms.';
comment on column ai.settings.retry_after_cap_ms is 'A provider that asks for a longer wait is not waited for.';
comment on column ai.settings.deadline_ms is 'Time from run_after (or the insert) to the end of a generation that names none.';
comment on column ai.settings.max_input_bytes is 'Size of prompt, or messages as text, plus params (none: nothing) and metadata; one byte more is PT413.';
comment on column ai.settings.default_profile is 'Profile of a chat that names neither model nor profile.';
comment on column ai.settings.idempotency_days is 'How long an idempotency key is remembered.';

alter table ai.migrations enable row level security;
alter table ai.settings enable row level security;
