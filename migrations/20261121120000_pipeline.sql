-- migrate:up
-- What the stages of the pipeline leave on a generation, a call and a lease, and where a generation waits for another.

alter table ai.generations
  add column collection       text,
  add column template         text,
  add column cache            text constraint generations_cache check (cache in ('off', 'exact', 'semantic', 'refresh')),
  add column cache_tags       text[],
  add column conversation_id  uuid,
  add column batch_id         uuid,
  add column replay           boolean not null default false,
  add column cached           boolean not null default false,
  add column saved            numeric,
  add column sources          jsonb,
  add column stages           jsonb,
  add column degraded         text,
  add column context          jsonb,
  add column context_sources  text[],
  add column template_version integer,
  add column cache_key        bytea,
  add column route            bigint[],
  add column parent_id        uuid,
  add column query_id         uuid,
  add column query_model      text,
  add column judge_ids        uuid[],
  add column purpose          text constraint generations_purpose check (purpose in ('query', 'moderation', 'chunks', 'rows'));
comment on column ai.generations.collection is 'Name in ai.collections: its best passages join the prompt, and come back in sources.';
comment on column ai.generations.template is 'Name in ai.prompt_templates: how the prompt is put together.';
comment on column ai.generations.cache is 'off, exact, semantic (exact too), refresh (asks again and replaces the entry); null: as ai.cache_policies says.';
comment on column ai.generations.cache_tags is 'Tags of the cache entry that this answer becomes, for ai.invalidate_cache().';
comment on column ai.generations.conversation_id is 'Conversation whose history joins the prompt: ai.chat().';
comment on column ai.generations.batch_id is 'Batch that it belongs to: ai.create_batch().';
comment on column ai.generations.replay is 'true: may begin again although text was shown already; subscribers get a reset.';
comment on column ai.generations.cached is 'Answered from a cache, or by the answer to the same question asked at the same time.';
comment on column ai.generations.saved is 'What the answer cost whom it was first made for; null where it was not cached.';
comment on column ai.generations.sources is 'Passages that joined the prompt: [{"id", "document", "title", "uri", "similarity", …}], best first.';
comment on column ai.generations.stages is 'What acted on it, in order: [{"stage", "result", "why", "ms", …}].';
comment on column ai.generations.degraded is 'Why this is less than what was asked for; null: it is not.';
comment on column ai.generations.context is 'Rows of the context sources, read as the caller when it was inserted.';
comment on column ai.generations.context_sources is 'Names in ai.context_sources that its template asks for.';
comment on column ai.generations.template_version is 'Version of the template it was inserted under.';
comment on column ai.generations.cache_key is 'Hash of all that shapes the answer, within its scope; null: not cached.';
comment on column ai.generations.route is 'Models in the order in which they are tried, fixed by the first claim: ai.explain_route().';
comment on column ai.generations.parent_id is 'The generation that this one was made for.';
comment on column ai.generations.query_id is 'The generation that embeds this one''s question.';
comment on column ai.generations.query_model is 'The model that embeds its question.';
comment on column ai.generations.judge_ids is 'The generations that judge it, one for each moderating guardrail.';
comment on column ai.generations.purpose is
  'Made by Martlet itself: query (the vector of a question), moderation, chunks and rows (embeddings of documents and of an app''s table); null: asked by an app.';

alter table ai.llm_calls
  add column cache text constraint llm_calls_cache check (cache in ('exact', 'semantic', 'coalesced')),
  add column saved numeric;
comment on column ai.llm_calls.cache is 'How it was answered without a provider; null: it was not.';
comment on column ai.llm_calls.saved is 'What the answer cost when it was made.';

-- A lane is also the limits that apply to what is in it, and a batch, so that either can be passed over as a whole.
alter table ai.lanes
  add column counters bigint[] not null default '{}',
  add column batch_id uuid,
  drop constraint lanes_key,
  add constraint lanes_key unique nulls not distinct (tenant_id, priority, counters, batch_id);
comment on table ai.lanes is 'A tenant, a priority, the limits that apply and a batch: what is fair to each other, in order within, and parked as one.';
comment on column ai.lanes.counters is 'Ids in ai.counters, ascending.';

alter table ai.leases
  add column counters bigint[],
  add column amounts  numeric[],
  add column held     boolean not null default false,
  add column route    bigint[],
  add column replay   boolean not null default false;
comment on column ai.leases.counters is 'Counters on which it has a reservation; null: none.';
comment on column ai.leases.amounts is 'What is reserved on each of them.';
comment on column ai.leases.held is 'Its text is shown at the end only, after the guardrails.';

-- Only what needs it passes through ai.prepare_generations(); a flag spares the claim from looking at all the others.
alter table ai.queue   add column prepare boolean not null default false;
alter table ai.delayed add column prepare boolean not null default false;
comment on column ai.queue.prepare is 'true: a cache, retrieval or a template has to be asked before it is sent.';

create table ai.waiting (
  generation_id uuid        not null,
  for_id        uuid        not null,
  tenant_id     uuid        not null,
  lane_id       bigint      not null,
  attempts      smallint    not null default 0,
  target        smallint    not null default 1,
  deadline_at   timestamptz not null,
  counters      bigint[],
  amounts       numeric[],
  claimed_at    timestamptz,
  constraint waiting_pkey primary key (generation_id, for_id)
);
create index waiting_for on ai.waiting (for_id);
create index waiting_deadline on ai.waiting (deadline_at);
comment on table ai.waiting is
  'What waits for the end of another generation: of the one that embeds its question, judges it, or is asked the same. Queued when the last row is gone.';

create table ai.prepared (
  generation_id uuid  not null constraint prepared_pkey primary key,
  tenant_id     uuid  not null,
  messages      jsonb   not null,
  input_bytes   integer not null
);
comment on table ai.prepared is 'Prompts put together at the first claim, kept for retries, until the generation has ended.';
comment on column ai.prepared.messages is 'What is sent instead of the generation''s own messages, or the texts of a batch of embeddings.';

comment on column ai.waiting.counters is 'Where it follows a leader: counters on which its request is reserved, in amounts, since claimed_at.';

alter table ai.waiting  enable row level security;
alter table ai.prepared enable row level security;

alter table ai.settings
  add column max_output_tokens integer not null default 4096 constraint settings_max_output_tokens check (max_output_tokens between 1 and 1000000),
  add column accepting boolean not null default true;
comment on column ai.settings.max_output_tokens is 'Bound of the answer where limits or budgets apply and neither params nor the model name one.';
comment on column ai.settings.accepting is 'The kill switch. false: new generations are refused with PT503; what is queued goes on.';

alter table ai.tenants add column tier text not null default 'standard' constraint tenants_tier check (length(tier) between 1 and 50);
comment on column ai.tenants.tier is 'For the conditions of profiles and routes, such as free or premium.';

-- Without the status, which changes: an update that changes an indexed column is never HOT.
create index generations_batch on ai.generations (tenant_id, batch_id) where batch_id is not null;
