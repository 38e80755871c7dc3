-- migrate:up
-- The audit log, and limits per API key.

-- One chain of entries for each tenant, and one, of the operator's own, for what concerns all tenants: it has no tenant, and all
-- zeros for its chain. No foreign key: the log outlives what it tells of.
create table ai.audit_log (
  tenant_id      uuid,
  seq            bigint      not null constraint audit_log_seq check (seq > 0),
  at             timestamptz not null,
  login          text        not null,
  user_tenant_id uuid,
  user_id        text,
  source         text,
  api_key_id     uuid,
  action         text        not null,
  object         text        not null,
  key            jsonb,
  before         jsonb,
  after          jsonb,
  prev_hash      bytea       not null constraint audit_log_prev_hash check (length(prev_hash) = 32),
  hash           bytea       not null constraint audit_log_hash check (length(hash) = 32),
  chain          uuid        not null generated always as (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)) stored,
  constraint audit_log_pkey primary key (chain, seq)
);
comment on table ai.audit_log is
  'Who changed which policy, price, key, secret or member, and who opened what was sealed. Only added to; each entry is hashed together with the one before. ai.audit_verify() checks it.';
comment on column ai.audit_log.tenant_id is 'Whose chain; null: the operator''s, of what concerns all tenants.';
comment on column ai.audit_log.seq is 'Number in the chain, from 1, without gaps, in the order of commits.';
comment on column ai.audit_log.at is 'When the statement began that did it.';
comment on column ai.audit_log.login is 'The database role that the session logged in with.';
comment on column ai.audit_log.user_tenant_id is 'With user_id: the member that the session was; null: none, or one of another tenant, which is not told here.';
comment on column ai.audit_log.source is 'How the member was known: as ai.whoami() has it.';
comment on column ai.audit_log.api_key_id is 'The API key of the session.';
comment on column ai.audit_log.action is 'insert, update, delete of a row; or the name of an act that changes none, such as open.';
comment on column ai.audit_log.object is 'The table.';
comment on column ai.audit_log.key is 'The primary key of the row.';
comment on column ai.audit_log.before is 'Of an update the columns that changed, of a deletion all that were not null. Without secrets; what is long as {"sha256", "bytes"}.';
comment on column ai.audit_log.after is 'Of an update the columns that changed, of an insert all that are not null. Likewise.';
comment on column ai.audit_log.prev_hash is 'hash of the entry before; of the first one 32 zero bytes.';
comment on column ai.audit_log.hash is 'SHA-256, by ai.audit_hash().';
comment on column ai.audit_log.chain is 'tenant_id, or all zeros.';

create table ai.audit_heads (
  tenant_id uuid,
  seq       bigint not null,
  hash      bytea  not null constraint audit_heads_hash check (length(hash) = 32),
  chain     uuid   not null generated always as (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)) stored
                   constraint audit_heads_pkey primary key
) with (fillfactor = 50);
comment on table ai.audit_heads is 'The last entry of each chain. The row is the lock of who adds to the chain.';

-- What a transaction has done is put into the chains when it commits, in one go and in the order of chains: so that nobody waits for
-- somebody's open transaction, and two transactions never for each other.
create table ai.audit_pending (
  id             bigint      not null generated always as identity constraint audit_pending_pkey primary key,
  xact           xid8        not null,
  is_first       boolean     not null,
  tenant_id      uuid,
  at             timestamptz not null,
  login          text        not null,
  user_tenant_id uuid,
  user_id        text,
  source         text,
  api_key_id     uuid,
  action         text        not null,
  object         text        not null,
  key            jsonb,
  before         jsonb,
  after          jsonb,
  chain          uuid        not null generated always as (coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'::uuid)) stored
);
create index audit_pending_xact on ai.audit_pending (xact);
create index audit_pending_chain on ai.audit_pending (chain);
comment on table ai.audit_pending is
  'Entries of transactions that have not committed yet; and, rarely, of some whose chain was held by another for too long: who adds to it next takes them along.';
comment on column ai.audit_pending.is_first is 'The first of its transaction: that one makes the commit put all of them into their chains.';

alter table ai.audit_log     enable row level security;
alter table ai.audit_heads   enable row level security;
alter table ai.audit_pending enable row level security;

-- Rotating a key makes another one in its place. What limits a key limits all of them together, or a rotation would lift it.
alter table ai.api_keys add column origin_id uuid;
comment on column ai.api_keys.origin_id is 'The first of the keys that were rotated one into the other. Kept by a trigger. Limits count by it.';

alter table ai.limits
  add column api_key_id uuid,
  drop constraint limits_per,
  add constraint limits_per check (per in ('tenant', 'member', 'api_key')),
  drop constraint limits_credit,
  add constraint limits_credit check (metric <> 'credit' or (per = 'tenant' and num_nulls(user_id, kind, profile, model, api_key_id) = 5));
comment on column ai.limits.per is 'tenant: one counter; member: one counter for each user; api_key: one for each API key, and what is asked with none is not concerned.';
comment on column ai.limits.api_key_id is 'Only what is asked with this API key (and what replaces it by ai.rotate_api_key()); null: whatever. Kept as the first of its rotations.';
comment on column ai.counters.subject is 'The user of a limit per member, the API key of one per API key; else empty.';
