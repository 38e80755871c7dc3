-- migrate:up
-- What a generation costs on disk and in the log of the database (docs/counts.md; Tests/Counts holds it).

-- An update logs what lies between the first and the last byte that changed. The status was the fifth column, before the prompt, and every
-- change of it logged the prompt again: 0.27 KB at each claim and each end. It takes the place of the purpose, behind all that is written
-- once, by exchanging names: a dropped column would be a hole in this table that new partitions have not, and every row would be converted.
do $$
begin
  -- Reads the status. sql/ makes it again.
  if exists (select from pg_trigger t where t.tgrelid = 'ai.generations'::regclass and t.tgname = 'batch_priority') then
    drop trigger batch_priority on ai.generations;
  end if;
end
$$;
alter table ai.generations
  drop constraint generations_words,
  alter column status drop default,
  alter column status drop not null;
alter table ai.generations rename column status to status_or_purpose;
alter table ai.generations rename column purpose to status;
alter table ai.generations rename column status_or_purpose to purpose;
update ai.generations set status = purpose, purpose = status;
alter table ai.generations
  alter column status set default 'queued',
  alter column status set not null,
  add constraint generations_words check (ai.is_generation(kind, status, priority, cache, purpose));
comment on column ai.generations.status is 'queued, running, and one of the ends: succeeded, failed, cancelled, rejected.';
comment on column ai.generations.purpose is
  'Made by Martlet itself: query (the vector of a question), moderation, chunks and rows (embeddings of documents and of an app''s table); null: asked by an app.';

-- Half of each page was kept free for updates, for good: what has ended is never updated again. At 66 % a row leaves its page more often
-- when many of a page end at once, and what a vacuum frees is used again. New partitions get the same from ai.make_partitions().
do $$
declare
  v_part regclass;
begin
  for v_part in select i.inhrelid::regclass from pg_inherits i where i.inhparent = 'ai.generations'::regclass order by 1 loop
    execute format('alter table %s set (fillfactor = 66, autovacuum_vacuum_scale_factor = 0.1)', v_part);
  end loop;
end
$$;

-- Each claim asks which of the listed lanes have limits; most have none, and every tenant has three lanes.
create index lanes_limited on ai.lanes (id) where counters <> '{}';
-- From one tenant to the next one that has something queued.
create index active_lanes_tenant on ai.active_lanes (tenant_id, rank, lane_id);
