-- migrate:up
-- How prompts are put together, what rows of an app's own join them, and conversations.

create table ai.prompt_templates (
  id               bigint           not null generated always as identity constraint prompt_templates_pkey primary key,
  tenant_id        uuid             constraint prompt_templates_tenant_fkey references ai.tenants (id),
  name             text             not null constraint prompt_templates_name check (length(name) between 1 and 200),
  version          integer          not null constraint prompt_templates_version check (version > 0),
  description      text,
  system           text             constraint prompt_templates_system check (octet_length(system) between 1 and 200000),
  collection       text             constraint prompt_templates_collection check (length(collection) between 1 and 200),
  match_threshold  double precision not null default 0.7 constraint prompt_templates_match_threshold check (match_threshold between -1 and 1),
  match_count      integer          not null default 5 constraint prompt_templates_match_count check (match_count between 1 and 100),
  search_mode      text             not null default 'vector' constraint prompt_templates_search_mode check (search_mode in ('vector', 'hybrid', 'text')),
  context_sources  text[]           not null default '{}'
                                    constraint prompt_templates_context_sources check (cardinality(context_sources) <= 10 and array_position(context_sources, null) is null),
  history_messages integer          not null default 20 constraint prompt_templates_history_messages check (history_messages between 0 and 1000),
  token_budget     integer          not null default 8000 constraint prompt_templates_token_budget check (token_budget between 1 and 10000000),
  enabled          boolean          not null default true,
  created_at       timestamptz      not null default now(),
  constraint prompt_templates_key unique nulls not distinct (tenant_id, name, version)
);
comment on table ai.prompt_templates is
  'How the prompt of a generation is put together that names one in template. A version never changes: a change is a new row. The highest enabled one is current.';
comment on column ai.prompt_templates.tenant_id is 'Null: of all tenants that have none of this name.';
comment on column ai.prompt_templates.version is 'Null in an INSERT: the next.';
comment on column ai.prompt_templates.system is 'The system prompt.';
comment on column ai.prompt_templates.collection is 'Searched for generations that name none.';
comment on column ai.prompt_templates.match_threshold is 'Least cosine similarity of a passage.';
comment on column ai.prompt_templates.match_count is 'Most passages.';
comment on column ai.prompt_templates.search_mode is 'vector, text (full text), or hybrid: both, merged.';
comment on column ai.prompt_templates.context_sources is 'Names in ai.context_sources, the most important first.';
comment on column ai.prompt_templates.history_messages is 'Most earlier messages of the conversation.';
comment on column ai.prompt_templates.token_budget is 'Of the whole prompt, at four bytes a token; never more than the model''s context leaves beside the answer.';

create table ai.context_sources (
  id          bigint      not null generated always as identity constraint context_sources_pkey primary key,
  tenant_id   uuid        constraint context_sources_tenant_fkey references ai.tenants (id),
  name        text        not null constraint context_sources_name check (name ~ '^[a-z][a-z0-9_]{0,59}$'),
  query       text        not null constraint context_sources_query check (octet_length(query) between 1 and 100000),
  max_rows    integer     not null default 20 constraint context_sources_max_rows check (max_rows between 1 and 1000),
  max_bytes   integer     not null default 8000 constraint context_sources_max_bytes check (max_bytes between 2 and 1000000),
  description text,
  created_at  timestamptz not null default now(),
  constraint context_sources_key unique nulls not distinct (tenant_id, name)
);
comment on table ai.context_sources is
  'Named queries whose rows join a prompt. They run as whoever inserts the generation, under that session''s rights and row-level security. Only the owner of the schema writes them.';
comment on column ai.context_sources.tenant_id is 'Null: of all tenants that have none of this name.';
comment on column ai.context_sources.query is 'One SELECT. Tables with their schema; may ask ai.user_id() and ai.tenant_id().';
comment on column ai.context_sources.max_bytes is 'Of all rows as JSON; rows behind the first that goes beyond are left out.';
comment on column ai.context_sources.description is 'What the rows are. The model reads it.';

create table ai.conversations (
  tenant_id  uuid        not null constraint conversations_tenant_fkey references ai.tenants (id),
  id         uuid        not null default ai.uuid_v7(),
  user_id    text        not null,
  title      text        constraint conversations_title check (length(title) between 1 and 500),
  template   text,
  model      text,
  profile    text,
  collection text,
  metadata   jsonb,
  last_seq   integer     not null default 0,
  created_at timestamptz not null default now(),
  constraint conversations_pkey primary key (tenant_id, id),
  constraint conversations_target check (model is null or profile is null)
) with (fillfactor = 80);
create index conversations_user on ai.conversations (tenant_id, user_id, id);
comment on table ai.conversations is 'What a member talks about: ai.start_conversation(), ai.chat(). The columns template to collection are what its generations are asked with.';
comment on column ai.conversations.last_seq is 'Number of its last message.';

create table ai.messages (
  tenant_id       uuid        not null,
  conversation_id uuid        not null,
  seq             integer     not null,
  user_id         text        not null,
  role            text        not null constraint messages_role check (role in ('user', 'assistant')),
  content         text        not null,
  generation_id   uuid        not null,
  created_at      timestamptz not null default now(),
  constraint messages_pkey primary key (tenant_id, conversation_id, seq),
  constraint messages_conversation_fkey foreign key (tenant_id, conversation_id) references ai.conversations (tenant_id, id) on delete cascade,
  constraint messages_generation_key unique (tenant_id, generation_id, role)
);
comment on table ai.messages is 'What was said in conversations, without gaps by seq, in the order in which it was said.';
comment on column ai.messages.user_id is 'Whose conversation it is.';
comment on column ai.messages.generation_id is 'role user: the generation that this text asked for; role assistant: the one that gave it.';

-- Without a foreign key and a unique one: what records an answer must not wait for somebody who is deleting the conversation
-- or appending to it.
create table ai.unrecorded_answers (
  id              bigint      not null generated always as identity constraint unrecorded_answers_pkey primary key,
  tenant_id       uuid        not null,
  conversation_id uuid        not null,
  generation_id   uuid        not null,
  created_at      timestamptz not null default now()
);
create index unrecorded_answers_conversation on ai.unrecorded_answers (tenant_id, conversation_id);
comment on table ai.unrecorded_answers is
  'Answers that came while an app''s open transaction held their conversation: ai.record_unrecorded() or the next ai.chat() puts them into ai.messages.';

alter table ai.prompt_templates   enable row level security;
alter table ai.context_sources    enable row level security;
alter table ai.conversations      enable row level security;
alter table ai.messages           enable row level security;
alter table ai.unrecorded_answers enable row level security;
