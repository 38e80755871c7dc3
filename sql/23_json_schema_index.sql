-- Where in a JSON Schema things are: what has a URI or an anchor, and the patterns in it.

-- RFC 3986, section 5.2: a reference against a base. An empty base leaves it as it is.
create or replace function ai.resolve_uri(p_base text, p_ref text) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_parts constant text := '^(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(#.*)?$';
  v_base text[] := regexp_match(p_base, c_parts);
  v_ref  text[] := regexp_match(p_ref, c_parts);
  v_path text;
  v_one  text;
  v_kept text[] := '{}';
begin
  if v_ref[1] is not null or p_base = '' then
    return p_ref;
  elsif v_ref[2] is not null then
    return coalesce(v_base[1] || ':', '') || p_ref;
  elsif v_ref[3] = '' then
    v_path := v_base[3] || coalesce(v_ref[4], v_base[4], '');
  else
    v_path := case when v_ref[3] like '/%' then v_ref[3]
                   when v_base[2] is not null and v_base[3] = '' then '/' || v_ref[3]
                   else regexp_replace(v_base[3], '[^/]*$', '') || v_ref[3] end;
    if v_path ~ '(^|/)\.\.?(/|$)' then
      foreach v_one in array string_to_array(v_path, '/') loop
        if v_one = '..' then
          v_kept := case when cardinality(v_kept) > 1 then trim_array(v_kept, 1) else v_kept end;
        elsif v_one <> '.' then
          v_kept := v_kept || v_one;
        end if;
      end loop;
      v_path := array_to_string(v_kept, '/') || case when v_path ~ '/\.\.?$' then '/' else '' end;
    end if;
    v_path := v_path || coalesce(v_ref[4], '');
  end if;
  return coalesce(v_base[1] || ':', '') || coalesce('//' || v_base[2], '') || v_path || coalesce(v_ref[5], '');
end
$$;
comment on function ai.resolve_uri(text, text) is 'A URI reference against a base (RFC 3986).';

-- Percent-encoding undone; what is no UTF-8 stays as it is.
create or replace function ai.decode_percent(p_text text) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_bytes bytea := '';
  v_part  text[];
begin
  if strpos(p_text, '%') = 0 then
    return p_text;
  end if;
  for v_part in select regexp_matches(p_text, '(%[0-7][0-9a-fA-F])|([^%]+|%)', 'g') loop
    v_bytes := v_bytes || case when v_part[1] is not null then decode(substr(v_part[1], 2), 'hex') else convert_to(v_part[2], 'UTF8') end;
  end loop;
  return convert_from(v_bytes, 'UTF8');
end
$$;
comment on function ai.decode_percent(text) is 'A text with its percent-encoded ASCII characters decoded.';

-- Every subschema of the documents (by URI; '' is the schema itself), reached by keywords alone: what lies in an enum or under a
-- keyword that is none is no schema. Not beyond 200 levels.
create or replace function ai.json_subschemas(p_documents jsonb)
returns table (document text, path text[], schema jsonb, base text)
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  with recursive walk (document, path, schema, base) as (
    select d.key, '{}'::text[], d.value,
           case when jsonb_typeof(d.value -> '$id') = 'string' then split_part(ai.resolve_uri(d.key, d.value ->> '$id'), '#', 1) else d.key end
      from jsonb_each(p_documents) d
    union all
    select w.document, w.path || n.path, n.schema,
           case when jsonb_typeof(n.schema -> '$id') = 'string' then split_part(ai.resolve_uri(w.base, n.schema ->> '$id'), '#', 1) else w.base end
      from walk w
     cross join lateral (
       select array[k.key] as path, k.value as schema
         from jsonb_each(case when jsonb_typeof(w.schema) = 'object' then w.schema else '{}' end) k
        where k.key in ('not', 'if', 'then', 'else', 'items', 'contains', 'additionalProperties', 'propertyNames', 'unevaluatedItems', 'unevaluatedProperties', 'contentSchema')
       union all
       select array[k.key, (e.n - 1)::text], e.value
         from jsonb_each(case when jsonb_typeof(w.schema) = 'object' then w.schema else '{}' end) k
        cross join lateral jsonb_array_elements(case when jsonb_typeof(k.value) = 'array' then k.value else '[]' end) with ordinality e (value, n)
        where k.key in ('allOf', 'anyOf', 'oneOf', 'prefixItems')
       union all
       select array[k.key, e.key], e.value
         from jsonb_each(case when jsonb_typeof(w.schema) = 'object' then w.schema else '{}' end) k
        cross join lateral jsonb_each(case when jsonb_typeof(k.value) = 'object' then k.value else '{}' end) e
        where k.key in ('properties', 'patternProperties', 'dependentSchemas', '$defs', 'definitions')) n
     where cardinality(w.path) < 400 and jsonb_typeof(n.schema) in ('object', 'boolean')
  )
  select w.document, w.path, w.schema, w.base from walk w
$$;
comment on function ai.json_subschemas(jsonb) is 'Every subschema of these documents, with the URI that its references are relative to.';

-- {"resources": {URI: {"document", "path", "anchors": {name: path}, "dynamic": {name: path}}}, "found": steps that finding them counts for} and what
-- ai.read_patterns() gives, which p_most and p_kept are for.
create or replace function ai.json_schema_index(p_documents jsonb, p_most integer, p_kept integer) returns jsonb
language sql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
  with subschemas as materialized (
    select * from ai.json_subschemas(p_documents) s where jsonb_typeof(s.schema) = 'object'
  ), anchors as (
    select s.base, jsonb_object_agg(a.value, s.path) as anchors, coalesce(jsonb_object_agg(a.value, s.path) filter (where a.key = '$dynamicAnchor'), '{}') as dynamic
      from subschemas s
     cross join lateral (select k.key, s.schema ->> k.key as value from (values ('$anchor'), ('$dynamicAnchor')) k (key) where jsonb_typeof(s.schema -> k.key) = 'string') a
     group by s.base
  ), resources as (
    select distinct on (r.uri) r.uri, r.document, r.path, r.base
      from (select s.base as uri, s.document, s.path, s.base from subschemas s where s.path = '{}' or jsonb_typeof(s.schema -> '$id') = 'string'
            union all
            -- A document is also known by the URI that it was given under.
            select s.document, s.document, s.path, s.base from subschemas s where s.path = '{}') r
     order by r.uri, r.document, cardinality(r.path)
  ), patterns as (
    select distinct p.pattern
      from subschemas s
     cross join lateral (select s.schema ->> 'pattern' where jsonb_typeof(s.schema -> 'pattern') = 'string'
                         union all
                         select jsonb_object_keys(s.schema -> 'patternProperties') where jsonb_typeof(s.schema -> 'patternProperties') = 'object') p (pattern)
  )
  select jsonb_build_object(
    'resources', (select jsonb_object_agg(r.uri, jsonb_build_object('document', r.document, 'path', r.path, 'base', r.base, 'anchors', coalesce(a.anchors, '{}'),
                                                                    'dynamic', coalesce(a.dynamic, '{}')))
                    from resources r left join anchors a on a.base = r.base),
    -- Each is copied with all that is in it.
    'found', (select count(*) / 50 + sum(pg_column_size(s.schema)) / 5000 from subschemas s))
    || ai.read_patterns(array(select p.pattern from patterns p order by 1), p_most, p_kept)
$$;
comment on function ai.json_schema_index(jsonb, integer, integer) is 'What is where in these schema documents: resources, anchors, patterns.';

-- The subschema that a reference leads to, without its $id, and the URI that its own references are relative to. schema null: there
-- is none in these documents; nothing is ever fetched. p_dynamic: a $dynamicRef, where p_scope (URIs, outermost first) decides.
create or replace function ai.json_schema_target(
  p_documents jsonb, p_index jsonb, p_base text, p_ref text, p_dynamic boolean, p_scope text[], out schema jsonb, out base text)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_uri      text := ai.resolve_uri(p_base, p_ref);
  v_fragment text := coalesce(substr(v_uri, nullif(strpos(v_uri, '#'), 0) + 1), '');
  v_resource jsonb := p_index #> array['resources', split_part(v_uri, '#', 1)];
  v_path     text[];
  v_one      text;
begin
  if v_resource is null then
    return;
  end if;
  base := v_resource ->> 'base';
  schema := p_documents #> (v_resource ->> 'document' || array(select jsonb_array_elements_text(v_resource -> 'path')));
  if v_fragment = '' then
    null;
  elsif v_fragment like '/%' then
    foreach v_one in array string_to_array(substr(v_fragment, 2), '/') loop
      schema := schema #> array[replace(replace(ai.decode_percent(v_one), '~1', '/'), '~0', '~')];
      if jsonb_typeof(schema -> '$id') = 'string' then
        base := split_part(ai.resolve_uri(base, schema ->> '$id'), '#', 1);
      end if;
    end loop;
  else
    v_fragment := ai.decode_percent(v_fragment);
    if p_dynamic and v_resource -> 'dynamic' ? v_fragment then
      foreach v_one in array p_scope || base loop
        if p_index #> array['resources', v_one, 'dynamic'] ? v_fragment then
          v_resource := p_index #> array['resources', v_one];
          base := v_resource ->> 'base';
          exit;
        end if;
      end loop;
    end if;
    v_path := array(select jsonb_array_elements_text(v_resource -> 'anchors' -> v_fragment));
    schema := case when v_resource -> 'anchors' ? v_fragment then p_documents #> (v_resource ->> 'document' || v_path) end;
  end if;
  if jsonb_typeof(schema) = 'object' then
    schema := case when schema ? '$id' then schema - '$id' else schema end;  -- taken out, it is copied member by member
  elsif jsonb_typeof(schema) is distinct from 'boolean' then
    schema := null;
  end if;
end
$$;
comment on function ai.json_schema_target(jsonb, jsonb, text, text, boolean, text[]) is 'The subschema that a reference leads to; null: none in these documents.';

revoke execute on function ai.resolve_uri(text, text), ai.decode_percent(text), ai.json_subschemas(jsonb), ai.json_schema_index(jsonb, integer, integer),
  ai.json_schema_target(jsonb, jsonb, text, text, boolean, text[]) from public;
