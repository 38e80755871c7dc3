-- migrate:up
-- What apps see: generations, their streams, and the books. All three are partitioned by time; ai.make_partitions()
-- makes partitions ahead, and the default partition takes what comes where none was made, so that no row ever fails
-- for want of one. No foreign key leads here: the books outlive what they tell of, and a key costs 4 µs a row.

create table ai.generations (
  tenant_id       uuid        not null,
  id              uuid        not null default ai.uuid_v7(),
  user_id         text        not null,
  kind            text        not null default 'chat'
                              constraint generations_kind check (kind in ('chat', 'embedding')),
  status          text        not null default 'queued'
                              constraint generations_status check (status in ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'rejected')),
  priority        text        not null default 'normal' constraint generations_priority check (priority in ('high', 'normal', 'low')),
  stream          boolean     not null default false,
  prompt          text,
  messages        jsonb,
  model           text,
  profile         text,
  params          jsonb       not null default '{}',
  run_after       timestamptz,
  deadline_ms     integer,
  idempotency_key text,
  metadata        jsonb,

  output          text,
  output_message  jsonb,
  embedding       ai.embedding,
  finish_reason   text,
  error           jsonb,
  provider        text,
  model_used      text,
  input_tokens    integer,
  cached_tokens   integer,
  output_tokens   integer,
  cost            numeric,
  attempts        smallint    not null default 0,
  last_seq        integer     not null default 0,
  ttft_ms         integer,
  latency_ms      integer,
  created_at      timestamptz not null default statement_timestamp(),
  started_at      timestamptz,
  finished_at     timestamptz,
  constraint generations_pkey primary key (tenant_id, id)
) partition by range (id);
create table ai.generations_default partition of ai.generations default with (fillfactor = 50);

comment on table ai.generations is
  'One thing an app asked for. Insert prompt or messages; the answer, its cost and what became of it come back in the row.';
comment on column ai.generations.prompt is 'The user''s text; or give messages. For an embedding, the text to embed.';
comment on column ai.generations.messages is 'OpenAI''s chat form: [{"role": "user", "content": "…"}, …].';
comment on column ai.generations.model is 'Name in ai.models, such as openai/gpt-4o-mini; or give a profile; or neither.';
comment on column ai.generations.params is 'OpenAI''s vocabulary: temperature, max_tokens, stop, seed, tools, tool_choice, response_format, …';
comment on column ai.generations.stream is 'true: deltas are published while the answer is written. Ends are announced either way.';
comment on column ai.generations.run_after is 'Not before this time.';
comment on column ai.generations.deadline_ms is 'From run_after (or the insert) to the end, in milliseconds; null: ai.settings.';
comment on column ai.generations.idempotency_key is 'The same key gives the same generation within the tenant.';
comment on column ai.generations.output_message is 'The assistant''s message in OpenAI''s form, tool calls included.';
comment on column ai.generations.error is '{"class", "message", "signal", "http_status", "code", "detail", "hint"} of what ended or last delayed it.';
comment on column ai.generations.model_used is 'The model''s name as the provider returned it.';
comment on column ai.generations.input_tokens is 'Of the last attempt, all classes: uncached, read from and written to the provider''s prompt cache.';
comment on column ai.generations.cost is 'Of all attempts; null while no attempt had a price.';
comment on column ai.generations.last_seq is 'Sequence number of the last event of its stream.';
comment on column ai.generations.ttft_ms is 'From the insert (or run_after) to the first text.';
comment on column ai.generations.latency_ms is 'From the insert (or run_after) to the end.';

create table ai.stream_events (
  generation_id uuid        not null,
  seq           integer     not null,
  tenant_id     uuid        not null,
  attempt       smallint    not null,
  part          integer     not null default 0,
  type          text        not null
                            constraint stream_events_type check (type in ('running', 'delta', 'retry', 'reset')),
  data          text        not null,
  constraint stream_events_pkey primary key (generation_id, seq)
) partition by range (generation_id);
create table ai.stream_events_default partition of ai.stream_events default;
comment on table ai.stream_events is
  'What happened to a generation while it ran, gap-free by seq. The end is not here: ai.read_stream() takes it from the generation.';
comment on column ai.stream_events.part is
  'The worker''s number of a delta within its attempt, by which one that it sent twice is known; 0: no delta.';
comment on column ai.stream_events.data is 'delta: the text; retry, reset: why. Empty for running.';

create table ai.llm_calls (
  tenant_id             uuid        not null,
  generation_id         uuid        not null,
  attempt               smallint    not null,
  created_at            timestamptz not null,
  user_id               text        not null,
  provider              text        not null,
  model                 text        not null,
  model_used            text,
  kind                  text        not null,
  status                text        not null
                                    constraint llm_calls_status check (status in ('succeeded', 'failed', 'cancelled', 'abandoned')),
  http_status           smallint,
  error_class           text,
  error_code            text,
  input_tokens          integer     not null default 0,
  cached_tokens         integer     not null default 0,
  cache_write_tokens    integer     not null default 0,
  cache_write_1h_tokens integer     not null default 0,
  output_tokens         integer     not null default 0,
  reasoning_tokens      integer     not null default 0,
  estimated             boolean     not null default false,
  price_id              bigint,
  cost                  numeric,
  ttft_ms               integer,
  latency_ms            integer,
  service_tier          text,
  request_id            text,
  constraint llm_calls_pkey primary key (tenant_id, generation_id, attempt, created_at)
) partition by range (created_at);
create index llm_calls_created_at on ai.llm_calls using brin (created_at);
create table ai.llm_calls_default partition of ai.llm_calls default;
comment on table ai.llm_calls is 'The books: one row for every attempt at a provider.';
comment on column ai.llm_calls.created_at is 'When the attempt was claimed.';
comment on column ai.llm_calls.status is 'abandoned: its worker died; what it cost is an estimate.';
comment on column ai.llm_calls.input_tokens is 'All input tokens; the three cache columns are parts of it.';
comment on column ai.llm_calls.output_tokens is 'All output tokens; reasoning_tokens is a part of it.';
comment on column ai.llm_calls.estimated is 'true: the provider reported no usage; the tokens are an estimate, four bytes a token.';
comment on column ai.llm_calls.price_id is 'The version of ai.prices that was valid at created_at; null: none was, and cost is unknown.';

create table ai.idempotency_keys (
  tenant_id     uuid        not null,
  key           text        not null constraint idempotency_keys_key check (length(key) between 1 and 255),
  generation_id uuid        not null,
  input_hash    bytea       not null,
  created_at    timestamptz not null default now(),
  constraint idempotency_keys_pkey primary key (tenant_id, key)
);
create index idempotency_keys_created_at on ai.idempotency_keys using brin (created_at);
comment on table ai.idempotency_keys is 'Which generation a key stands for, and a hash of what was asked with it.';

create table ai.partitioning (
  table_name text     not null constraint partitioning_pkey primary key,
  span       interval not null,
  ahead      integer  not null constraint partitioning_ahead check (ahead between 1 and 100),
  keep       interval constraint partitioning_keep check (keep > interval '0')
);
insert into ai.partitioning (table_name, span, ahead, keep) values
  ('generations',   '1 month', 2, null),
  ('stream_events', '1 day',   2, '7 days'),
  ('llm_calls',     '1 month', 2, null);
comment on table ai.partitioning is 'How the partitioned tables are cut, and how long they are kept.';
comment on column ai.partitioning.span is 'Of one partition: 1 day or 1 month.';
comment on column ai.partitioning.keep is 'Partitions that ended longer ago are detached and dropped; null: kept for ever.';
alter table ai.partitioning add constraint partitioning_span check (span in (interval '1 day', interval '1 month'));

alter table ai.generations           enable row level security;
alter table ai.generations_default   enable row level security;
alter table ai.stream_events         enable row level security;
alter table ai.stream_events_default enable row level security;
alter table ai.llm_calls             enable row level security;
alter table ai.llm_calls_default     enable row level security;
alter table ai.idempotency_keys      enable row level security;
alter table ai.partitioning          enable row level security;
