-- migrate:up
-- Provider batches: what has priority batch goes through the batch interface of its provider, at a lower price and within a day.
-- (ai.batches is something else: an app's own grouping of generations. Either knows nothing of the other.)

-- One batch at one provider, of one tenant and one model. While it gathers and while it runs, its members are leased to it, as
-- others are to a worker: the lease is the fence by which a result counts once, and holds what is reserved on limits.
create table ai.provider_batches (
  id           uuid        not null default ai.uuid_v7() constraint provider_batches_pkey primary key,
  tenant_id    uuid        not null constraint provider_batches_tenant_fkey references ai.tenants (id),
  provider_id  bigint      not null,
  model_id     bigint      not null,
  kind         text        not null,
  wire_name    text        not null,
  options      jsonb       not null,
  state        text        not null default 'gathering'
                           constraint provider_batches_state check (state in ('gathering', 'sending', 'running', 'ending', 'ended')),
  action       text        constraint provider_batches_action
                           check (action in ('upload', 'find_file', 'create', 'find', 'poll', 'cancel', 'collect')),
  due_at       timestamptz not null,
  worker_id    uuid,
  step         integer     not null default 0,
  step_at      timestamptz,
  tries        integer     not null default 0,
  gone         integer     not null default 0,
  secret       text,
  file_id      text,
  external_id  text,
  guessed      boolean     not null default false,
  refused_ids  text[]      not null default '{}',
  output_id    text,
  errors_id    text,
  word         text,
  ending       text        constraint provider_batches_ending
                           check (ending in ('completed', 'failed', 'expired', 'cancelled', 'refused', 'lost')),
  rest         text        constraint provider_batches_rest check (rest in ('release', 'expired', 'lost')),
  error        jsonb,
  dropped      jsonb,
  created_at   timestamptz not null,
  closed_at    timestamptz,
  intent_at    timestamptz,
  submitted_at timestamptz,
  cancel_at    timestamptz,
  cancel_sent  boolean     not null default false,
  give_up_at   timestamptz not null,
  ended_at     timestamptz,
  requests     integer     not null default 0,
  bytes        bigint      not null default 0,
  succeeded    integer     not null default 0,
  failed       integer     not null default 0,
  expired      integer     not null default 0,
  cancelled    integer     not null default 0,
  missing      integer     not null default 0,
  repeated     integer     not null default 0,
  strays       integer     not null default 0,
  malformed    integer     not null default 0,
  constraint provider_batches_next check ((action is not null) = (state in ('sending', 'running'))),
  constraint provider_batches_end check ((ended_at is not null) = (state = 'ended')),
  constraint provider_batches_step check (worker_id is null or state in ('sending', 'running'))
) with (fillfactor = 50);
create index provider_batches_tenant on ai.provider_batches (tenant_id, id);
create index provider_batches_gathering on ai.provider_batches (tenant_id, model_id) where state = 'gathering';
create index provider_batches_due on ai.provider_batches (due_at) where state <> 'ended';
create index provider_batches_external on ai.provider_batches (provider_id, external_id) where external_id is not null;
comment on table ai.provider_batches is 'Batches at providers: generations of priority batch that were gathered, sent as one, and matched back one by one.';
comment on column ai.provider_batches.id is 'Also our name for it at the provider (metadata or display name), by which it is found again after a crash.';
comment on column ai.provider_batches.state is
  'gathering; sending: not known to exist at the provider yet; running: it exists there; ending: what is left of its members goes back; ended.';
comment on column ai.provider_batches.action is 'What is to be done next, or is being done where worker_id is set.';
comment on column ai.provider_batches.step is 'Number of the last step that was taken: the fence of the worker''s reports.';
comment on column ai.provider_batches.worker_id is 'Who does the step; null: nobody does.';
comment on column ai.provider_batches.tries is 'Failures of this action in a row.';
comment on column ai.provider_batches.gone is 'How often in a row the provider did not know the batch.';
comment on column ai.provider_batches.secret is 'Name of the key it was made with: another account does not see it.';
comment on column ai.provider_batches.guessed is 'Found again by its size and time, because the provider keeps no name of ours: true until its results say that it is ours.';
comment on column ai.provider_batches.refused_ids is 'Ids at the provider that are not, or no longer, this batch.';
comment on column ai.provider_batches.word is 'The provider''s own word for its state.';
comment on column ai.provider_batches.rest is 'How the members without a result go back: as never sent, as expired, or as lost (they may have been billed: an estimate).';
comment on column ai.provider_batches.dropped is 'Parameters that members went without, by their ids.';
comment on column ai.provider_batches.intent_at is 'When a worker last began to create it.';
comment on column ai.provider_batches.cancel_at is 'Since when it is to be cancelled at the provider.';
comment on column ai.provider_batches.give_up_at is 'Nobody waits for it longer than this.';
comment on column ai.provider_batches.missing is 'Members of which the provider said nothing: booked as unknown, with an estimate.';
comment on column ai.provider_batches.repeated is 'Results that came more than once; the first one counts.';
comment on column ai.provider_batches.strays is 'Results of something that is no member.';

-- What is sent, as it was decided when the member was claimed: the same however often it is sent.
create table ai.batched_requests (
  batch_id      uuid     not null constraint batched_requests_batch_fkey references ai.provider_batches (id) on delete cascade,
  generation_id uuid     not null,
  tenant_id     uuid     not null,
  attempt       smallint not null,
  request       jsonb    not null,
  constraint batched_requests_pkey primary key (batch_id, generation_id)
);
comment on table ai.batched_requests is 'Requests of members of provider batches, until the provider has them.';

alter table ai.provider_batches enable row level security;
alter table ai.batched_requests enable row level security;

alter table ai.leases add column batched boolean not null default false;
comment on column ai.leases.batched is 'worker_id is a provider batch.';
create index leases_batched on ai.leases (worker_id) where batched;

alter table ai.generations add column provider_batch_id uuid;
comment on column ai.generations.provider_batch_id is 'The provider batch that its first attempt went into; null: none did.';
alter table ai.generations drop constraint generations_priority,
  add constraint generations_priority check (priority in ('high', 'normal', 'low', 'batch'));
comment on column ai.generations.priority is
  'high, normal, low: within the tenant. batch: as low, and through the provider''s batch interface where the model has one: cheaper, within a day.';
alter table ai.lanes drop constraint lanes_priority,
  add constraint lanes_priority check (priority in ('high', 'normal', 'low', 'batch'));
insert into ai.lanes (tenant_id, priority) select t.id, 'batch' from ai.tenants t on conflict do nothing;
insert into ai.lanes (tenant_id, priority, batch_id) select b.tenant_id, 'batch', b.id from ai.batches b where b.cancelled_at is null on conflict do nothing;

alter table ai.settings
  add column provider_batch_gather_ms integer not null default 60000
    constraint settings_provider_batch_gather check (provider_batch_gather_ms between 0 and 86400000),
  add column provider_batch_requests  integer not null default 5000
    constraint settings_provider_batch_requests check (provider_batch_requests between 1 and 50000),
  add column provider_batch_bytes     integer not null default 8388608
    constraint settings_provider_batch_bytes check (provider_batch_bytes between 1024 and 134217728),
  add column provider_batch_poll_ms   integer not null default 30000
    constraint settings_provider_batch_poll check (provider_batch_poll_ms between 10 and 86400000),
  add column provider_batch_settle_ms integer not null default 360000
    constraint settings_provider_batch_settle check (provider_batch_settle_ms between 10 and 86400000),
  add column provider_batch_window_ms integer not null default 90000000
    constraint settings_provider_batch_window check (provider_batch_window_ms between 1 and 259200000);
comment on column ai.settings.provider_batch_gather_ms is 'How long a provider batch gathers members after its first one.';
comment on column ai.settings.provider_batch_requests is 'Members that a provider batch has at most.';
comment on column ai.settings.provider_batch_bytes is 'Bytes of requests that a provider batch has at most; a worker holds them in memory while it sends them.';
comment on column ai.settings.provider_batch_poll_ms is 'How often a provider is asked after a batch, at first; later every tenth of its age, at most twenty times this.';
comment on column ai.settings.provider_batch_settle_ms is
  'A provider batch whose creation came to an unknown end, and that cannot be found so long after its beginning, was not created. Longer than a worker waits for the answer (five minutes).';
comment on column ai.settings.provider_batch_window_ms is 'What must be left of a generation''s deadline for a provider batch, which takes up to a day.';

-- What may become of a member beside its own failures.
do $$
declare
  v_check text := (select pg_get_constraintdef(c.oid) from pg_constraint c where c.conrelid = 'ai.retry_rules'::regclass and c.conname = 'retry_rules_signal');
begin
  execute 'alter table ai.retry_rules drop constraint retry_rules_signal, add constraint retry_rules_signal '
    || replace(v_check, 'ARRAY[', 'ARRAY[''expired''::text, ''lost''::text, ');
end
$$;
insert into ai.retry_rules (signal, class, action, billed, why) values
  ('expired', 'expired', 'retry', 'no',      'the provider did not come to it before its batch expired'),
  ('lost',    'unknown', 'retry', 'arrived', 'its batch ended without a word of it, or is not to be found: it may have been answered');
