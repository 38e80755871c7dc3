-- migrate:up
-- What waits, what runs, and who runs it. Narrow tables, no app ever sees them.
--
-- Locks are taken in this order: queue or delayed, then lease, then generation; within one of them by generation id.

create table ai.lanes (
  id        bigint   not null generated always as identity constraint lanes_pkey primary key,
  tenant_id uuid     not null,
  priority  text     not null constraint lanes_priority check (priority in ('high', 'normal', 'low')),
  rank      smallint not null generated always as (case priority when 'high' then 1 when 'normal' then 2 else 3 end) stored,
  constraint lanes_key unique (tenant_id, priority)
);
comment on table ai.lanes is 'A tenant and a priority: what is fair to each other and in order within.';

-- Deliberately without a unique key: an insert under REPEATABLE READ that cannot see whether the lane is still listed
-- lists it again, and a key would make that insert fail. The claim takes each lane once.
create table ai.active_lanes (
  lane_id   bigint   not null,
  tenant_id uuid     not null,
  rank      smallint not null
);
create index active_lanes_lane on ai.active_lanes (lane_id);
comment on table ai.active_lanes is
  'Lanes that may have something queued. Inserts list a lane under a shared advisory lock, ai.worker_maintain() takes empty ones off under the exclusive one.';

create table ai.queue (
  lane_id       bigint   not null,
  generation_id uuid     not null,
  tenant_id     uuid     not null,
  attempts      smallint not null default 0,
  target        smallint not null default 1,
  constraint queue_pkey primary key (lane_id, generation_id)
);
comment on table ai.queue is 'What may be claimed now. Rows are inserted and deleted, never updated.';
comment on column ai.queue.attempts is 'Made so far.';
comment on column ai.queue.target is 'Which target of the route is next, from 1.';

create table ai.delayed (
  generation_id uuid        not null constraint delayed_pkey primary key,
  due_at        timestamptz not null,
  lane_id       bigint      not null,
  tenant_id     uuid        not null,
  attempts      smallint    not null default 0,
  target        smallint    not null default 1
);
create index delayed_due_at on ai.delayed (due_at);
create index delayed_retries on ai.delayed (attempts) where attempts > 0;
comment on table ai.delayed is 'What waits for its time: run_after, or the backoff before a retry (attempts > 0).';

create table ai.workers (
  id           uuid        not null default ai.uuid_v7() constraint workers_pkey primary key,
  name         text        not null,
  version      text        not null,
  protocol     integer     not null,
  channel      text        not null,
  started_at   timestamptz not null,
  heartbeat_at timestamptz not null,
  ended_at     timestamptz,
  ending       text        constraint workers_ending check (ending in ('stopped', 'dead')),
  constraint workers_end check ((ended_at is null) = (ending is null))
) with (fillfactor = 50);
comment on table ai.workers is 'Worker processes. Leases hang on heartbeat_at.';

create table ai.leases (
  generation_id       uuid        not null constraint leases_pkey primary key,
  attempt             smallint    not null,
  worker_id           uuid        not null,
  tenant_id           uuid        not null,
  user_id             text        not null,
  lane_id             bigint      not null,
  target              smallint    not null,
  model_id            bigint      not null,
  stream              boolean     not null,
  input_bytes         integer     not null,
  waiting_since       timestamptz not null,
  deadline_at         timestamptz not null,
  claimed_at          timestamptz not null
);
comment on table ai.leases is 'What runs: one worker''s claim on one attempt. The row is the fence.';
comment on column ai.leases.waiting_since is 'The insert, or run_after: where latencies are counted from.';

-- A table of its own, only inserted into: a mark in the lease would lock it until the app's transaction ends, and with it
-- every worker that settles a batch with this lease in it. Without a unique key for the same reason.
create table ai.cancellations (
  generation_id uuid        not null,
  tenant_id     uuid        not null,
  requested_at  timestamptz not null default now()
);
create index cancellations_generation on ai.cancellations (generation_id);
comment on table ai.cancellations is 'Generations that were running when their cancelling was asked for, until they have ended.';

create table ai.realtime_key (
  only_row boolean not null default true
                   constraint realtime_key_pkey primary key constraint realtime_key_only_row check (only_row),
  key      bytea   not null
);
insert into ai.realtime_key (key)
select sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
comment on table ai.realtime_key is 'Makes channel names unguessable. Nobody but definer functions reads it.';

create table ai.maintenance (
  only_row      boolean     not null default true
                            constraint maintenance_pkey primary key constraint maintenance_only_row check (only_row),
  partitions_at timestamptz not null default '-infinity',
  orphans_at    timestamptz not null default '-infinity'
);
insert into ai.maintenance default values;
comment on table ai.maintenance is 'When the dearer parts of ai.worker_maintain() last ran.';

alter table ai.maintenance    enable row level security;
alter table ai.lanes          enable row level security;
alter table ai.active_lanes   enable row level security;
alter table ai.queue          enable row level security;
alter table ai.delayed        enable row level security;
alter table ai.workers        enable row level security;
alter table ai.leases         enable row level security;
alter table ai.cancellations enable row level security;
alter table ai.realtime_key   enable row level security;
