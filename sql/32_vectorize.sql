-- ai.vectorize(): triggers on an app's table note what changes, and its embeddings follow.
--
-- Whose rights count: what belongs to the app (its table, its policies, their functions) is only ever read with the rights of
-- who calls, never with those of Martlet's owner, whom code in a policy would then run as. The trigger function is a
-- definer, but reads nothing except the rows of the statement that fired it, and makes them text by their types'
-- output functions: concat(), which no cast of the app's can hook into.

-- Names as they are now; null: gone. In the table they were noted for columns are known by number, which survives renaming; in a
-- restored one, where numbers may differ, by name.
create or replace function ai.column_names(p_table oid, p_noted_for oid, p_names text[], p_attnums smallint[]) returns text[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.attname::text order by c.n)
    from unnest(p_names, p_attnums) with ordinality c (name, attnum, n)
    left join pg_attribute a on a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
                            and case when p_table = p_noted_for then a.attnum = c.attnum else a.attname = c.name end
$$;
comment on function ai.column_names(oid, oid, text[], smallint[]) is 'Present names of noted columns; null for those that are gone.';

-- What a column's type is, below domains; and whether its text is the same in every session, so that it can be part of a key.
create or replace function ai.key_type(p_table oid, p_column text, out type_id oid, out usable boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with recursive base as (
    select t.oid, t.typbasetype, t.typtype, t.typcategory
      from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = p_table and a.attname = p_column and not a.attisdropped
    union all
    select t.oid, t.typbasetype, t.typtype, t.typcategory from base b join pg_type t on t.oid = b.typbasetype
  )
  select b.oid, b.typcategory in ('S', 'E', 'B', 'I') or b.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype, 'oid'::regtype,
           'uuid'::regtype, 'date'::regtype, 'timestamp'::regtype, 'timestamptz'::regtype, 'bytea'::regtype, 'name'::regtype)
    from base b where b.typbasetype = 0
$$;
comment on function ai.key_type(oid, text) is 'Type of a column, and whether a primary key may have it.';

create or replace function ai.column_types(p_table oid, p_names text[]) returns regtype[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.atttypid::regtype order by c.n)
    from unnest(p_names) with ordinality c (name, n)
    left join pg_attribute a on a.attrelid = p_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped
$$;
comment on function ai.column_types(oid, text[]) is 'Types of a table''s columns.';

-- SQL expressions over a row t of the vectorizer's table: its key, its text (null: nothing to embed) and its tenant. The key's
-- means the same under any search_path and in any session. Raises PT409 where the table or its key is gone.
create or replace function ai.row_expressions(p_vectorizer bigint, out row_key text, out content text, out tenant text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_is    record;
  v_parts text[];
begin
  select z.table_name::oid as table_id, z.format, z.max_characters, z.tenant_id,
         ai.column_names(z.table_name, z.table_id, z.key_columns, z.key_attnums) as keys,
         ai.column_names(z.table_name, z.table_id, z.columns, z.attnums) as columns,
         (ai.column_names(z.table_name, z.table_id, array[z.tenant_column], array[z.tenant_attnum]))[1] as tenant
    into v_is from ai.vectorizers z where z.id = p_vectorizer;
  if not found or v_is.keys is null or array_position(v_is.keys, null) is not null or (v_is.tenant_id is null and v_is.tenant is null) then
    raise exception 'the table that is vectorized, or its key, is gone' using errcode = 'PT409', hint = 'select ai.stop_vectorizing(…);';
  end if;
  select array_agg(case k.type_id
                     when 'timestamptz'::regtype then format('pg_catalog.btrim(pg_catalog.to_jsonb(pg_catalog.timezone(''UTC'', t.%I))::pg_catalog.text, ''"'')', c.name)
                     when 'timestamp'::regtype then format('pg_catalog.btrim(pg_catalog.to_jsonb(t.%I)::pg_catalog.text, ''"'')', c.name)
                     when 'date'::regtype then format('pg_catalog.btrim(pg_catalog.to_jsonb(t.%I)::pg_catalog.text, ''"'')', c.name)
                     when 'bytea'::regtype then format('pg_catalog.encode(t.%I, ''hex'')', c.name)
                     else format('pg_catalog.concat(t.%I)', c.name) end order by c.n)
    into v_parts
    from unnest(v_is.keys) with ordinality c (name, n) cross join ai.key_type(v_is.table_id, c.name) k;
  row_key := format('pg_catalog.concat(%L, %s)', p_vectorizer || '/',
                    case when cardinality(v_parts) = 1 then v_parts[1] else 'pg_catalog.jsonb_build_array(' || array_to_string(v_parts, ', ') || ')::pg_catalog.text' end);
  select format('left(nullif(concat_ws(E''\n'', %s) collate pg_catalog."C", ''''), %s)', coalesce(string_agg(
           format('case when btrim(concat(t.%1$I), E'' \t\r\n'') <> '''' then concat(%2$L, t.%1$I) end', c.name, case v_is.format when 'labelled' then c.name || ': ' else '' end),
           ', ' order by c.n), 'null'), v_is.max_characters)
    into content from unnest(v_is.columns) with ordinality c (name, n) where c.name is not null;
  tenant := case when v_is.tenant_id is null then format('nullif(concat(t.%I), '''')::uuid', v_is.tenant) else format('%L::uuid', v_is.tenant_id) end;
end
$$;
comment on function ai.row_expressions(bigint) is 'SQL expressions for key, text and tenant of a row t of a vectorizer''s table.';

-- Whether the caller may change a vectorizer: the owner of its table, in the own tenant, or the owner of the schema. Where the
-- table is gone, any member of the tenant.
create or replace function ai.manages(p_vectorizer bigint) returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select ai.acts_as_owner() or exists (
    select from ai.vectorizers z
      left join pg_class c on c.oid = z.table_name
     where z.id = p_vectorizer and z.tenant_id = (select ai.tenant_id()) and (c.oid is null or pg_has_role(ai.acting_role(), c.relowner, 'usage')))
$$;
comment on function ai.manages(bigint) is 'Whether the caller owns the table of a vectorizer of the own tenant, or the schema.';

-- The vectorizer of this name that the caller may change. Raises PT404, PT403, and PT409 where an operator's name fits several.
create or replace function ai.managed_vectorizer(p_name text) returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_tenant uuid := ai.tenant_id();
  v_found  bigint[];
begin
  select array_agg(z.id) into v_found from ai.vectorizers z where z.name = p_name and z.tenant_id = v_tenant;
  if v_found is null then
    select array_agg(z.id) into v_found from ai.vectorizers z where z.name = p_name and (z.tenant_id is null or ai.acts_as_owner());
  end if;
  if v_found is null then
    raise exception 'there is no vectorizer %', p_name using errcode = 'PT404', hint = 'select name, table_name from ai.vectorizers;';
  elsif cardinality(v_found) > 1 then
    raise exception 'several tenants have a vectorizer %', p_name using errcode = 'PT409', hint = 'Come as a member of the tenant.';
  elsif not ai.manages(v_found[1]) then
    raise exception 'only the owner of the table may do this' using errcode = 'PT403';
  end if;
  return v_found[1];
end
$$;
comment on function ai.managed_vectorizer(text) is 'Id of the vectorizer of this name, if the caller owns its table or the schema; else PT403 or PT404.';

-- Checks everything and makes the rows of a new vectorizer; its triggers are made by ai.vectorize(), with the caller's rights.
create or replace function ai.add_vectorizer(
  p_table regclass, p_columns text[], p_model text, p_name text, p_format text, p_max_characters integer, p_tenant_column text, p_tenant uuid, p_user text)
returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_is    record;
  v_who   record;
  v_own   boolean := ai.acts_as_owner();
  v_keys  text[];
  v_bad   text;
  v_id    bigint;
begin
  select c.oid, c.relname, c.relkind, c.relpersistence, c.relispartition, n.nspname, pg_has_role(ai.acting_role(), c.relowner, 'usage') as owned
    into v_is from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
  if not found then
    raise exception 'there is no such table' using errcode = 'PT404';
  elsif v_is.relkind not in ('r', 'p') or v_is.relpersistence = 't' or v_is.relispartition or v_is.nspname in ('ai', 'information_schema') or v_is.nspname ~ '^pg_' then
    raise exception '% cannot be vectorized', p_table
      using errcode = 'PT400', detail = 'An ordinary or partitioned table of an app can; no view, partition, temporary or foreign table.';
  elsif not v_is.owned then
    raise exception 'only the owner of % may vectorize it', p_table using errcode = 'PT403';
  end if;

  select i.tenant_id, i.user_id, i.permissions into v_who from ai.identity() i;
  if p_tenant_column is not null or p_tenant <> v_who.tenant_id or v_who.tenant_id is null then
    if not v_own then
      raise exception 'only the owner of the schema ai names tenants'
        using errcode = case when v_who.tenant_id is null then 'PT401' else 'PT403' end,
              detail = (select w.why from ai.whoami() w), hint = 'As a member of a tenant, leave tenant and tenant_column out.';
    elsif p_user is null or (p_tenant is null) = (p_tenant_column is null) then
      raise exception 'who is no member names a user_id, and either a tenant_id or a tenant_column' using errcode = 'PT400';
    end if;
  else
    p_tenant := v_who.tenant_id;
    if (v_who.permissions && array['inference:execute', '*']) is not true and not v_own then
      raise exception 'the permission inference:execute is needed' using errcode = 'PT403', detail = 'The embeddings are asked for in the caller''s name.';
    elsif coalesce(p_user, v_who.user_id) <> v_who.user_id and (v_who.permissions && array['inference:delegate', '*']) is not true and not v_own then
      raise exception 'the permission inference:delegate is needed to name another user' using errcode = 'PT403';
    end if;
  end if;
  p_user := coalesce(p_user, v_who.user_id);
  if p_tenant is not null and not exists (select from ai.members m join ai.tenants t on t.id = m.tenant_id
                                           where m.tenant_id = p_tenant and m.user_id = p_user and m.enabled and t.enabled) then
    raise exception 'no such member in this tenant' using errcode = 'PT403';
  end if;

  if array_ndims(p_columns) is distinct from 1 or cardinality(p_columns) > 32 or array_position(p_columns, null) is not null
     or (select count(distinct c) from unnest(p_columns) c) < cardinality(p_columns) then
    raise exception 'columns must be 1 to 32 different names' using errcode = 'PT400';
  end if;
  select c into v_bad from unnest(p_columns || p_tenant_column) c
   where c is not null and not exists (select from pg_attribute a where a.attrelid = p_table and a.attname = c and a.attnum > 0 and not a.attisdropped) limit 1;
  if v_bad is not null then
    raise exception 'there is no column % in %', v_bad, p_table using errcode = 'PT404';
  elsif p_tenant_column is not null and (select k.type_id from ai.key_type(p_table, p_tenant_column) k) <> 'uuid'::regtype then
    raise exception 'the tenant column must be a uuid' using errcode = 'PT400';
  end if;
  select array_agg(a.attname::text order by k.n) into v_keys
    from pg_index i cross join unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
   where i.indrelid = p_table and i.indisprimary and k.n <= i.indnkeyatts;
  if v_keys is null then
    raise exception '% has no primary key', p_table using errcode = 'PT400', hint = 'It is how a row is found again.';
  end if;
  select c into v_bad from unnest(v_keys) c cross join ai.key_type(p_table, c) k where not k.usable limit 1;
  if v_bad is not null then
    raise exception 'the type of the key column % has no text that is the same in every session', v_bad
      using errcode = 'PT400', hint = 'A key of whole numbers, numeric, text, uuid, date, timestamp, bytea, boolean, an enum or an address can be used.';
  end if;
  if p_format is null or p_format not in ('labelled', 'plain') then
    raise exception 'format is labelled or plain' using errcode = 'PT400';
  elsif p_max_characters is null or p_max_characters not between 1 and 32000 then
    raise exception 'max_characters must be from 1 to 32000' using errcode = 'PT400';
  end if;
  p_name := coalesce(p_name, v_is.relname);
  if length(p_name) not between 1 and 200 then
    raise exception 'a name has 1 to 200 characters' using errcode = 'PT400';
  end if;
  perform ai.check_embedding_model(p_tenant, p_model);
  if p_tenant is not null and exists (select from ai.vectorizers z where z.tenant_id is null and z.name = p_name) then
    raise exception 'there is a vectorizer % for all tenants', p_name using errcode = 'PT409', hint = 'Give this one a name of its own.';
  end if;

  insert into ai.vectorizers (tenant_id, user_id, name, table_name, table_id, columns, attnums, key_columns, key_attnums, key_types, tenant_column, tenant_attnum,
                              model, format, max_characters)
  select p_tenant, p_user, p_name, p_table, p_table, p_columns,
         (select array_agg(a.attnum order by c.n) from unnest(p_columns) with ordinality c (name, n) join pg_attribute a on a.attrelid = p_table and a.attname = c.name),
         v_keys,
         (select array_agg(a.attnum order by c.n) from unnest(v_keys) with ordinality c (name, n) join pg_attribute a on a.attrelid = p_table and a.attname = c.name),
         ai.column_types(p_table, v_keys), p_tenant_column, (select a.attnum from pg_attribute a where a.attrelid = p_table and a.attname = p_tenant_column),
         p_model, p_format, p_max_characters
  on conflict do nothing
  returning id into v_id;
  if v_id is null then
    raise exception 'there is a vectorizer % already', p_name using errcode = 'PT409', hint = 'Give this one a name, or ai.stop_vectorizing() that one.';
  end if;
  insert into ai.vectorizer_versions (vectorizer_id, model, status) values (v_id, p_model, 'current');
  return v_id;
end
$$;
comment on function ai.add_vectorizer(regclass, text[], text, text, text, integer, text, uuid, text) is 'Checks and notes a vectorizer; gives its id. Internal: ai.vectorize().';

-- Raises PT404 unless the tenant (null: every tenant) has an embedding model of this name.
create or replace function ai.check_embedding_model(p_tenant uuid, p_model text) returns void
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_model is null or ai.target_model(p_tenant, 'embedding', p_model, null, 1) is null then
    raise exception 'there is no model % for kind embedding', p_model
      using errcode = 'PT404', hint = 'select name from ai.models where kind = ''embedding'' and enabled;';
  end if;
end
$$;
comment on function ai.check_embedding_model(uuid, text) is 'Raises PT404 unless there is an embedding model of this name.';

-- Keeps the embeddings of a table's rows up to date, and gives how many rows there are to embed now. The caller owns the table
-- and is a member of a tenant, whose the rows are and in whose name they are embedded; the owner of the schema ai names
-- tenant_id or tenant_column, and user_id. Locks the table against writes until the transaction ends. Raises PT400 (also outside
-- of READ COMMITTED, where rows committed meanwhile would be missed), PT401, PT403, PT404, PT409.
create or replace function ai.vectorize(
  table_name regclass, columns text[], model text default 'local/hash', name text default null, format text default 'labelled', max_characters integer default 8000,
  tenant_column text default null, tenant_id uuid default null, user_id text default null)
returns bigint
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_id bigint;
begin
  v_id := ai.add_vectorizer(table_name, columns, model, name, format, max_characters, tenant_column, tenant_id, user_id);
  execute pg_catalog.format('create trigger %I after insert on %s referencing new table as inserted for each statement execute function ai.note_changes(%L)',
                            'martlet_' || v_id || '_insert', table_name, v_id);
  execute pg_catalog.format('create trigger %I after update on %s referencing old table as deleted new table as inserted for each statement execute function ai.note_changes(%L)',
                            'martlet_' || v_id || '_update', table_name, v_id);
  execute pg_catalog.format('create trigger %I after delete on %s referencing old table as deleted for each statement execute function ai.note_changes(%L)',
                            'martlet_' || v_id || '_delete', table_name, v_id);
  execute pg_catalog.format('create trigger %I after truncate on %s for each statement execute function ai.note_changes(%L)',
                            'martlet_' || v_id || '_truncate', table_name, v_id);
  return ai.read_rows(v_id, true);
end
$$;
comment on function ai.vectorize(regclass, text[], text, text, text, integer, text, uuid, text) is
  'Keeps the embeddings of columns of a table up to date: select ai.vectorize(''products'', array[''name'', ''description'']).';

revoke execute on function ai.column_names(oid, oid, text[], smallint[]), ai.key_type(oid, text), ai.column_types(oid, text[]), ai.row_expressions(bigint),
  ai.manages(bigint), ai.managed_vectorizer(text), ai.add_vectorizer(regclass, text[], text, text, text, integer, text, uuid, text), ai.check_embedding_model(uuid, text),
  ai.vectorize(regclass, text[], text, text, text, integer, text, uuid, text) from public;
-- Each checks for itself what the caller may: ai.vectorize() and its like run with the caller's rights.
grant execute on function ai.manages(bigint), ai.managed_vectorizer(text), ai.add_vectorizer(regclass, text[], text, text, text, integer, text, uuid, text),
  ai.vectorize(regclass, text[], text, text, text, integer, text, uuid, text) to ai_user;

-- objects

drop policy if exists visible on ai.vectorizers;
create policy visible on ai.vectorizers for select to ai_user using (tenant_id = (select ai.tenant_id()) or (tenant_id is null and (select ai.tenant_id()) is not null));
grant select on ai.vectorizers to ai_user;
