-- migrate:up
-- Batches: many generations that are looked at, paused and cancelled as one.

create table ai.batches (
  tenant_id    uuid        not null constraint batches_tenant_fkey references ai.tenants (id),
  id           uuid        not null default ai.uuid_v7(),
  user_id      text        not null,
  name         text        not null constraint batches_name check (length(name) between 1 and 200),
  metadata     jsonb,
  created_at   timestamptz not null default now(),
  paused_at    timestamptz,
  cancelled_at timestamptz,
  constraint batches_pkey primary key (tenant_id, id)
);
-- Each claim looks which batches are stopped: mostly none.
create index batches_paused on ai.batches (id) where paused_at is not null;
create index batches_cancelled on ai.batches (cancelled_at) where cancelled_at is not null;
comment on table ai.batches is 'Many generations that are looked at, paused, resumed and cancelled as one: those with this batch_id.';
comment on column ai.batches.user_id is 'Who made it. Only this member, or who sees the whole tenant, may add to it, look at it or stop it.';
comment on column ai.batches.paused_at is 'Nothing of it is claimed; what runs goes on.';
comment on column ai.batches.cancelled_at is 'It is over: nothing can be added.';

alter table ai.batches enable row level security;

-- Lanes of a batch are found when it is stopped.
create index lanes_batch on ai.lanes (batch_id) where batch_id is not null;
