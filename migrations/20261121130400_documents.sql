-- migrate:up
-- Documents that answers are made from: collections, their documents, the chunks these are split into, and the vectors of
-- the chunks. A chunk is searched once it is live, which its whole document becomes in one transaction.

-- The language is a name, not a regconfig: pg_upgrade refuses tables that hold one.
create table ai.collections (
  tenant_id         uuid        not null constraint collections_tenant_fkey references ai.tenants (id),
  id                bigint      not null generated always as identity,
  name              text        not null constraint collections_name check (name ~ '^[^[:space:]]([^[:cntrl:]]{0,98}[^[:space:]])?$'),
  model             text        not null,
  dimensions        integer     not null constraint collections_dimensions check (dimensions between 1 and 16000),
  target_tokens     integer     not null default 300 constraint collections_target_tokens check (target_tokens between 16 and 8000),
  overlap_tokens    integer     not null default 40,
  max_tokens        integer     not null default 400,
  language          text        not null default 'english',
  version           bigint      not null default (extract(epoch from clock_timestamp()) * 1000000)::bigint,
  chunks            bigint      not null default 0,
  embedding_version bigint      not null default 1,
  last_version      bigint      not null default 1,
  next_version      bigint,
  next_model        text,
  next_dimensions   integer     constraint collections_next_dimensions check (next_dimensions between 1 and 16000),
  next_chunks       bigint      not null default 0,
  next_error        jsonb,
  indexed_version   bigint,
  stale             boolean     not null default false,
  created_at        timestamptz not null default now(),
  constraint collections_pkey primary key (tenant_id, id),
  constraint collections_name_key unique (tenant_id, name),
  constraint collections_overlap_tokens check (overlap_tokens between 0 and target_tokens / 2),
  constraint collections_max_tokens check (max_tokens between target_tokens and 8000),
  constraint collections_next check ((next_version is null) = (next_model is null) and (next_version is null) = (next_dimensions is null))
);
create index collections_unfinished on ai.collections (tenant_id, id) where stale or next_version is not null;
comment on table ai.collections is 'Sets of documents that are embedded with one model and searched together.';
comment on column ai.collections.target_tokens is 'Size that a chunk should have; a token is counted as four bytes.';
comment on column ai.collections.overlap_tokens is 'How much of a chunk''s end the next one repeats, at most; nothing across a heading.';
comment on column ai.collections.max_tokens is 'Size that no chunk exceeds; a paragraph or a block of code may reach it to stay whole.';
comment on column ai.collections.language is 'Text search configuration of the full text.';
comment on column ai.collections.version is 'Grows with every change of what a search can find: part of cache keys. Begins with the microsecond it was made in, so that one made anew under the name is another.';
comment on column ai.collections.chunks is 'How many chunks are live.';
comment on column ai.collections.embedding_version is 'The version of the vectors that is searched.';
comment on column ai.collections.next_version is 'The version that ai.rebuild_collection() is building beside it; null: none.';
comment on column ai.collections.next_chunks is 'How many live chunks have their vector of the next version.';
comment on column ai.collections.next_error is 'Why a vector of the next version could not be made; the rebuild goes on when it is asked for again.';
comment on column ai.collections.indexed_version is 'The version that has an index of its own; another one is searched exactly.';
comment on column ai.collections.stale is 'Whether vectors of versions before embedding_version are still to be removed.';

create table ai.documents (
  tenant_id     uuid        not null,
  id            uuid        not null default ai.uuid_v7(),
  collection_id bigint      not null,
  title         text        constraint documents_title check (octet_length(title) <= 2000),
  uri           text        constraint documents_uri check (octet_length(uri) between 1 and 2000),
  content       text        not null,
  metadata      jsonb       not null default '{}' constraint documents_metadata check (jsonb_typeof(metadata) = 'object'),
  hash          bytea       not null,
  status        text        not null default 'pending' constraint documents_status check (status in ('pending', 'embedding', 'ready', 'failed')),
  error         jsonb,
  chunks        integer     not null default 0,
  revision      integer     not null default 1,
  live_revision integer,
  user_id       text        not null,
  created_at    timestamptz not null default now(),
  updated_at    timestamptz not null default now(),
  constraint documents_pkey primary key (tenant_id, id),
  constraint documents_uri_key unique (tenant_id, collection_id, uri),
  constraint documents_collection_fkey foreign key (tenant_id, collection_id) references ai.collections (tenant_id, id) on delete cascade
);
create unique index documents_hash_key on ai.documents (tenant_id, collection_id, hash) where uri is null;
comment on table ai.documents is 'What was given to ai.add_document(). A uri stands for one document in its collection, whatever its content.';
comment on column ai.documents.uri is 'Where it is from; adding another content under it replaces the document. Null: the content identifies it.';
comment on column ai.documents.hash is 'SHA-256 of title and content.';
comment on column ai.documents.status is
  'pending: nothing is embedded yet; embedding: some of it; ready: it is searched; failed: error says why, ai.retry_document() tries again. What it replaces is searched until it is ready.';
comment on column ai.documents.chunks is 'How many chunks the revision has.';
comment on column ai.documents.revision is 'Counts the contents that it has had.';
comment on column ai.documents.live_revision is 'The revision whose chunks are searched; null: none is yet.';
comment on column ai.documents.user_id is 'Who added it, and asks for its embeddings.';

create table ai.chunks (
  tenant_id     uuid        not null,
  id            bigint      not null generated always as identity,
  collection_id bigint      not null,
  document_id   uuid        not null,
  revision      integer     not null,
  position      integer     not null,
  tokens        integer     not null,
  live          boolean     not null default false,
  heading       text,
  content       text        not null,
  tsv           tsvector    not null,
  constraint chunks_pkey primary key (tenant_id, id),
  constraint chunks_document_key unique (tenant_id, document_id, revision, position),
  constraint chunks_document_fkey foreign key (tenant_id, document_id) references ai.documents (tenant_id, id) on delete cascade
);
create index chunks_collection on ai.chunks (tenant_id, collection_id, id);
-- One lexeme of each tsv names the collection, so that a search intersects with it and reads no other collection's entries.
create index chunks_tsv on ai.chunks using gin (tsv) where live;
comment on table ai.chunks is 'Documents in pieces that a prompt has room for.';
comment on column ai.chunks.heading is 'The headings above it, outermost first, joined by " > ".';
comment on column ai.chunks.tokens is 'A quarter of its bytes, rounded up.';
comment on column ai.chunks.live is 'Whether it is searched.';
comment on column ai.chunks.tsv is 'Lexemes of title, headings and content, and one that names the collection.';

-- No foreign key to chunks: who removes chunks removes their vectors, by key.
create table ai.chunk_vectors (
  tenant_id     uuid         not null,
  collection_id bigint       not null,
  version       bigint       not null,
  chunk_id      bigint       not null,
  document_id   uuid         not null,
  embedding     ai.embedding not null,
  constraint chunk_vectors_pkey primary key (tenant_id, collection_id, version, chunk_id)
);
comment on table ai.chunk_vectors is
  'Vectors of live chunks, by version of the embedding. Large collections have a partial index each: ai.make_search_indexes().';

create table ai.staged_vectors (
  tenant_id     uuid         not null,
  collection_id bigint       not null,
  document_id   uuid         not null,
  version       bigint       not null,
  chunk_id      bigint       not null,
  embedding     ai.embedding not null,
  constraint staged_vectors_pkey primary key (tenant_id, collection_id, document_id, version, chunk_id)
);
comment on table ai.staged_vectors is 'Vectors on their way to ai.chunk_vectors: of documents that are not complete, or that came while it was locked.';

alter table ai.collections    enable row level security;
alter table ai.documents      enable row level security;
alter table ai.chunks         enable row level security;
alter table ai.chunk_vectors  enable row level security;
alter table ai.staged_vectors enable row level security;

alter table ai.settings
  add column max_document_bytes integer not null default 16777216
    constraint settings_max_document_bytes check (max_document_bytes between 1 and 67108864),
  add column exact_search_size bigint not null default 768000
    constraint settings_exact_search_size check (exact_search_size between 0 and 1000000000),
  add column max_search_indexes integer not null default 100
    constraint settings_max_search_indexes check (max_search_indexes between 0 and 1000);
comment on column ai.settings.max_document_bytes is 'Size of a document''s content; one byte more is PT413.';
comment on column ai.settings.exact_search_size is 'Chunks times dimensions up to which a collection is searched exactly; a larger one gets an index.';
comment on column ai.settings.max_search_indexes is 'Collections with an index of their own, the largest first; each costs every insert of a vector and every indexed search a little.';
