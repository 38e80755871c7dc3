-- Whether a JSON Schema is one: asked before it is kept, so that what is wrong is said to who wrote it, not found in the answer of a model.

-- Whether this is what JSON Schema takes for a list of names: an array of texts, each once.
create or replace function ai.are_names(p_list jsonb) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_typeof(p_list) = 'array' and not p_list @? 'strict $[*] ? (@.type() != "string")'
              then jsonb_array_length(p_list) = (select count(distinct e.value) from jsonb_array_elements(p_list) e) else false end
$$;
comment on function ai.are_names(jsonb) is 'Whether this is an array of texts, each once.';

-- Raises PT400 for a keyword whose value has the wrong form (names twice in a list, numbers of more than 400 digits, references of more than
-- 2,000 characters have it, too), a reference that leads nowhere, a pattern that has no form in PostgreSQL or is
-- too large, patterns that count for more than 10,000 steps together, a schema of more than 100,000 bytes, 200 levels or 5,000 subschemas. Keywords that are not known pass, as the standard wants it.
create or replace function ai.check_json_schema(p_schema jsonb) returns void
language plpgsql immutable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_steps constant integer := 10000;  -- half of those that an answer has
  v_documents jsonb := jsonb_build_object('', p_schema);
  v_index     jsonb;
  v_wrong     record;
begin
  if p_schema is null or jsonb_typeof(p_schema) not in ('object', 'boolean') then
    raise exception 'a JSON Schema is an object, or true or false' using errcode = 'PT400';
  elsif octet_length(p_schema::text) > 100000 then
    raise exception 'this JSON Schema is too large' using errcode = 'PT400', detail = 'It has more than 100,000 bytes.';
  end if;
  select s.path, k.key into v_wrong
    from ai.json_subschemas(v_documents) s
   cross join lateral jsonb_each(case when jsonb_typeof(s.schema) = 'object' then s.schema else '{}' end) k
   cross join lateral (select jsonb_typeof(k.value) as form) t
   where case
           when k.key in ('$id', '$schema', '$ref', '$dynamicRef', '$anchor', '$dynamicAnchor', '$comment', 'pattern', 'format', 'contentEncoding', 'contentMediaType')
             then t.form <> 'string' or left(k.key, 1) = '$' and k.key <> '$comment' and length(k.value #>> '{}') > 2000
           when k.key in ('not', 'if', 'then', 'else', 'items', 'contains', 'additionalProperties', 'propertyNames', 'unevaluatedItems', 'unevaluatedProperties', 'contentSchema')
             then t.form not in ('object', 'boolean')
           when k.key in ('allOf', 'anyOf', 'oneOf', 'prefixItems')
             then t.form <> 'array' or k.value = '[]' or k.value @? 'strict $[*] ? (@.type() != "object" && @.type() != "boolean")'
           when k.key in ('properties', 'patternProperties', 'dependentSchemas', '$defs')
             then t.form <> 'object' or exists (select from jsonb_each(k.value) e where jsonb_typeof(e.value) not in ('object', 'boolean'))
           when k.key in ('minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties', 'minContains', 'maxContains')
             then case when t.form <> 'number' or length(k.value #>> '{}') > 400 then true else k.value::numeric < 0 or k.value::numeric % 1 <> 0 end
           when k.key in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum') then t.form <> 'number' or length(k.value #>> '{}') > 400
           when k.key = 'multipleOf' then case when t.form <> 'number' or length(k.value #>> '{}') > 400 then true else k.value::numeric <= 0 end
           when k.key = 'uniqueItems' then t.form <> 'boolean'
           when k.key = 'enum' then t.form <> 'array'
           when k.key = 'required' then not ai.are_names(k.value)
           when k.key = 'dependentRequired'
             then t.form <> 'object' or exists (select from jsonb_each(k.value) e where not ai.are_names(e.value))
           when k.key = 'type'
             then not (t.form = 'string' and k.value <@ '["null","boolean","object","array","number","string","integer"]'
                       or ai.are_names(k.value) and k.value <> '[]' and k.value <@ '["null","boolean","object","array","number","string","integer"]')
           else false end
   limit 1;
  if found then
    raise exception 'this JSON Schema is none: % has the wrong form', v_wrong.key
      using errcode = 'PT400', detail = format('At #%s.', array_to_string(array['']::text[] || v_wrong.path || v_wrong.key, '/')),
            hint = 'In a list each name is there once; a number has at most 400 digits, a reference 2,000 characters.';
  end if;
  if (select count(*) > 5000 or max(cardinality(s.path)) > 400 - 2 from ai.json_subschemas(v_documents) s) then
    raise exception 'this JSON Schema is too large' using errcode = 'PT400', detail = 'It has more than 5,000 subschemas, or goes deeper than 200 levels.';
  end if;
  v_index := ai.json_schema_index(v_documents, c_steps, c_steps);
  select p.key, (ai.read_pattern(p.key)).ways > 20000 as large into v_wrong from jsonb_each(v_index -> 'patterns') p where jsonb_typeof(p.value) = 'null' limit 1;
  if found and v_wrong.large then
    raise exception 'this JSON Schema has a pattern that is too large'
      using errcode = 'PT400', detail = left(v_wrong.key, 200),
            hint = 'A pattern has at most 1,000 characters, 2,000 with its repetitions, and 20,000 ways through it. minLength and maxLength bound a length without them.';
  elsif found then
    raise exception 'this JSON Schema has a pattern that cannot be used'
      using errcode = 'PT400', detail = left(v_wrong.key, 200),
            hint = 'Patterns are regular expressions of ECMA-262 in unicode mode, without back references.';
  elsif (v_index ->> 'steps')::integer > c_steps then
    raise exception 'the patterns of this JSON Schema are too large together'
      using errcode = 'PT400', detail = 'They count for more than 10,000 steps.',
            hint = 'A pattern counts for a step by two characters and by ten ways through it. minLength and maxLength bound a length without them.';
  end if;
  select r.ref into v_wrong
    from ai.json_subschemas(v_documents) s
   cross join lateral (select k.key, s.schema ->> k.key as ref from (values ('$ref'), ('$dynamicRef')) k (key) where s.schema ? k.key) r
   where jsonb_typeof(s.schema) = 'object'
     and (ai.json_schema_target(v_documents, v_index, s.base, r.ref, r.key = '$dynamicRef', '{}')).schema is null
   limit 1;
  if found then
    raise exception 'this JSON Schema has a reference that leads nowhere'
      using errcode = 'PT400', detail = left(v_wrong.ref, 200), hint = 'References lead into the schema itself ($defs, $anchor, $id); nothing is fetched.';
  end if;
end
$$;
comment on function ai.check_json_schema(jsonb) is 'Raises PT400 unless this is a JSON Schema (draft 2020-12) that Martlet can apply.';

revoke execute on function ai.are_names(jsonb), ai.check_json_schema(jsonb) from public;
grant execute on function ai.check_json_schema(jsonb) to ai_user;
