-- migrate:up
-- What a transaction with an old snapshot changed in a vectorized table reaches the versions that it could not see.

create table ai.row_changes (
  id            bigint      not null generated always as identity constraint row_changes_pkey primary key,
  vectorizer_id bigint      not null,
  versions      bigint[]    not null,
  refs          bigint[]    not null,
  tenant_id     uuid,
  row_key       text collate "C",
  content       text,
  noted_at      timestamptz not null
);
create index row_changes_vectorizer on ai.row_changes (vectorizer_id, id);
comment on table ai.row_changes is
  'Changes of vectorized tables by transactions above READ COMMITTED, which may not see the newest versions. Goes to these by ai.fill_vectorizers().';
comment on column ai.row_changes.versions is 'Those that the transaction saw, and noted it for.';
comment on column ai.row_changes.refs is 'For the rows of others, of which there are at most two: drawn when the change was made, so that what was noted later stays newer.';
comment on column ai.row_changes.row_key is 'Null: of all rows, which were truncated.';
comment on column ai.row_changes.content is 'Null: the row was deleted, or has no text any more.';
alter table ai.row_changes enable row level security;
