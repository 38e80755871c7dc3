-- migrate:up
-- What a question comes to, as a claim found it: one probe, of an insert and of a claim, in the place of limits, counters, lanes, models and providers.

-- Only added to, by everybody who changes something, so that nobody waits for another; maintenance adds up what is there.
create table ai.policy_changes (
  id      bigint not null generated always as identity constraint policy_changes_pkey primary key,
  changes bigint not null default 1
);
insert into ai.policy_changes default values;
comment on table ai.policy_changes is
  'The sum of its changes is the version of models, providers, limits and what ai.settings says to inserts, under which ways are noted in ai.known_ways.';
alter table ai.policy_changes enable row level security;

-- Without a unique key: of two claims that note the same at once, none waits for the other.
create table ai.known_ways (
  id         bigint      not null generated always as identity constraint known_ways_pkey primary key,
  version    bigint      not null,
  tenant_id  uuid        not null,
  user_id    text        not null,
  api_key_id uuid,
  kind       text        not null,
  model      text        not null,
  priority   text        not null,
  lane_id    bigint      not null,
  model_id   bigint      not null,
  limited    boolean     not null,
  max_bytes  integer     not null,
  noted_at   timestamptz not null default now()
);
create index known_ways_question on ai.known_ways (tenant_id, model, user_id, version, kind, priority);
comment on table ai.known_ways is
  'The lane and the model of questions that name one, noted by claims. Valid under one version (ai.policy_changes); deleted after a day. A row may be there twice.';
comment on column ai.known_ways.user_id is 'Empty: of every member and API key, as no limit of the tenant tells them apart.';
comment on column ai.known_ways.limited is 'Whether the lane has counters of limits.';
comment on column ai.known_ways.max_bytes is 'ai.settings.max_input_bytes.';
alter table ai.known_ways enable row level security;

-- A check costs every INSERT and UPDATE a sixth of what a plain INSERT does, by the number of its columns: of the words of a generation only the status ever
-- changes; the others are looked at where they are written (ai.check_words()).
create function ai.is_status(p_status text) returns boolean
language plpgsql immutable parallel safe security invoker
as $$
begin
  return p_status operator(pg_catalog.=) any ('{queued,running,succeeded,failed,cancelled,rejected}'::pg_catalog.text[]);
end
$$;
comment on function ai.is_status(text) is 'Whether it is one of the states that a generation may be in.';
revoke execute on function ai.is_status(text) from public;
grant execute on function ai.is_status(text) to ai_user;
revoke execute on function ai.is_generation(text, text, text, text, text) from ai_user;
alter table ai.generations
  drop constraint generations_words,
  add constraint generations_status check (ai.is_status(status));
