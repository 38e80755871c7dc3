-- What changes in a vectorized table is noted as rows to embed: by triggers, and by reading the whole table.

-- Asks for the embeddings of noted rows. Where it is known that nobody could be asked, they have failed at once.
create or replace function ai.queue_rows(p_version bigint, p_tenant uuid, p_refs bigint[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_is    record;
  v_error jsonb;
begin
  select v.model, z.user_id, z.tenant_id into v_is from ai.vectorizer_versions v join ai.vectorizers z on z.id = v.vectorizer_id where v.id = p_version;
  if not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id
                  where m.tenant_id = p_tenant and m.user_id = v_is.user_id and m.enabled and t.enabled) then
    v_error := '{"class": "revoked", "code": "PT403", "message": "the user of the vectorizer is no enabled member of this tenant"}';
  elsif ai.target_model(v_is.tenant_id, 'embedding', v_is.model, null, 1) is null then
    v_error := '{"class": "no_model", "code": "PT404", "message": "the embedding model was removed or switched off"}';
  else
    perform ai.queue_embeddings(p_tenant, v_is.user_id, v_is.model, 'rows', p_refs, p_version);
    return;
  end if;
  update ai.vectorized_rows r set state = 'failed', error = v_error where r.ref = any (p_refs);
end
$$;
comment on function ai.queue_rows(bigint, uuid, bigint[]) is 'Asks for the embeddings of rows of ai.vectorized_rows, or marks them as failed.';

-- Trigger AFTER INSERT, UPDATE, DELETE, TRUNCATE, each statement, on tables of apps: a few statements, however many rows. An update
-- that leaves text, key and tenant as they were is not noted. It never makes the app's statement fail. What cannot be noted as
-- usual is tried once more with inserts alone, which cannot fail for what others do at the same time; if that fails too,
-- ai.vectorizer_problems says so.
--
-- It may be attached to any table by whoever may create triggers there; it acts only for the vectorizer's own table, and only
-- where the trigger has the transition tables: without them their names would mean temporary tables of the caller's, or views
-- with functions that would run with this function's rights.
--
-- A transaction above READ COMMITTED may be older than a version of the vectorizer, or than rows of it: what it changes is noted for the versions that it sees, what it
-- deletes as gone, and both in ai.row_changes for the versions that it does not see. As long as anything waits there, others note as gone what they delete, too,
-- so that what comes later for an older change does not bring it back.
--
-- Locks: deletes take the deleted rows' copies; a worker's report skips them. The settings make texts the same in every session.
create or replace function ai.note_changes() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set jit = off
set enable_seqscan = off
as $$
declare
  v_id       bigint := tg_argv[0];
  v_now      timestamptz := ai.now();
  v_versions bigint[];
  v_is       record;
  v_is_old   boolean := current_setting('transaction_isolation') not in ('read committed', 'read uncommitted');  -- or may be
  v_late     boolean := true;  -- changes may come to these rows that are older than this one
  v_row      text;
  v_lost     text;
  v_new      text;
  v_noted    record;
  v_state    text := 'pending';
  v_error    jsonb;
begin
  if not exists (select from ai.vectorizers z where z.id = v_id and z.table_name = tg_relid) then
    -- Stopped; or so new that this transaction's snapshot does not have it.
    if v_is_old then
      insert into ai.vectorizer_problems (vectorizer_id, table_id, error, noted_at)
      values (v_id, tg_relid, '{"class": "missed", "message": "a transaction older than the vectorizer changed rows"}', v_now);
    end if;
    return null;
  end if;
  if tg_op <> 'TRUNCATE'
     and not exists (select from pg_trigger t where t.tgrelid = tg_relid and t.tgname = tg_name
                        and (tg_op = 'DELETE' or t.tgnewtable = 'inserted') and (tg_op = 'INSERT' or t.tgoldtable = 'deleted')) then
    insert into ai.vectorizer_problems (vectorizer_id, table_id, error, noted_at)
    values (v_id, tg_relid, '{"class": "missed", "message": "the trigger is not that of ai.vectorize()"}', v_now);
    return null;
  end if;

  if not v_is_old then
    v_late := exists (select from ai.row_changes c where c.vectorizer_id = v_id);
  end if;

  for v_try in 1 .. 2 loop
    begin
      select array_agg(v.id order by v.id) into v_versions from ai.vectorizer_versions v where v.vectorizer_id = v_id and v.status <> 'retired';
      if tg_op = 'TRUNCATE' then
        exit when v_try = 2;
        if v_late then
          insert into ai.row_changes (vectorizer_id, versions, refs, noted_at) values (v_id, '{}', array[nextval('ai.vectorized_rows_ref_seq')], v_now);
        end if;
        if not v_is_old then
          delete from ai.vectorized_rows r where r.row_key >= v_id || '/' and r.row_key < v_id || '0';
        end if;
        return null;
      end if;

      select * into v_is from ai.row_expressions(v_id);
      v_row := format('select %s as row_key, %s as content, %s as tenant', v_is.row_key, v_is.content, v_is.tenant);
      v_lost := format('select o.row_key, o.tenant, null as content from (%s from deleted t) o where o.content is not null and o.tenant is not null', v_row)
        || case when tg_op = 'UPDATE' then format(' and not exists (select from (%s from inserted t) n where n.row_key = o.row_key and n.tenant = o.tenant and n.content is not null)', v_row)
                else '' end;
      v_new := format('select n.row_key, n.tenant, n.content from (%s from inserted t) n %s where n.content is not null and n.tenant is not null %s',
                      v_row,
                      case when tg_op = 'UPDATE' then format('left join (%s from deleted t) o on o.row_key = n.row_key and o.tenant = n.tenant', v_row) else '' end,
                      case when tg_op = 'UPDATE' then 'and o.content is distinct from n.content' else '' end);
      if tg_op in ('UPDATE', 'DELETE') then
        if v_try = 1 then
          execute format('delete from ai.vectorized_rows r using (%s) l where r.row_key = l.row_key and r.version = any ($1)', v_lost) using v_versions;
        end if;
        if v_try = 2 or v_late then
          execute format('insert into ai.vectorized_rows (version, tenant_id, row_key, state, noted_at)
                          select v.id, l.tenant, l.row_key, ''gone'', $2 from (%s) l cross join unnest($1) v (id)', v_lost) using v_versions, v_now;
        end if;
      end if;
      if tg_op in ('INSERT', 'UPDATE') then
        for v_noted in execute format($sql$
          with noted as (
            insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, error, noted_at)
            select v.id, n.tenant, n.row_key, $2, n.content, $3, $4 from (%s) n cross join unnest($1) v (id)
            returning ref, version, tenant_id)
          select version, tenant_id, array_agg(ref order by ref) as refs from noted group by version, tenant_id $sql$, v_new)
          using v_versions, v_state, v_error, v_now
        loop
          if v_try = 1 then
            perform ai.queue_rows(v_noted.version, v_noted.tenant_id, v_noted.refs);
          end if;
        end loop;
      end if;
      if v_is_old then
        execute format($sql$
          insert into ai.row_changes (vectorizer_id, versions, refs, tenant_id, row_key, content, noted_at)
          select $1, $2, array[nextval('ai.vectorized_rows_ref_seq'), nextval('ai.vectorized_rows_ref_seq')], c.tenant, c.row_key, c.content, $3 from (%s) c $sql$,
          concat_ws(' union all ', case when tg_op <> 'INSERT' then v_lost end, case when tg_op <> 'DELETE' then v_new end))
          using v_id, v_versions, v_now;
      end if;
      return null;
    exception when others then
      -- The message may hold what is in the row; Martlet's own does not. After a conflict all is well but late: what has no
      -- job is queued by ai.fill_vectorizers().
      v_error := jsonb_strip_nulls(jsonb_build_object('class', 'not_queued', 'code', sqlstate, 'message', case when sqlstate like 'PT%' then sqlerrm end));
      if sqlstate not in ('40001', '40P01', '55P03') then
        v_state := 'failed';
      end if;
    end;
  end loop;
  insert into ai.vectorizer_problems (vectorizer_id, table_id, error, noted_at) values (v_id, tg_relid, v_error || '{"class": "missed"}', v_now);
  return null;
end
$$;
comment on function ai.note_changes() is 'Trigger on an app''s table: notes which rows are to be embedded, and forgets those that are gone.';

-- The query by which ai.read_rows() reads the table, with its caller's rights.
create or replace function ai.rows_query(p_vectorizer bigint) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not ai.manages(p_vectorizer) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  return (select format('select %s as row_key, %s as content, %s as tenant from %s t', e.row_key, e.content, e.tenant, z.table_name)
            from ai.vectorizers z cross join ai.row_expressions(z.id) e where z.id = p_vectorizer);
end
$$;
comment on function ai.rows_query(bigint) is 'SELECT of key, text and tenant of a vectorized table''s rows.';

-- Notes rows whose text is not the noted one, in all versions, and asks for their embeddings. Gives how many. The table is locked
-- against writes by the caller, so that no newer text is overtaken.
create or replace function ai.note_rows(p_vectorizer bigint, p_keys text[], p_contents text[], p_tenants uuid[]) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_noted record;
  v_count bigint := 0;
begin
  if not ai.manages(p_vectorizer) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  if not ai.acts_as_owner() then
    perform ai.require('inference:execute');
  end if;
  for v_noted in
    with noted as (
      insert into ai.vectorized_rows (version, tenant_id, row_key, state, content, noted_at)
      select v.id, n.tenant, n.row_key, 'pending', left(n.content, z.max_characters), ai.now()
        from unnest(p_keys, p_contents, p_tenants) n (row_key, content, tenant)
        join ai.vectorizers z on z.id = p_vectorizer
        join ai.vectorizer_versions v on v.vectorizer_id = z.id and v.status <> 'retired'
        left join lateral (select r.ref, r.state, r.content, r.tenant_id from ai.vectorized_rows r
                            where r.row_key = n.row_key and r.version = v.id order by r.ref desc limit 1) l on true
       where n.row_key like p_vectorizer || '/%' and n.content is not null and n.tenant = coalesce(z.tenant_id, n.tenant)
         and (l.ref is null or l.state = 'gone' or (l.content, l.tenant_id) is distinct from (n.content, n.tenant))
      returning ref, version, tenant_id)
    select n.version, n.tenant_id, array_agg(n.ref order by n.ref) as refs, v.status
      from noted n join ai.vectorizer_versions v on v.id = n.version group by n.version, n.tenant_id, v.status
  loop
    perform ai.queue_rows(v_noted.version, v_noted.tenant_id, v_noted.refs);
    v_count := v_count + case v_noted.status when 'current' then cardinality(v_noted.refs) else 0 end;
  end loop;
  return v_count;
end
$$;
comment on function ai.note_rows(bigint, text[], text[], uuid[]) is 'Notes rows with a new text; gives how many. Internal: ai.read_rows().';

-- Forgets what is not among the keys (null: nothing), and the problems that made it necessary to read everything. Where a column is gone, what was embedded with it is
-- forgotten, too, and the table may be searched again by the columns that are left.
create or replace function ai.note_all_read(p_vectorizer bigint, p_keys text[]) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_left text[];
begin
  if not ai.manages(p_vectorizer) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  perform ai.apply_row_changes(null, p_vectorizer);
  delete from ai.vectorized_rows r
   where p_keys is not null and r.row_key >= p_vectorizer || '/' and r.row_key < p_vectorizer || '0'
     and not exists (select from unnest(p_keys) k where k = r.row_key);
  delete from ai.vectorizer_problems p where p.vectorizer_id = p_vectorizer;
  update ai.vectorizers z set key_types = k.types
    from ai.vectorizers o
   cross join lateral (select ai.column_types(o.table_name, ai.column_names(o.table_name, o.table_id, o.key_columns, o.key_attnums)) as types) k
   where z.id = p_vectorizer and o.id = z.id and k.types is distinct from z.key_types;
  select array_remove(n.columns, null) into v_left
    from ai.vectorizers z cross join lateral (select ai.column_names(z.table_name, z.table_id, z.columns, z.attnums) as columns) n
   where z.id = p_vectorizer and array_position(n.columns, null) is not null;
  if v_left <> '{}' then
    delete from ai.vectorized_rows r
     where r.row_key >= p_vectorizer || '/' and r.row_key < p_vectorizer || '0' and r.state <> 'gone'
       and exists (select from ai.vectorized_rows n where n.row_key = r.row_key and n.version = r.version and n.ref > r.ref);
    update ai.vectorizers z set columns = v_left, attnums = ai.column_numbers(z.table_name, v_left), table_id = z.table_name where z.id = p_vectorizer;
  end if;
end
$$;
comment on function ai.note_all_read(bigint, text[]) is 'Forgets rows that the table does not have. Internal: ai.read_rows().';

-- Reads the whole table with the caller's rights, and gives how many rows are to be embedded. Locks it against writes until the
-- transaction ends. Raises PT400 outside of READ COMMITTED, and PT403 where policies would hide rows from the caller.
create or replace function ai.read_rows(p_vectorizer bigint, p_first boolean) returns bigint
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
as $$
declare
  c_batch    constant integer := 3200;
  v_query    text := ai.rows_query(p_vectorizer);
  v_table    regclass := (select z.table_name from ai.vectorizers z where z.id = p_vectorizer);
  v_row      record;
  v_keys     text[] := '{}';
  v_contents text[] := '{}';
  v_tenants  uuid[] := '{}';
  v_in       integer := 0;
  v_count    bigint := 0;
begin
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'this needs isolation level READ COMMITTED' using errcode = 'PT400', detail = 'What was committed since the transaction began would be missed.';
  end if;
  execute format('lock table %s in share row exclusive mode', v_table);
  if row_security_active(v_table) then
    raise exception 'row-level security hides rows of % from this role', v_table
      using errcode = 'PT403', hint = 'Call it as the owner of the table, without FORCE ROW LEVEL SECURITY, or with BYPASSRLS.';
  end if;
  for v_row in execute v_query loop
    continue when v_row.content is null or v_row.tenant is null;
    v_in := v_in + 1;
    v_keys[v_in] := v_row.row_key;
    v_contents[v_in] := v_row.content;
    v_tenants[v_in] := v_row.tenant;
    if v_in = c_batch then
      v_count := v_count + ai.note_rows(p_vectorizer, v_keys, v_contents, v_tenants);
      v_keys := '{}';
      v_contents := '{}';
      v_tenants := '{}';
      v_in := 0;
    end if;
  end loop;
  if v_in > 0 then
    v_count := v_count + ai.note_rows(p_vectorizer, v_keys, v_contents, v_tenants);
  end if;
  v_keys := null;
  if not p_first then
    execute format('select coalesce(array_agg(q.row_key), ''{}'') from (%s) q where q.content is not null and q.tenant is not null', v_query) into v_keys;
  end if;
  perform ai.note_all_read(p_vectorizer, v_keys);
  return v_count;
end
$$;
comment on function ai.read_rows(bigint, boolean) is 'Notes the rows of a vectorized table that have a new text; gives how many. Internal: ai.vectorize(), ai.refresh_vectorizer().';

-- For what triggers have not seen: rows that came by replication, with triggers off, straight into a partition or with one, and columns of another type.
create or replace function ai.refresh_vectorizer(name text) returns bigint
language sql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$ select ai.read_rows(ai.managed_vectorizer(name), false) $$;
comment on function ai.refresh_vectorizer(text) is 'Looks at all rows of a vectorized table again; gives how many have a new text.';

revoke execute on function ai.queue_rows(bigint, uuid, bigint[]), ai.note_changes(), ai.rows_query(bigint), ai.note_rows(bigint, text[], text[], uuid[]),
  ai.note_all_read(bigint, text[]), ai.read_rows(bigint, boolean), ai.refresh_vectorizer(text) from public;
-- The trigger function needs no caller's right when it fires, only when a trigger is made of it.
grant execute on function ai.note_changes(), ai.rows_query(bigint), ai.note_rows(bigint, text[], text[], uuid[]),
  ai.note_all_read(bigint, text[]), ai.read_rows(bigint, boolean), ai.refresh_vectorizer(text) to ai_user;
