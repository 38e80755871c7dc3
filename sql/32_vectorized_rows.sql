-- What becomes of vectorized rows: progress, retries, another model, the end, and the upkeep that a worker calls.

-- What is wrong with the keys that are kept: they were written under another type, and another text may have become of them. Null: nothing. All types of
-- whole numbers write the same.
create or replace function ai.changed_key(p_vectorizer bigint) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('class', 'key_type', 'message', format('the type of the key column %s was changed from %s to %s', k.name, k.noted, k.present),
                            'hint', 'select ai.refresh_vectorizer(…);')
    from ai.vectorizers z
   cross join lateral (select ai.column_names(z.table_name, z.table_id, z.key_columns, z.key_attnums) as names) n
   cross join lateral unnest(n.names, z.key_types, ai.column_types(z.table_name, n.names)) k (name, noted, present)
   where z.id = p_vectorizer and k.noted <> k.present
     and not (k.noted in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) and k.present in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype))
   limit 1
$$;
comment on function ai.changed_key(bigint) is 'The problem of a vectorizer whose key has another type than its rows were noted with; null: none.';

-- How far the embeddings are. To whom: who owns the table, who may read what the whole tenant asks, the owner of the schema. A row counts by its
-- newest text. Rates are of the last minute.
create or replace function ai.vectorize_progress(name text default null)
returns table (vectorizer text, table_name text, model text, status text, total bigint, embedded bigint, pending bigint, failed bigint, eta interval,
               last_error jsonb, problem jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  return query
    select z.name, z.table_name::text, v.model, v.status, r.total, r.embedded, r.pending, r.failed,
           case when r.pending = 0 then interval '0' when r.lately > 0 then r.pending * interval '1 minute' / r.lately end,
           r.last_error,
           case when c.oid is null then '{"class": "no_table", "message": "the table was dropped"}'::jsonb
                else coalesce(ai.changed_key(z.id), (select p.error || jsonb_build_object('at', p.noted_at) from ai.vectorizer_problems p
                                                      where p.vectorizer_id = z.id and p.table_id = z.table_name order by p.id desc limit 1)) end
      from ai.vectorizers z
      join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status <> 'retired'
      left join pg_class c on c.oid = z.table_name
     cross join lateral (
       select count(*) as total, count(*) filter (where n.state = 'embedded') as embedded, count(*) filter (where n.state = 'pending') as pending,
              count(*) filter (where n.state = 'failed') as failed, count(*) filter (where n.embedded_at > ai.now() - interval '1 minute') as lately,
              (array_agg(n.error order by n.ref desc) filter (where n.state = 'failed'))[1] as last_error
         from (select distinct on (r.row_key) r.ref, r.state, r.error, r.embedded_at
                 from ai.vectorized_rows r
                where r.row_key >= z.id || '/' and r.row_key < z.id || '0' and r.version = v.id
                order by r.row_key, r.ref desc) n
        where n.state <> 'gone') r
     where (vectorize_progress.name is null or z.name = vectorize_progress.name)
       and (ai.manages(z.id) or (z.tenant_id = (select ai.tenant_for('inference:read'))))
     order by z.name, v.id;
end
$$;
comment on function ai.vectorize_progress(text) is 'Rows of vectorized tables by state, with an estimate of the time left; building: another model''s, beside the current one''s.';

-- Asks again for what failed, in all versions, and gives how many rows. Locks them, skipping what others hold.
create or replace function ai.vectorize_retry(name text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_id    bigint := ai.managed_vectorizer(name);
  v_again record;
  v_count bigint := 0;
begin
  if not ai.acts_as_owner() then
    perform ai.require('inference:execute');
  end if;
  for v_again in
    with again as (
      update ai.vectorized_rows r set state = 'pending', error = null
       where r.ref = any (array(select f.ref from ai.vectorizer_versions v join ai.vectorized_rows f on f.version = v.id and f.state = 'failed'
                                 where v.vectorizer_id = v_id and v.status <> 'retired' for update of f skip locked))
      returning r.ref, r.version, r.tenant_id)
    select a.version, a.tenant_id, array_agg(a.ref order by a.ref) as refs from again a group by a.version, a.tenant_id
  loop
    perform ai.queue_rows(v_again.version, v_again.tenant_id, v_again.refs);
    v_count := v_count + cardinality(v_again.refs);
  end loop;
  return v_count;
end
$$;
comment on function ai.vectorize_retry(text) is 'Asks again for the embeddings that failed; gives how many.';

-- The texts of one version as rows of another, to be embedded.
create or replace function ai.copy_rows(p_from bigint, p_to bigint, p_vectorizer bigint) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_noted record;
  v_count bigint := 0;
begin
  for v_noted in
    with noted as (
      insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, noted_at)
      select p_to, n.tenant_id, n.row_key, 'pending', n.content, ai.now()
        from (select distinct on (r.row_key) r.* from ai.vectorized_rows r
               where r.row_key >= p_vectorizer || '/' and r.row_key < p_vectorizer || '0' and r.version = p_from
               order by r.row_key, r.ref desc) n
       where n.state <> 'gone'
         -- What was truncated, and is not removed yet because somebody holds it.
         and n.ref > all (array(select c.refs[1] from ai.row_changes c where c.vectorizer_id = p_vectorizer and c.row_key is null))
      returning ref, tenant_id)
    select n.tenant_id, array_agg(n.ref order by n.ref) as refs from noted n group by n.tenant_id
  loop
    perform ai.queue_rows(p_to, v_noted.tenant_id, v_noted.refs);
    v_count := v_count + cardinality(v_noted.refs);
  end loop;
  return v_count;
end
$$;
comment on function ai.copy_rows(bigint, bigint, bigint) is 'Notes the texts of one version for another; gives how many.';

-- The part of ai.revectorize() that needs Martlet's own tables. The table is locked by the caller.
create or replace function ai.start_building(p_vectorizer bigint, p_model text) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_current record;
  v_id      bigint;
begin
  if not ai.manages(p_vectorizer) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  if not ai.acts_as_owner() then
    perform ai.require('inference:execute');
  end if;
  perform ai.check_embedding_model((select z.tenant_id from ai.vectorizers z where z.id = p_vectorizer), p_model);
  update ai.vectorizer_versions v set status = 'retired', retired_at = ai.now() where v.vectorizer_id = p_vectorizer and v.status = 'building';
  select v.id, v.model into v_current from ai.vectorizer_versions v where v.vectorizer_id = p_vectorizer and v.status = 'current';
  if v_current.model = p_model then
    return 0;
  end if;
  -- What the current version does not have yet would not be copied.
  perform ai.apply_row_changes(null, p_vectorizer);
  insert into ai.vectorizer_versions (vectorizer_id, model, status) values (p_vectorizer, p_model, 'building') returning id into v_id;
  return ai.copy_rows(v_current.id, v_id, p_vectorizer);
end
$$;
comment on function ai.start_building(bigint, text) is 'Begins a version beside the current one; gives how many rows it has. Internal: ai.revectorize().';

-- Another model: its embeddings are made beside the present ones, which are searched until the others are complete; changes
-- meanwhile go to both. Gives how many rows there are to embed. The present model's name gives up what is being built.
-- Waits for open writes of the table, and locks it against new ones until the transaction ends: a transaction that knows of one version
-- only must not write when the texts have been copied. Raises PT400, PT403, PT404.
create or replace function ai.revectorize(name text, model text) returns bigint
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_id bigint := ai.managed_vectorizer(name);
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'What was committed since the transaction began would be missed.';
  end if;
  execute pg_catalog.format('lock table %s in share row exclusive mode', (select z.table_name from ai.vectorizers z where z.id = v_id));
  return ai.start_building(v_id, model);
end
$$;
comment on function ai.revectorize(text, text) is 'Embeds a vectorized table with another model, beside the present one; switched when complete. Gives how many rows.';

-- Takes a vectorizer off; its rows are removed by ai.fill_vectorizers(), so that this waits for no worker.
create or replace function ai.remove_vectorizer(p_vectorizer bigint) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not ai.manages(p_vectorizer) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  delete from ai.vectorizers z where z.id = p_vectorizer;
end
$$;
comment on function ai.remove_vectorizer(bigint) is 'Takes a vectorizer off. Internal: ai.stop_vectorizing().';

-- Ends it: drops the triggers, where the caller may (those that stay do nothing), and removes texts and embeddings soon after.
create or replace function ai.stop_vectorizing(name text) returns void
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_id      bigint := ai.managed_vectorizer(name);
  v_trigger record;
begin
  for v_trigger in
    select t.tgname, t.tgrelid::regclass as relation
      from pg_trigger t join ai.vectorizers z on z.table_name = t.tgrelid
     where z.id = v_id and t.tgname in ('martlet_' || v_id || '_insert', 'martlet_' || v_id || '_update', 'martlet_' || v_id || '_delete', 'martlet_' || v_id || '_truncate')
  loop
    begin
      execute pg_catalog.format('drop trigger %I on %s', v_trigger.tgname, v_trigger.relation);
    exception when insufficient_privilege then
      null;
    end;
  end loop;
  perform ai.remove_vectorizer(v_id);
end
$$;
comment on function ai.stop_vectorizing(text) is 'Ends the vectorizing of a table and removes its embeddings.';

-- What keeps the embeddings of tables in order; a worker calls it every few seconds, one at a time. Each part is bounded, so that
-- the next call goes on. Gives how many rows it touched. Locks rows of ai.vectorized_rows, skipping what others hold.
create or replace function ai.fill_vectorizers(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_many constant integer := 10000;
  v_one  record;
  v_idle record;
  v_done integer;
  v_all  integer := 0;
begin
  if not exists (select from ai.vectorizer_versions) then
    return 0;
  end if;

  -- Tables that were dropped, and vectorizers that were stopped. What an app's open transaction holds is left for the next time.
  delete from ai.vectorizers z
   where z.id = any (array(select g.id from ai.vectorizers g where not exists (select from pg_class c where c.oid = g.table_name) for update skip locked));
  update ai.vectorizer_versions v set status = 'retired', retired_at = p_now
   where v.id = any (array(select g.id from ai.vectorizer_versions g
                            where g.status <> 'retired' and not exists (select from ai.vectorizers z where z.id = g.vectorizer_id) for update skip locked));
  delete from ai.vectorizer_problems p
   where p.id = any (array(select g.id from ai.vectorizer_problems g
                            where not exists (select from ai.vectorizers z where z.id = g.vectorizer_id and z.table_name = g.table_id)
                               or exists (select from ai.vectorizer_problems n where n.vectorizer_id = g.vectorizer_id and n.id > g.id) for update skip locked));
  perform ai.note_columns();
  v_all := ai.apply_row_changes(100000, null);

  -- A version that is complete takes the place of the current one. Of a vectorizer for all tenants none holds up the others by what is its own doing.
  for v_one in
    select b.id, b.vectorizer_id, b.model
      from ai.vectorizer_versions b join ai.vectorizer_versions c on c.vectorizer_id = b.vectorizer_id and c.status = 'current' join ai.vectorizers z on z.id = b.vectorizer_id
     where b.status = 'building'
       and not exists (select from ai.vectorized_rows r
                        where r.version = b.id and r.state in ('pending', 'failed')
                          and (z.tenant_id is null and r.state = 'failed' and r.error ->> 'class' in ('revoked', 'limit', 'budget')) is not true)
       and not exists (select from ai.row_changes o where o.vectorizer_id = b.vectorizer_id and b.id <> all (o.versions))
       for update skip locked
  loop
    update ai.vectorizer_versions v set status = 'retired', retired_at = p_now where v.vectorizer_id = v_one.vectorizer_id and v.status = 'current';
    update ai.vectorizer_versions v set status = 'current' where v.id = v_one.id;
    update ai.vectorizers z set model = v_one.model where z.id = v_one.vectorizer_id;
  end loop;

  for v_one in select v.id, v.vectorizer_id, v.status, v.retired_at, v.model from ai.vectorizer_versions v order by v.id loop
    if v_one.status = 'retired' then
      v_done := ai.remove_rows(v_one.id, v_one.vectorizer_id, c_many);
      -- Kept for a day: a transaction that began before may still note rows for it.
      delete from ai.vectorizer_versions v where v_done = 0 and v.id = v_one.id and v.retired_at < p_now - interval '1 day';
      v_all := v_all + v_done;
      continue;
    end if;

    -- Rows that are gone: what is older of their keys, and when nothing of it is left or still to come, they themselves. What another holds is left for the next time.
    with gone as materialized (
      select r.ref, r.row_key from ai.vectorized_rows r where r.version = v_one.id and r.state = 'gone' order by r.ref limit c_many
    )
    delete from ai.vectorized_rows r
     where r.ref = any (array(select o.ref from gone g join ai.vectorized_rows o on o.row_key = g.row_key and o.version = v_one.id and o.ref < g.ref
                               for update of o skip locked));
    get diagnostics v_done = row_count;
    v_all := v_all + v_done;
    delete from ai.vectorized_rows r
     where r.ref = any (array(select g.ref from ai.vectorized_rows g
                               where g.version = v_one.id and g.state = 'gone'
                                 and g.ref < coalesce((select min(c.refs[1]) from ai.row_changes c where c.vectorizer_id = v_one.vectorizer_id), 9223372036854775807)
                                 and not exists (select from ai.vectorized_rows o where o.row_key = g.row_key and o.version = g.version and o.ref < g.ref)
                               order by g.ref limit c_many for update of g skip locked));
    get diagnostics v_done = row_count;
    v_all := v_all + v_done;

    -- What waits although nobody was asked for it: noted under a conflict, or while another transaction held it. Jobs are
    -- done in their order, so it is older than all of them before long.
    for v_idle in
      select p.tenant_id, array_agg(p.ref order by p.ref) as refs
        from (select r.ref, r.tenant_id from ai.vectorized_rows r
               where r.version = v_one.id and r.state = 'pending'
                 and r.ref < coalesce((select min(j.refs[1]) from ai.embedding_jobs j where j.source = 'rows' and j.version = v_one.id), 9223372036854775807)
               order by r.ref limit c_many for update skip locked) p
       group by p.tenant_id
    loop
      perform ai.queue_rows(v_one.id, v_idle.tenant_id, v_idle.refs);
      v_all := v_all + cardinality(v_idle.refs);
    end loop;
  end loop;

  -- Older texts that two reports left behind, each unaware of the other.
  delete from ai.vectorized_rows r
   where r.ref = any (array(select o.ref from (select n.* from ai.vectorized_rows n where n.older_left order by n.ref limit c_many) n
                              join ai.vectorized_rows o on o.row_key = n.row_key and o.version = n.version and o.ref < n.ref for update of o skip locked));
  get diagnostics v_done = row_count;
  update ai.vectorized_rows r set older_left = false
   where r.ref = any (array(select n.ref from ai.vectorized_rows n
                             where n.older_left and not exists (select from ai.vectorized_rows o where o.row_key = n.row_key and o.version = n.version and o.ref < n.ref)
                             order by n.ref limit c_many for update of n skip locked));
  return v_all + v_done;
end
$$;
comment on function ai.fill_vectorizers(timestamptz) is
  'Keeps embeddings of tables in order: switches complete versions, removes what is over, asks for what nobody was asked for; gives how many rows.';

create or replace function ai.column_numbers(p_table oid, p_names text[]) returns smallint[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.attnum order by c.n)
    from unnest(p_names) with ordinality c (name, n)
    left join pg_attribute a on a.attrelid = p_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped
$$;
comment on function ai.column_numbers(oid, text[]) is 'Numbers of a table''s columns.';

-- Names and numbers of columns as they are now, so that a restore finds them by name, and after it a renaming is followed.
create or replace function ai.note_columns() returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  with now as materialized (
    select z.id, z.table_name::oid as table_id, c.*, ai.column_numbers(z.table_name, c.columns) as attnums, ai.column_numbers(z.table_name, c.keys) as key_attnums,
           (ai.column_numbers(z.table_name, array[c.tenant]))[1] as tenant_attnum
      from ai.vectorizers z
     cross join lateral (select ai.column_names(z.table_name, z.table_id, z.columns, z.attnums) as columns,
                                ai.column_names(z.table_name, z.table_id, z.key_columns, z.key_attnums) as keys,
                                (ai.column_names(z.table_name, z.table_id, array[z.tenant_column], array[z.tenant_attnum]))[1] as tenant offset 0) c
     where (c.columns, c.keys, c.tenant, z.table_id) is distinct from (z.columns, z.key_columns, z.tenant_column, z.table_name::oid)
       and array_position(c.columns, null) is null and array_position(c.keys, null) is null and (c.tenant is null) = (z.tenant_column is null)
       for update of z skip locked
  )
  update ai.vectorizers z
     set columns = n.columns, key_columns = n.keys, tenant_column = n.tenant, table_id = n.table_id, attnums = n.attnums, key_attnums = n.key_attnums,
         tenant_attnum = n.tenant_attnum
    from now n where n.id = z.id
$$;
comment on function ai.note_columns() is 'Keeps the noted names and numbers of vectorized tables'' columns up to date. Internal: ai.fill_vectorizers().';

-- Notes changes by transactions with old snapshots for the versions that these did not see, and gives how many rows it touched; nobody is asked yet.
-- Of one vectorizer, waiting for who holds them; or (null) of all, at most p_many, skipping what others hold.
create or replace function ai.apply_row_changes(p_many integer, p_vectorizer bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_cut  record;
  v_done integer;
  v_all  integer;
begin
  if not exists (select from ai.row_changes c where p_vectorizer is null or c.vectorizer_id = p_vectorizer) then
    return 0;
  end if;
  with taken as (
    delete from ai.row_changes c
     where c.id = any (case when p_vectorizer is null then array(select o.id from ai.row_changes o where o.row_key is not null order by o.id limit p_many for update skip locked)
                            else array(select o.id from ai.row_changes o where o.row_key is not null and o.vectorizer_id = p_vectorizer) end)
    returning c.vectorizer_id, c.versions, c.refs, c.tenant_id, c.row_key, c.content, c.noted_at
  ), noted as (
    insert into ai.vectorized_rows (ref, version, tenant_id, row_key, state, content, noted_at) overriding system value
    select t.refs[v.n], v.id, t.tenant_id, t.row_key, case when t.content is null then 'gone' else 'pending' end, t.content, t.noted_at
      from taken t
     cross join lateral (select o.id, row_number() over (order by o.id) as n from ai.vectorizer_versions o
                          where o.vectorizer_id = t.vectorizer_id and o.status <> 'retired' and o.id <> all (t.versions)) v
  )
  select count(*) into v_all from taken;

  -- A table that was truncated loses what is older; what was noted before it has to be there by then.
  for v_cut in
    select c.id, c.vectorizer_id, c.refs[1] as ref from ai.row_changes c
     where c.row_key is null and (p_vectorizer is null or c.vectorizer_id = p_vectorizer)
       and not exists (select from ai.row_changes o where o.vectorizer_id = c.vectorizer_id and o.row_key is not null and o.id < c.id)
     order by c.id for update skip locked
  loop
    delete from ai.vectorized_rows r
     where r.ref = any (array(select o.ref from ai.vectorized_rows o
                               where o.row_key >= v_cut.vectorizer_id || '/' and o.row_key < v_cut.vectorizer_id || '0' and o.ref < v_cut.ref
                               limit p_many for update skip locked));
    get diagnostics v_done = row_count;
    delete from ai.row_changes c
     where c.id = v_cut.id
       and not exists (select from ai.vectorized_rows o
                        where o.row_key >= v_cut.vectorizer_id || '/' and o.row_key < v_cut.vectorizer_id || '0' and o.ref < v_cut.ref);
    v_all := v_all + v_done;
  end loop;
  return v_all;
end
$$;
comment on function ai.apply_row_changes(integer, bigint) is
  'Notes what old snapshots changed for the versions they did not see; gives how many. Internal: ai.fill_vectorizers(), ai.start_building().';

-- Removes rows of a retired version, at most p_many a call, and gives how many.
create or replace function ai.remove_rows(p_version bigint, p_vectorizer bigint, p_many integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_count integer;
begin
  delete from ai.vectorized_rows r
   where r.ref = any (array(select o.ref from ai.vectorized_rows o
                             where o.row_key >= p_vectorizer || '/' and o.row_key < p_vectorizer || '0' and o.version = p_version
                             order by o.row_key, o.ref limit p_many for update skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.remove_rows(bigint, bigint, integer) is 'Removes rows of a retired version; gives how many. Internal: ai.fill_vectorizers().';

revoke execute on function ai.changed_key(bigint), ai.vectorize_progress(text), ai.vectorize_retry(text), ai.copy_rows(bigint, bigint, bigint), ai.start_building(bigint, text),
  ai.revectorize(text, text), ai.remove_vectorizer(bigint), ai.stop_vectorizing(text), ai.fill_vectorizers(timestamptz), ai.note_columns(), ai.column_numbers(oid, text[]),
  ai.apply_row_changes(integer, bigint), ai.remove_rows(bigint, bigint, integer) from public;
grant execute on function ai.vectorize_progress(text), ai.vectorize_retry(text), ai.start_building(bigint, text), ai.revectorize(text, text),
  ai.remove_vectorizer(bigint), ai.stop_vectorizing(text) to ai_user;
