-- JSON Schema, draft 2020-12, in SQL: the vocabularies core, applicator, validation and unevaluated, and formats where asked.
-- Nothing is fetched: references lead into the schema or into documents that the caller gives.
--
-- No schema and no instance takes more than a bounded number of steps and levels; what would is not valid, and the one error says
-- so. A step is a subschema applied to a value, some 15 µs; whatever takes longer with the length of a list, a text, a name or a number
-- counts for several. What is copied is counted by tens of thousands of bytes, what is gone through by fewer. Where others wait, the clock
-- stops what no count has foreseen.

-- One subschema applied to one value. p_flags: 1 formats are asserted, 2 annotations are wanted (some unevaluated… is there), 4 the
-- validation vocabulary is off. p_scope: the URIs of the resources that led here, outermost first. p_quiet: whether it is valid is all
-- that is asked. p_until: by the clock; null: however long it takes. Gives errors as triples (where in the instance, where in the schema, what),
-- the steps taken so far (the largest integer: it goes too deep; the one below: too long), and what was evaluated: names of properties,
-- numbers of items.
create or replace function ai.json_schema_walk(
  p_documents jsonb, p_index jsonb, p_flags integer, p_schema jsonb, p_base text, p_scope text[], p_value jsonb, p_at text, p_where text, p_quiet boolean,
  p_depth integer, p_steps integer, p_most integer, p_until timestamptz,
  out errors text[], out steps integer, out properties text[], out items integer[])
language plpgsql stable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_depth constant integer := 200;
  v_type   text := jsonb_typeof(p_value);
  v_base   text := p_base;
  v_scope  text[] := p_scope;
  v_text   text;
  v_number numeric;
  v_key    text;
  v_name   text;
  v_one    jsonb;
  v_read   jsonb;
  v_sub    record;
  v_count  integer;
  v_n      bigint;
  v_found  integer[];
  v_names  text[];
begin
  errors := '{}';
  steps := p_steps + 1 + (octet_length(p_at) + octet_length(p_where) + pg_column_size(p_scope) + pg_column_size(p_schema)) / 20000;
  if steps > p_most or p_depth > c_depth or clock_timestamp() >= p_until then
    steps := case when p_depth > c_depth then 2147483647 when steps > p_most then p_most + 1 else 2147483646 end;
    return;
  elsif p_schema = 'true' or p_schema = '{}' then
    return;
  elsif jsonb_typeof(p_schema) is distinct from 'object' then
    errors := array[p_at, p_where, case when p_schema = 'false' then 'nothing is allowed here' else 'this is no schema' end];
    return;
  end if;
  if jsonb_typeof(p_schema -> '$id') = 'string' then
    steps := steps + 1 + length(p_schema ->> '$id') / 50;
    v_base := split_part(ai.resolve_uri(v_base, p_schema ->> '$id'), '#', 1);
    v_scope := v_scope || v_base;
  end if;

  if p_flags & 4 = 0 then
    -- Of any value.
    if p_schema ? 'type' then
      v_one := p_schema -> 'type';
      steps := steps + case when jsonb_typeof(v_one) = 'array' then jsonb_array_length(v_one) / 20 else 0 end;
      -- The scale, because 1e100000 divided is a number of 100,000 digits.
      if not (v_one ? v_type or v_type = 'number' and v_one ? 'integer' and min_scale(p_value::numeric) = 0) then
        errors := errors || array[p_at, p_where || '/type', format('is %s, not %s', v_type, case when jsonb_typeof(v_one) = 'array'
          then (select string_agg(e, ' or ') from jsonb_array_elements_text(v_one) e) else v_one #>> '{}' end)];
      end if;
    end if;
    if p_schema ? 'enum' and jsonb_typeof(p_schema -> 'enum') = 'array' then
      steps := steps + jsonb_array_length(p_schema -> 'enum') / 50 + pg_column_size(p_schema -> 'enum') / 1000;
      if steps > p_most then
        return;
      elsif not exists (select from jsonb_array_elements(p_schema -> 'enum') e where e.value = p_value) then
        errors := errors || array[p_at, p_where || '/enum', 'is none of the values that are allowed'];
      end if;
    end if;
    if p_schema ? 'const' then
      steps := steps + pg_column_size(p_schema -> 'const') / 1000;
      if p_schema -> 'const' <> p_value then
        errors := errors || array[p_at, p_where || '/const', 'is not the value that is required'];
      end if;
    end if;
    if p_quiet and errors <> '{}' then
      return;
    end if;

    if v_type = 'number' then
      if p_schema ?| '{minimum,maximum,exclusiveMinimum,exclusiveMaximum,multipleOf}' then
        v_number := p_value::numeric;
        steps := steps + pg_column_size(v_number) / 5000;
        if jsonb_typeof(p_schema -> 'minimum') = 'number' and v_number < (p_schema -> 'minimum')::numeric then
          errors := errors || array[p_at, p_where || '/minimum', 'is less than ' || (p_schema ->> 'minimum')];
        end if;
        if jsonb_typeof(p_schema -> 'maximum') = 'number' and v_number > (p_schema -> 'maximum')::numeric then
          errors := errors || array[p_at, p_where || '/maximum', 'is more than ' || (p_schema ->> 'maximum')];
        end if;
        if jsonb_typeof(p_schema -> 'exclusiveMinimum') = 'number' and v_number <= (p_schema -> 'exclusiveMinimum')::numeric then
          errors := errors || array[p_at, p_where || '/exclusiveMinimum', 'is not more than ' || (p_schema ->> 'exclusiveMinimum')];
        end if;
        if jsonb_typeof(p_schema -> 'exclusiveMaximum') = 'number' and v_number >= (p_schema -> 'exclusiveMaximum')::numeric then
          errors := errors || array[p_at, p_where || '/exclusiveMaximum', 'is not less than ' || (p_schema ->> 'exclusiveMaximum')];
        end if;
        if jsonb_typeof(p_schema -> 'multipleOf') = 'number' and (p_schema -> 'multipleOf')::numeric > 0 then
          -- Digits by digits.
          steps := steps + least(length(v_number::text)::bigint * (length(p_schema ->> 'multipleOf') + 30) / 100000, 1000000)::integer;
          if steps > p_most then
            return;
          elsif v_number % (p_schema -> 'multipleOf')::numeric <> 0 then
            errors := errors || array[p_at, p_where || '/multipleOf', 'is no multiple of ' || (p_schema ->> 'multipleOf')];
          end if;
        end if;
      end if;

    elsif v_type = 'string' then
      if p_schema ?| '{minLength,maxLength,pattern}' then
        v_text := p_value #>> '{}';
        v_n := length(v_text);
        steps := steps + (v_n / 10000)::integer;
        if jsonb_typeof(p_schema -> 'minLength') = 'number' and v_n < (p_schema -> 'minLength')::numeric then
          errors := errors || array[p_at, p_where || '/minLength', format('has fewer than %s characters', p_schema ->> 'minLength')];
        end if;
        if jsonb_typeof(p_schema -> 'maxLength') = 'number' and v_n > (p_schema -> 'maxLength')::numeric then
          errors := errors || array[p_at, p_where || '/maxLength', format('has more than %s characters', p_schema ->> 'maxLength')];
        end if;
        if jsonb_typeof(p_schema -> 'pattern') = 'string' then
          v_read := p_index #> array['patterns', p_schema ->> 'pattern'];
          v_key := v_read ->> 'as';
          steps := steps + ai.pattern_steps(v_read, v_n);
          if steps > p_most then
            return;
          elsif v_key is null then
            errors := errors || array[p_at, p_where || '/pattern', 'this pattern cannot be used'];
          elsif v_text !~ v_key then
            errors := errors || array[p_at, p_where || '/pattern', 'does not match the pattern ' || left(p_schema ->> 'pattern', 200)];
          end if;
        end if;
      end if;

    elsif v_type = 'object' then
      if p_schema ?| '{required,minProperties,maxProperties,dependentRequired}' then
        if jsonb_typeof(p_schema -> 'required') = 'array' then
          steps := steps + jsonb_array_length(p_schema -> 'required') / 20;
          if steps > p_most then
            return;
          end if;
          select array_agg(r) into v_names from jsonb_array_elements_text(p_schema -> 'required') r where not p_value ? r;
          if v_names is not null then
            errors := errors || array[p_at, p_where || '/required', 'lacks ' || left(array_to_string(v_names, ', '), 1000)];
          end if;
        end if;
        if p_schema ?| '{minProperties,maxProperties}' then
          steps := steps + ai.passing_steps(p_value);
          if steps > p_most then
            return;
          end if;
          v_n := (select count(*) from jsonb_object_keys(p_value));
          if jsonb_typeof(p_schema -> 'minProperties') = 'number' and v_n < (p_schema -> 'minProperties')::numeric then
            errors := errors || array[p_at, p_where || '/minProperties', format('has fewer than %s properties', p_schema ->> 'minProperties')];
          end if;
          if jsonb_typeof(p_schema -> 'maxProperties') = 'number' and v_n > (p_schema -> 'maxProperties')::numeric then
            errors := errors || array[p_at, p_where || '/maxProperties', format('has more than %s properties', p_schema ->> 'maxProperties')];
          end if;
        end if;
        if jsonb_typeof(p_schema -> 'dependentRequired') = 'object' then
          steps := steps + pg_column_size(p_schema -> 'dependentRequired') / 300;
          if steps > p_most then
            return;
          end if;
          select array_agg(distinct r) into v_names
            from jsonb_each(p_schema -> 'dependentRequired') d
           cross join lateral jsonb_array_elements_text(case when jsonb_typeof(d.value) = 'array' then d.value else '[]' end) r
           where p_value ? d.key and not p_value ? r;
          if v_names is not null then
            errors := errors || array[p_at, p_where || '/dependentRequired', 'lacks ' || left(array_to_string(v_names, ', '), 1000)];
          end if;
        end if;
      end if;

    elsif v_type = 'array' and p_schema ?| '{minItems,maxItems,uniqueItems}' then
      v_n := jsonb_array_length(p_value);
      if jsonb_typeof(p_schema -> 'minItems') = 'number' and v_n < (p_schema -> 'minItems')::numeric then
        errors := errors || array[p_at, p_where || '/minItems', format('has fewer than %s items', p_schema ->> 'minItems')];
      end if;
      if jsonb_typeof(p_schema -> 'maxItems') = 'number' and v_n > (p_schema -> 'maxItems')::numeric then
        errors := errors || array[p_at, p_where || '/maxItems', format('has more than %s items', p_schema ->> 'maxItems')];
      end if;
      if p_schema -> 'uniqueItems' = 'true' then
        -- Sorted, and what is alike is compared to its end.
        steps := steps + (v_n / 20)::integer + least(pg_column_size(p_value) * ln(v_n::float8 + 1) / 2000, 1000000000)::integer;
        if steps > p_most then
          return;
        elsif v_n > (select count(distinct e.value) from jsonb_array_elements(p_value) e) then
          errors := errors || array[p_at, p_where || '/uniqueItems', 'has two items that are equal'];
        end if;
      end if;
    end if;
  end if;
  if p_flags & 1 = 1 and v_type = 'string' and jsonb_typeof(p_schema -> 'format') = 'string' then
    v_text := p_value #>> '{}';
    steps := steps + length(v_text) / 500;
    if p_schema ->> 'format' = 'regex' then
      steps := steps + least(length(v_text), 1000) / 2 + least((ai.read_pattern(v_text)).ways, 20000) / 10;
    end if;
    if steps > p_most then
      return;
    elsif not ai.json_format_fits(p_schema ->> 'format', v_text) then
      errors := errors || array[p_at, p_where || '/format', 'is not of the format ' || left(p_schema ->> 'format', 100)];
    end if;
  end if;
  if p_quiet and errors <> '{}' or cardinality(errors) > 300 then
    return;
  end if;

  -- Subschemas of the same value. What a schema that fails has evaluated does not count.
  if p_schema ?| '{$ref,$dynamicRef,allOf,anyOf,oneOf,not,if,dependentSchemas}' then
    foreach v_key in array '{$ref,$dynamicRef}'::text[] loop
      if jsonb_typeof(p_schema -> v_key) = 'string' then
        steps := steps + (length(v_base) + length(p_schema ->> v_key)) / 20 + pg_column_size(p_documents) / 20000
                       + case v_key when '$dynamicRef' then cardinality(v_scope) / 5 else 0 end;
        if steps > p_most then
          return;
        end if;
        select * into v_sub from ai.json_schema_target(p_documents, p_index, v_base, p_schema ->> v_key, v_key = '$dynamicRef', v_scope);
        if v_sub.schema is null then
          errors := errors || array[p_at, p_where || '/' || v_key, 'this reference leads nowhere'];
        else
          steps := steps + pg_column_size(v_sub.schema) / 1000;
          select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, v_sub.schema, v_sub.base, v_scope || v_sub.base, p_value, p_at,
                                                       p_where || '/' || v_key, p_quiet, p_depth + 1, steps, p_most, p_until);
          steps := v_sub.steps;
          if steps > p_most then
            return;
          elsif v_sub.errors = '{}' then
            properties := properties || v_sub.properties;
            items := items || v_sub.items;
          end if;
          errors := errors || v_sub.errors;
        end if;
      end if;
    end loop;

    foreach v_key in array '{allOf,anyOf,oneOf}'::text[] loop
      continue when jsonb_typeof(p_schema -> v_key) is distinct from 'array';
      steps := steps + jsonb_array_length(p_schema -> v_key) / 50;
      v_count := 0;
      for v_one, v_n in select e.value, e.ordinality - 1 from jsonb_array_elements(p_schema -> v_key) with ordinality e loop
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, v_one, v_base, v_scope, p_value, p_at, p_where || '/' || v_key || '/' || v_n,
                                                     p_quiet or v_key <> 'allOf', p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        elsif v_sub.errors = '{}' then
          v_count := v_count + 1;
          properties := properties || v_sub.properties;
          items := items || v_sub.items;
          exit when v_key = 'anyOf' and p_flags & 2 = 0 or v_key = 'oneOf' and v_count > 1;
        elsif v_key = 'allOf' then
          errors := errors || v_sub.errors;
          exit when p_quiet;
        end if;
      end loop;
      if v_key = 'anyOf' and v_count = 0 or v_key = 'oneOf' and v_count <> 1 then
        errors := errors || array[p_at, p_where || '/' || v_key, case when v_count = 0 then 'fits none of the schemas' else 'fits more than one of the schemas' end];
      end if;
      if p_quiet and errors <> '{}' then
        return;
      end if;
    end loop;

    if p_schema ? 'not' then
      select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'not', v_base, v_scope, p_value, p_at, p_where || '/not', true,
                                                   p_depth + 1, steps, p_most, p_until);
      steps := v_sub.steps;
      if steps > p_most then
        return;
      elsif v_sub.errors = '{}' then
        errors := errors || array[p_at, p_where || '/not', 'fits a schema that it must not fit'];
      end if;
    end if;

    if p_schema ? 'if' and (p_flags & 2 = 2 or p_schema ?| '{then,else}') then
      select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'if', v_base, v_scope, p_value, p_at, p_where || '/if', true,
                                                   p_depth + 1, steps, p_most, p_until);
      steps := v_sub.steps;
      if steps > p_most then
        return;
      elsif v_sub.errors = '{}' then
        properties := properties || v_sub.properties;
        items := items || v_sub.items;
      end if;
      v_key := case when v_sub.errors = '{}' then 'then' else 'else' end;
      if p_schema ? v_key then
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> v_key, v_base, v_scope, p_value, p_at, p_where || '/' || v_key, p_quiet,
                                                     p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        elsif v_sub.errors = '{}' then
          properties := properties || v_sub.properties;
          items := items || v_sub.items;
        end if;
        errors := errors || v_sub.errors;
      end if;
    end if;

    if v_type = 'object' and jsonb_typeof(p_schema -> 'dependentSchemas') = 'object' then
      steps := steps + pg_column_size(p_schema -> 'dependentSchemas') / 1000;
      if steps > p_most then
        return;
      end if;
      for v_name, v_one in select d.key, d.value from jsonb_each(p_schema -> 'dependentSchemas') d where p_value ? d.key loop
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, v_one, v_base, v_scope, p_value, p_at,
                                                     p_where || '/dependentSchemas/' || v_name, p_quiet, p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        elsif v_sub.errors = '{}' then
          properties := properties || v_sub.properties;
          items := items || v_sub.items;
        end if;
        errors := errors || v_sub.errors;
      end loop;
    end if;
    if p_quiet and errors <> '{}' or cardinality(errors) > 300 then
      return;
    end if;
  end if;

  -- Subschemas of what is in it.
  if v_type = 'object' and p_schema ?| '{properties,patternProperties,additionalProperties,propertyNames}' then
    steps := steps + ai.passing_steps(p_value);
    if steps > p_most then
      return;
    end if;
    v_names := '{}';
    for v_name, v_one in select v.key, v.value from jsonb_each(p_value) v loop
      steps := steps + 1 + octet_length(v_name) / 1000;
      if steps > p_most then
        return;
      end if;
      v_count := 0;
      if p_schema #> array['properties', v_name] is not null and jsonb_typeof(p_schema -> 'properties') = 'object' then
        v_count := 1;
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema #> array['properties', v_name], v_base, v_scope, v_one,
          p_at || '/' || replace(replace(v_name, '~', '~0'), '/', '~1'), p_where || '/properties/' || v_name, p_quiet, p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        end if;
        errors := errors || v_sub.errors;
      end if;
      if jsonb_typeof(p_schema -> 'patternProperties') = 'object' then
        for v_key in select jsonb_object_keys(p_schema -> 'patternProperties') loop
          v_read := p_index #> array['patterns', v_key];
          v_text := v_read ->> 'as';
          steps := steps + ai.pattern_steps(v_read, length(v_name));
          if steps > p_most then
            return;
          elsif v_text is null then
            errors := errors || array[p_at, p_where || '/patternProperties', 'this pattern cannot be used'];
          elsif v_name ~ v_text then
            v_count := 1;
            select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema #> array['patternProperties', v_key], v_base, v_scope, v_one,
              p_at || '/' || replace(replace(v_name, '~', '~0'), '/', '~1'), p_where || '/patternProperties/' || v_key, p_quiet, p_depth + 1, steps, p_most, p_until);
            steps := v_sub.steps;
            if steps > p_most then
              return;
            end if;
            errors := errors || v_sub.errors;
          end if;
        end loop;
      end if;
      if v_count = 0 and p_schema ? 'additionalProperties' then
        v_count := 1;
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'additionalProperties', v_base, v_scope, v_one,
          p_at || '/' || replace(replace(v_name, '~', '~0'), '/', '~1'), p_where || '/additionalProperties', p_quiet, p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        end if;
        errors := errors || v_sub.errors;
      end if;
      if p_schema ? 'propertyNames' then
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'propertyNames', v_base, v_scope, to_jsonb(v_name),
          p_at || '/' || replace(replace(v_name, '~', '~0'), '/', '~1'), p_where || '/propertyNames', p_quiet, p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        end if;
        errors := errors || v_sub.errors;
      end if;
      if p_quiet and errors <> '{}' or cardinality(errors) > 300 then
        return;
      end if;
      if v_count = 1 and p_flags & 2 = 2 then
        v_names := v_names || v_name;
      end if;
    end loop;
    properties := properties || v_names;

  elsif v_type = 'array' and p_schema ?| '{prefixItems,items,contains}' then
    steps := steps + ai.passing_steps(p_value);
    if steps > p_most then
      return;
    end if;
    v_count := case when jsonb_typeof(p_schema -> 'prefixItems') = 'array' then jsonb_array_length(p_schema -> 'prefixItems') else 0 end;
    v_found := '{}';
    for v_one, v_n in select e.value, e.ordinality - 1 from jsonb_array_elements(p_value) with ordinality e loop
      if v_n < v_count or p_schema ? 'items' then
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema #> case when v_n < v_count then array['prefixItems', v_n::text] else '{items}' end,
          v_base, v_scope, v_one, p_at || '/' || v_n, p_where || case when v_n < v_count then '/prefixItems/' || v_n else '/items' end, p_quiet, p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        end if;
        errors := errors || v_sub.errors;
        if p_quiet and errors <> '{}' or cardinality(errors) > 300 then
          return;
        end if;
      end if;
      if p_schema ? 'contains' then
        select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'contains', v_base, v_scope, v_one, p_at, p_where || '/contains', true,
                                                     p_depth + 1, steps, p_most, p_until);
        steps := v_sub.steps;
        if steps > p_most then
          return;
        elsif v_sub.errors = '{}' then
          v_found := v_found || v_n::integer;
        end if;
      end if;
    end loop;
    if p_flags & 2 = 2 then
      items := items || v_found
        || array(select generate_series(0, case when p_schema ? 'items' then jsonb_array_length(p_value) else least(v_count, jsonb_array_length(p_value)) end - 1));
    end if;
    if p_schema ? 'contains' and p_flags & 4 = 0 then
      if cardinality(v_found) < coalesce((case when jsonb_typeof(p_schema -> 'minContains') = 'number' then (p_schema -> 'minContains')::numeric end), 1) then
        errors := errors || array[p_at, p_where || '/contains', 'has too few items that fit'];
      elsif jsonb_typeof(p_schema -> 'maxContains') = 'number' and cardinality(v_found) > (p_schema -> 'maxContains')::numeric then
        errors := errors || array[p_at, p_where || '/maxContains', 'has too many items that fit'];
      end if;
    end if;
  end if;

  if p_schema ? 'unevaluatedProperties' and v_type = 'object' then
    steps := steps + ai.passing_steps(p_value);
    if steps > p_most then
      return;
    end if;
    v_names := '{}';
    for v_name, v_one in select v.key, v.value from jsonb_each(p_value) v where v.key not in (select unnest(properties)) loop
      select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'unevaluatedProperties', v_base, v_scope, v_one,
        p_at || '/' || replace(replace(v_name, '~', '~0'), '/', '~1'), p_where || '/unevaluatedProperties', p_quiet, p_depth + 1, steps, p_most, p_until);
      steps := v_sub.steps;
      if steps > p_most then
        return;
      end if;
      errors := errors || v_sub.errors;
      v_names := v_names || v_name;
      exit when p_quiet and errors <> '{}' or cardinality(errors) > 300;
    end loop;
    properties := properties || v_names;
  elsif p_schema ? 'unevaluatedItems' and v_type = 'array' then
    steps := steps + ai.passing_steps(p_value);
    if steps > p_most then
      return;
    end if;
    v_found := '{}';
    for v_one, v_n in select e.value, e.ordinality - 1 from jsonb_array_elements(p_value) with ordinality e where e.ordinality - 1 not in (select unnest(items)) loop
      select * into v_sub from ai.json_schema_walk(p_documents, p_index, p_flags, p_schema -> 'unevaluatedItems', v_base, v_scope, v_one, p_at || '/' || v_n,
        p_where || '/unevaluatedItems', p_quiet, p_depth + 1, steps, p_most, p_until);
      steps := v_sub.steps;
      if steps > p_most then
        return;
      end if;
      errors := errors || v_sub.errors;
      v_found := v_found || v_n::integer;
      exit when p_quiet and errors <> '{}' or cardinality(errors) > 300;
    end loop;
    items := items || v_found;
  end if;
end
$$;
comment on function ai.json_schema_walk(jsonb, jsonb, integer, jsonb, text, text[], jsonb, text, text, boolean, integer, integer, integer, timestamptz) is
  'One subschema applied to one value: errors, steps, what was evaluated. Internal: ai.json_errors_until().';

-- What going through the members or items of a value counts for: all are copied before the first is looked at, even where that one
-- decides. Members are counted where there may be many.
create or replace function ai.passing_steps(p_value jsonb) returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when jsonb_typeof(p_value) = 'array' then jsonb_array_length(p_value)
              when pg_column_size(p_value) > 2000 then (select count(*) from jsonb_object_keys(p_value))::integer else 0 end / 20
         + pg_column_size(p_value) / 50000
$$;
comment on function ai.passing_steps(jsonb) is 'Steps that going through what is in a value counts for.';

-- What matching a text of so many characters may take. p_read: the pattern, as ai.read_patterns() has it; null: it cannot be used. Assertions look
-- ahead from every character.
create or replace function ai.pattern_steps(p_read jsonb, p_length bigint) returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select 1 + coalesce((p_read ->> 'again')::integer
                      + least((p_length::numeric * (length(p_read ->> 'as') + 2 * (p_read ->> 'size')::integer) / 10000)
                              * case when (p_read ->> 'looks')::boolean then greatest(p_length / 100, 1) else 1 end, 1000000000)::integer, 0)
$$;
comment on function ai.pattern_steps(jsonb, bigint) is 'Steps that matching a pattern counts for.';

-- The errors of an instance, one row each, at most 100; no row: it is valid. p_formats: format is asserted, else it only annotates. p_documents:
-- other schemas by their URI, for references; nothing is fetched. A schema that is wrong itself (a reference that leads nowhere, a pattern that
-- has no form here) makes errors too. p_most: the bound of steps; p_until: by the clock, null: however long it takes. Where one is reached the
-- only error says so. Raises PT400 for a null, or a schema that is neither object nor boolean.
create or replace function ai.json_errors_until(
  p_schema jsonb, p_instance jsonb, p_formats boolean, p_documents jsonb, p_most integer, p_until timestamptz)
returns table (instance_path text, schema_path text, message text)
language plpgsql stable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_kept constant integer := 24;  -- patterns that PostgreSQL keeps compiled beside those used here
  v_documents jsonb;
  v_index     jsonb := '{"resources": {}, "patterns": {}, "steps": 0}';
  v_base      text := '';
  v_text      text;
  v_flags     integer := case when p_formats then 1 else 0 end;
  v_steps     integer;
  v_result    record;
begin
  if p_schema is null or p_instance is null or jsonb_typeof(p_schema) not in ('object', 'boolean') or jsonb_typeof(p_documents) is distinct from 'object' or p_most is null then
    raise exception 'a schema is a JSON object or true or false, and an instance a JSON value' using errcode = 'PT400';
  end if;
  if clock_timestamp() >= p_until then
    return query select '', '', 'this takes too long to be checked';
    return;
  end if;
  v_documents := p_documents || jsonb_build_object('', p_schema);
  v_text := v_documents::text;
  if length(v_text) > 1000000 then
    return query select '', '', 'this schema is too large to be applied';
    return;
  end if;
  if v_text ~ '"(\$ref|\$dynamicRef|pattern|patternProperties)":' then
    -- The formats have expressions of their own.
    v_index := ai.json_schema_index(v_documents, p_most, case when p_formats then 0 else c_kept end);
  end if;
  -- By its size, not its text: 1e131000 is written as 131,001 characters.
  v_steps := (v_index ->> 'steps')::integer + coalesce((v_index ->> 'found')::integer, 0) + pg_column_size(p_instance) / 5000;
  if v_text ~ '"unevaluated(Items|Properties)":' then
    v_flags := v_flags | 2;
  end if;
  if p_documents ? (p_schema ->> '$schema') and p_documents -> (p_schema ->> '$schema') -> '$vocabulary' ? 'https://json-schema.org/draft/2020-12/vocab/validation' is false then
    v_flags := v_flags | 4;
  end if;
  if jsonb_typeof(p_schema -> '$id') = 'string' then
    v_base := split_part(p_schema ->> '$id', '#', 1);
  end if;
  select * into v_result
    from ai.json_schema_walk(v_documents, v_index, v_flags, case when jsonb_typeof(p_schema) = 'object' then p_schema - '$id' else p_schema end, v_base, array[v_base],
                             p_instance, '', '', false, 0, v_steps, p_most, p_until);
  if v_result.steps > p_most then
    return query select '', '', case v_result.steps when 2147483647 then 'this goes too deep to be checked' when 2147483646 then 'this takes too long to be checked'
                                                    else 'this takes too many steps to be checked' end;
  else
    return query
      select v_result.errors[n], v_result.errors[n + 1], v_result.errors[n + 2] from generate_series(1, least(cardinality(v_result.errors), 300), 3) n;
  end if;
end
$$;
comment on function ai.json_errors_until(jsonb, jsonb, boolean, jsonb, integer, timestamptz) is
  'Errors of a JSON instance under a JSON Schema, as ai.json_schema_errors() gives them, with a stop by the clock.';

-- Without the clock: whether an instance is valid does not depend on how busy a machine is.
create or replace function ai.json_schema_errors(
  p_schema jsonb, p_instance jsonb, p_formats boolean default false, p_documents jsonb default '{}', p_most integer default 50000)
returns table (instance_path text, schema_path text, message text)
language sql immutable parallel unsafe security definer
set search_path = pg_catalog, pg_temp
as $$ select * from ai.json_errors_until(p_schema, p_instance, p_formats, p_documents, p_most, null) $$;
comment on function ai.json_schema_errors(jsonb, jsonb, boolean, jsonb, integer) is
  'Errors of a JSON instance under a JSON Schema (draft 2020-12), at most 100; none: it is valid. PT400.';

create or replace function ai.json_fits(p_schema jsonb, p_instance jsonb, p_formats boolean default false) returns boolean
language sql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$ select not exists (select from ai.json_schema_errors(p_schema, p_instance, p_formats)) $$;
comment on function ai.json_fits(jsonb, jsonb, boolean) is 'Whether a JSON instance is valid under a JSON Schema (draft 2020-12); for CHECK constraints, too. PT400.';

revoke execute on function ai.json_schema_walk(jsonb, jsonb, integer, jsonb, text, text[], jsonb, text, text, boolean, integer, integer, integer, timestamptz),
  ai.passing_steps(jsonb), ai.pattern_steps(jsonb, bigint), ai.json_errors_until(jsonb, jsonb, boolean, jsonb, integer, timestamptz),
  ai.json_schema_errors(jsonb, jsonb, boolean, jsonb, integer), ai.json_fits(jsonb, jsonb, boolean) from public;
grant execute on function ai.json_schema_errors(jsonb, jsonb, boolean, jsonb, integer), ai.json_fits(jsonb, jsonb, boolean) to ai_user;
