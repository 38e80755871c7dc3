-- migrate:up
-- Embeddings in batches, and those of an app's own tables.

create table ai.embedding_jobs (
  tenant_id     uuid     not null,
  generation_id uuid     not null,
  source        text     not null constraint embedding_jobs_source check (source in ('chunks', 'rows')),
  version       bigint   not null,
  user_id       text     not null,
  model         text     not null,
  refs          bigint[] not null constraint embedding_jobs_refs check (cardinality(refs) between 1 and 32),
  sent          bigint[],
  taken         boolean  not null default false,
  constraint embedding_jobs_pkey primary key (tenant_id, generation_id)
);
create index embedding_jobs_version on ai.embedding_jobs (source, version);
create index embedding_jobs_room on ai.embedding_jobs (tenant_id, source, version, model, user_id, generation_id) where not taken and cardinality(refs) < 32;
comment on table ai.embedding_jobs is 'What a generation of purpose chunks or rows embeds, until it has ended.';
comment on column ai.embedding_jobs.version is 'Of the embeddings: of a collection, or in ai.vectorizer_versions.';
comment on column ai.embedding_jobs.refs is 'Chunks, or rows of ai.vectorized_rows. The text of a ref never changes.';
comment on column ai.embedding_jobs.taken is 'Whether it was claimed; one that was not may be taken over by another that has room.';
comment on column ai.embedding_jobs.sent is 'Those whose texts were sent, in their order; null: all. The others were gone when it was claimed.';

-- One claim at a time takes over others' jobs, so that two cannot wait for each other.
create table ai.embedding_batching (
  only_row boolean not null default true
                   constraint embedding_batching_pkey primary key constraint embedding_batching_only_row check (only_row)
);
insert into ai.embedding_batching default values;
comment on table ai.embedding_batching is 'One row: the lock of who fills up jobs in ai.embedding_inputs().';

create table ai.vectorizers (
  id             bigint      not null generated always as identity constraint vectorizers_pkey primary key,
  tenant_id      uuid        constraint vectorizers_tenant_fkey references ai.tenants (id),
  user_id        text        not null,
  name           text        not null constraint vectorizers_name check (length(name) between 1 and 200),
  table_name     regclass    not null,
  table_id       oid         not null,
  columns        text[]      not null,
  attnums        smallint[]  not null,
  key_columns    text[]      not null,
  key_attnums    smallint[]  not null,
  tenant_column  text,
  tenant_attnum  smallint,
  model          text        not null,
  format         text        not null constraint vectorizers_format check (format in ('labelled', 'plain')),
  max_characters integer     not null constraint vectorizers_max_characters check (max_characters between 1 and 32000),
  created_at     timestamptz not null default now(),
  constraint vectorizers_tenant check ((tenant_id is null) = (tenant_column is not null)),
  constraint vectorizers_name_key unique nulls not distinct (tenant_id, name)
);
comment on table ai.vectorizers is 'Tables of apps whose rows are kept embedded. Made by ai.vectorize(), ended by ai.stop_vectorizing().';
comment on column ai.vectorizers.tenant_id is 'Whose rows, and who pays; null: tenant_column of each row says it.';
comment on column ai.vectorizers.user_id is 'In whose name the embeddings are asked for.';
comment on column ai.vectorizers.table_name is 'Follows a renaming of the table, and a restore finds it by name.';
comment on column ai.vectorizers.table_id is 'The table for which attnums hold: after a restore its columns are found by their names.';
comment on column ai.vectorizers.attnums is 'By which columns are found that were renamed.';
comment on column ai.vectorizers.model is 'Embedding model that is searched with now.';
comment on column ai.vectorizers.format is 'labelled: each value behind the name of its column; plain: the values. One a line.';
comment on column ai.vectorizers.max_characters is 'Longer texts are cut here.';

create table ai.vectorizer_versions (
  id            bigint      not null generated always as identity constraint vectorizer_versions_pkey primary key,
  vectorizer_id bigint      not null,
  model         text        not null,
  dimensions    integer,
  status        text        not null constraint vectorizer_versions_status check (status in ('current', 'building', 'retired')),
  created_at    timestamptz not null default now(),
  retired_at    timestamptz
);
create unique index vectorizer_versions_current on ai.vectorizer_versions (vectorizer_id) where status = 'current';
create unique index vectorizer_versions_building on ai.vectorizer_versions (vectorizer_id) where status = 'building';
create index vectorizer_versions_vectorizer on ai.vectorizer_versions (vectorizer_id);
comment on table ai.vectorizer_versions is 'The embeddings of a vectorizer, by model: current ones are searched, building ones take their place when complete, retired ones are removed.';
comment on column ai.vectorizer_versions.dimensions is 'Of the vectors; null: not known before the first.';

-- Apps' transactions only insert here, and delete what they deleted; a changed text is a new row, and the one with the highest
-- ref is the text of its key. So an app's open transaction never holds what a worker's report must lock, and a
-- vector belongs to the text it was made from, whatever came after.
create table ai.vectorized_rows (
  ref         bigint           not null generated always as identity constraint vectorized_rows_pkey primary key,
  version     bigint           not null,
  tenant_id   uuid             not null,
  row_key     text collate "C" not null,
  state       text             not null constraint vectorized_rows_state check (state in ('pending', 'embedded', 'failed', 'gone')),
  content     text,
  embedding   ai.embedding,
  error       jsonb,
  older_left  boolean          not null default false,
  noted_at    timestamptz      not null,
  embedded_at timestamptz
);
alter table ai.vectorized_rows alter column embedding set storage main;
create index vectorized_rows_key on ai.vectorized_rows (row_key, version, ref);
create index vectorized_rows_unfinished on ai.vectorized_rows (version, state, ref) where state <> 'embedded';
create index vectorized_rows_older_left on ai.vectorized_rows (ref) where older_left;
comment on table ai.vectorized_rows is 'Texts of the rows of apps'' tables and their embeddings. Read it by ai.search_rows().';
comment on column ai.vectorized_rows.row_key is 'Id of the vectorizer, a slash, and the row''s primary key as text; of several columns a JSON array of texts.';
comment on column ai.vectorized_rows.state is 'gone: the row was deleted, or has no text any more; everything of its key up to here is to be removed.';
comment on column ai.vectorized_rows.content is 'A copy, so that neither a claim nor a rebuild reads an app''s table with rights that are not the app''s.';
comment on column ai.vectorized_rows.older_left is 'A row of the same key, with an older text, may be left.';

create table ai.vectorizer_problems (
  id            bigint      not null generated always as identity constraint vectorizer_problems_pkey primary key,
  vectorizer_id bigint      not null,
  table_id      oid         not null,
  error         jsonb       not null,
  noted_at      timestamptz not null
);
create index vectorizer_problems_vectorizer on ai.vectorizer_problems (vectorizer_id);
comment on table ai.vectorizer_problems is 'Changes of rows that could not be noted: ai.refresh_vectorizer() looks at all rows again.';

alter table ai.embedding_jobs      enable row level security;
alter table ai.embedding_batching  enable row level security;
alter table ai.vectorizers         enable row level security;
alter table ai.vectorizer_versions enable row level security;
alter table ai.vectorized_rows     enable row level security;
alter table ai.vectorizer_problems enable row level security;
