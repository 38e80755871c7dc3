-- migrate:up
-- What an earlier version left as it should not be, and what trouble is told by from now on.

-- Where standard_conforming_strings was off, its regular expression had lost the backslashes, and it refused nearly every endpoint. What it let pass, this one does, too.
alter table ai.artifact_stores
  drop constraint if exists artifact_stores_endpoint,
  add constraint artifact_stores_endpoint check (endpoint ~ '^https?://[A-Za-z0-9.:_\[\]-]+$' and length(endpoint) <= 300);

alter table ai.maintenance add column partition_problems jsonb not null default '{}';
comment on column ai.maintenance.partition_problems is
  'What ai.tend_partitions() cannot do at present: {"ai.make_partitions() of ai.llm_calls": {"table", "code", "message", "since"}}.';
