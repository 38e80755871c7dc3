-- migrate:up
-- What an earlier version left as it should not be, and what trouble is told by from now on.

-- Where standard_conforming_strings was off, its regular expression had lost the backslashes, and it refused nearly every endpoint. What it let pass, this one does, too.
alter table ai.artifact_stores
  drop constraint if exists artifact_stores_endpoint,
  add constraint artifact_stores_endpoint check (endpoint ~ '^https?://[A-Za-z0-9.:_\[\]-]+$' and length(endpoint) <= 300);

alter table ai.maintenance add column partition_problems jsonb not null default '{}';
comment on column ai.maintenance.partition_problems is
  'What ai.tend_partitions() cannot do at present: {"ai.make_partitions() of ai.llm_calls": {"table", "code", "message", "since"}}.';

alter table ai.vectorizers add column key_types regtype[];
comment on column ai.vectorizers.key_types is 'Under which the keys that are kept were written. Null: their columns were gone when this was first noted.';
update ai.vectorizers z
   set key_types = t.types
  from (select v.id, array_agg(a.atttypid::regtype order by k.n) as types
          from ai.vectorizers v
         cross join unnest(v.key_columns, v.key_attnums) with ordinality k (name, attnum, n)
          join pg_catalog.pg_attribute a on a.attrelid = v.table_name and a.attnum > 0 and not a.attisdropped
                                        and case when v.table_name = v.table_id then a.attnum = k.attnum else a.attname = k.name end
         group by v.id) t
 where t.id = z.id and cardinality(t.types) = cardinality(z.key_columns);
