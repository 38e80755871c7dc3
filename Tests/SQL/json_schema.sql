-- ai.json_schema_errors() where it could loop, and what it says; the official suite is run by Tests/Structured.
begin;
\ir setup/world.sql
select no_plan();

create function t.state(p_sql text) returns text language plpgsql as $$
begin
  execute p_sql;
  return 'ok';
exception when others then
  return sqlstate;
end
$$;
create function t.errors(p_schema jsonb, p_instance jsonb) returns text language sql as $$
  select string_agg(concat_ws(' ', e.instance_path, e.schema_path, e.message), '; ' order by e.instance_path, e.schema_path) from ai.json_schema_errors(p_schema, p_instance) e
$$;
create function t.nested(p_open text, p_inner text, p_close text, p_times integer) returns jsonb language sql as $$
  select (repeat(p_open, p_times) || p_inner || repeat(p_close, p_times))::jsonb
$$;

-- What it says.
select is(t.errors('{"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "integer", "minimum": 3}}, "additionalProperties": false}', '{"a": 2, "c/d": 1}'),
          ' /required lacks b; /a /properties/a/minimum is less than 3; /c~1d /additionalProperties nothing is allowed here', 'every error is said, with its place');
select is(t.errors('{"type": "object", "required": ["a", "b"], "properties": {"a": {"type": "integer", "minimum": 3}}}', '{"a": 3, "b": null}'), null, 'what is valid has none');
select is(t.errors('{"anyOf": [{"type": "string"}, {"type": "null"}]}', '1'), ' /anyOf fits none of the schemas', 'a choice says that nothing fits, not why each did not');
select is((select count(*)::integer from ai.json_schema_errors('{"items": {"type": "string"}}', (select jsonb_agg(n) from generate_series(1, 1000) n))), 100, 'at most a hundred errors are given');
select unalike(t.errors('{"const": "a", "type": "integer", "enum": [1], "pattern": "^a", "maxLength": 1}', '"my secret"'), '%secret%', 'no error quotes the instance');
select ok(ai.json_fits('{"minLength": 2}', '"ab"') and not ai.json_fits('{"minLength": 2}', '"a"'), 'ai.json_fits() says yes or no');
select ok(ai.json_fits('true', '1') and not ai.json_fits('false', '1'), 'true and false are schemas');
select ok(ai.json_fits('{"format": "ipv4"}', '"x"') and not ai.json_fits('{"format": "ipv4"}', '"x"', true), 'formats are asserted where asked');
select throws_ok($$select * from ai.json_schema_errors(null, '1')$$, 'PT400', null, 'no schema is refused');
select throws_ok($$select * from ai.json_schema_errors('{}', null)$$, 'PT400', null, 'no instance is refused');
select throws_ok($$select * from ai.json_schema_errors('[]', '1')$$, 'PT400', null, 'a schema is no array');

-- What could loop, or take for ever.
select is(t.errors(schema, '1'), '  this goes too deep to be checked', name)
  from (values ('{"$ref": "#"}'::jsonb, 'a reference to itself ends'), ('{"allOf": [{"$ref": "#"}, {"$ref": "#"}]}', 'two of them do not double'),
               ('{"not": {"$ref": "#"}}', 'nor does a schema that is not itself'), ('{"$dynamicAnchor": "a", "$dynamicRef": "#a"}', 'nor a dynamic one'),
               ('{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}', 'nor two that lead to each other')) v (schema, name);
select is((select e.message from ai.json_schema_errors((
            select jsonb_build_object('$ref', '#/$defs/a0', '$defs', jsonb_object_agg('a' || n, case when n = 40 then 'true'::jsonb
                     else jsonb_build_object('allOf', jsonb_build_array(jsonb_build_object('$ref', '#/$defs/a' || n + 1), jsonb_build_object('$ref', '#/$defs/a' || n + 1))) end))
              from generate_series(0, 40) n), '1') e), 'this takes too many steps to be checked', 'what doubles forty times is given up');
select is(t.errors('{"not": {"allOf": [{"$ref": "#"}]}}', '1'), '  this goes too deep to be checked', 'what is given up is not valid because it stands under a not');
select is(t.errors('{"properties": {"a": {"$ref": "#"}}}', t.nested('{"a":', '1', '}', 90)), null, 'an instance of 90 levels is checked');
select is(t.errors('{"properties": {"a": {"$ref": "#"}}}', t.nested('{"a":', '1', '}', 5000)), '  this goes too deep to be checked', 'one of 5,000 is not');
select is(t.errors(t.nested('{"not":', 'true', '}', 5000), '1'), '  this goes too deep to be checked', 'nor a schema of 5,000');
select is(t.errors('{"pattern": "^(a+)+$"}', to_jsonb(repeat('a', 100000) || 'b')), ' /pattern does not match the pattern ^(a+)+$', 'a pattern that makes others backtrack takes no time');
select is(t.errors('{"pattern": "(?=(a*)*b)a{1,1000}$"}', to_jsonb(repeat('a', 100000))), '  this takes too many steps to be checked', 'looking ahead from every character counts');
select is(t.errors(jsonb_build_object('pattern', p), '"x"'), ' /pattern this pattern cannot be used', p || ' is refused')
  from unnest(array['(a)\1', '(?<n>a)\k<n>', '((a{1,99}){1,99}){1,99}', 'a{5000}', '(', 'a)', '[', '*a', '(?i)a', '\p{Script=Greek}', repeat('a', 1001), '***=a', 'a**']) p;
select ok(ai.json_fits(jsonb_build_object('pattern', pattern), to_jsonb(value)) = fits, format('%s %s %s', pattern, case when fits then 'matches' else 'does not match' end, left(value, 20)))
  from (values ('^a{300}$', repeat('a', 300), true), ('^a{300}$', repeat('a', 299), false), ('^.{1,500}$', repeat('x', 500), true), ('^.{1,500}$', repeat('x', 501), false), ('^(ab){256,}$', repeat('ab', 255), false),
               ('^(ab){256,}$', repeat('ab', 1000), true), ('^\d+$', '৪২', false), ('^\w+$', 'a_1', true), ('^[\w.-]+@[\w-]+$', 'a.b@c-d', true), ('^[\s\S]*$', E'a\nb', true), ('^.$', E'\n', false),
               ('^[^x]$', E'\n', true), ('\ba\b', 'b a c', true), ('\ba\b', 'bac', false), ('^[a\-z]+$', '-az', true), ('^[a\-z]+$', 'b', false), ('^[[]$', '[', true), ('^[\]]$', ']', true), ('^[]a]$', 'a', false),
               ('^\u{1F600}$', '😀', true), ('^\uD83D\uDE00$', '😀', true), ('^\x41\cA?$', 'A', true), ('^(?<year>\d{4})$', '2020', true), ('^(?:a|b)*?$', 'abab', true), ('^a{,3}$', 'a{,3}', true), ('^{a}$', '{a}', true),
               ('^\/$', '/', true), ('(?<=a)b', 'ab', true), ('(?<!a)b', 'ab', false), ('^[:alpha:]+$', 'alp:', true), ('^(\([0-9]{3}\))?[0-9]{3}-[0-9]{4}$', '(888)555-1212', true)) v (pattern, value, fits);
select is(t.errors('{"multipleOf": 1e-16000}', '1e131000'), null, 'numbers of any size are divided');
select is(t.errors('{"multipleOf": 0.0001}', '0.00751'), ' /multipleOf is no multiple of 0.0001', 'exactly');
select is(t.errors('{"maximum": 9007199254740992}', '9007199254740993'), ' /maximum is more than 9007199254740992', 'and compared exactly');
select is((select e.message from ai.json_schema_errors('{"uniqueItems": true}', (select jsonb_agg(n) from generate_series(1, 30000) n), p_most => 1000) e), 'this takes too many steps to be checked',
          'more items than the steps allow are not compared');
-- A schema that was not checked makes errors, not exceptions.
select is(t.state(format('select count(*) from ai.json_schema_errors(%L, %L)', schema, instance)), 'ok', schema::text || ' raises nothing')
  from unnest(array['{"minimum": "a", "maximum": null, "multipleOf": 0}', '{"type": 5, "enum": 1, "required": "x", "properties": [1], "patternProperties": 7, "items": 3, "prefixItems": {}}',
                    '{"allOf": 1, "anyOf": {}, "oneOf": [1, "a"], "not": 7, "if": 1, "then": 2, "dependentSchemas": 1, "dependentRequired": {"a": 1}}',
                    '{"$ref": 5, "$id": 7, "$anchor": [], "$defs": 1, "format": 1, "pattern": 2, "minLength": -1, "maxItems": "x", "minContains": {}, "contains": 4}',
                    '{"$ref": "#/%zz", "$dynamicRef": "::::"}', '{"multipleOf": -1, "minItems": 1e300, "unevaluatedProperties": 3, "unevaluatedItems": "x", "propertyNames": 1}',
                    '{"$ref": "http://[::1", "$id": "%%%"}', '{"properties": {"a": 1}, "$ref": "#/properties/a/b/c"}']::jsonb[]) schema
 cross join unnest(array['1', '"abc"', '{"a": {"b": 1}}', '[1, [2], {"a": 3}]', 'null', 'true']::jsonb[]) instance;

-- What is said of a schema before it is kept.
select is(t.state(format('select ai.check_json_schema(%L)', schema)), 'ok', schema::text || ' is a schema')
  from unnest(array['true', '{}', '{"type": ["string", "null"], "x-mine": 5}', '{"$defs": {"a": {"$anchor": "b"}}, "$ref": "#b"}', '{"enum": []}', '{"$ref": "#"}', '{"definitions": {"a": {}}, "$ref": "#/definitions/a"}']::jsonb[]) schema;
select is(t.state(format('select ai.check_json_schema(%L)', schema)), 'PT400', left(schema::text, 50) || ' is none')
  from unnest(array['5', '"a"', '[]', '{"type": "text"}', '{"type": []}', '{"type": [1]}', '{"minimum": "1"}', '{"minLength": -1}', '{"minLength": 1.5}', '{"multipleOf": 0}', '{"required": "a"}', '{"required": [1]}',
                    '{"properties": []}', '{"properties": {"a": 1}}', '{"items": [{}]}', '{"allOf": []}', '{"anyOf": [1]}', '{"pattern": "("}', '{"pattern": 1}', '{"patternProperties": {"(": true}}', '{"$ref": "#/nowhere"}',
                    '{"$ref": "https://example.org/s.json"}', '{"uniqueItems": 1}', '{"properties": {"a": {"items": {"type": 1}}}}', '{"dependentRequired": {"a": ["b", 1]}}', '{"enum": 1}', '{"not": 1}',
                    '{"$dynamicRef": "#nowhere"}']::jsonb[]
            || t.nested('{"not":', '{}', '}', 399) || jsonb_build_object('description', repeat('x', 100000))) schema;
select throws_ok('select ai.check_json_schema(null)', 'PT400', null, 'null is none');
-- What patterns may take: 20,000 ways in one, 10,000 steps in a schema, and 24 that stay compiled.
select is(format('%s %s', r.translated is not null, r.ways), format('%s %s', v.fits, v.ways), format('%s has %s ways', left(pattern, 40), v.ways))
  from (values ('', true, 0), ('a', true, 2), ('abc', true, 4), ('a|b', true, 4), ('a?', true, 2), ('a*', true, 3), ('a+', true, 3), ('a{3}', true, 4), ('a{3,}', true, 5), ('a{0,3}', true, 6), ('(a?){3}', true, 9),
               ('(a{2}){3}', true, 7), ('(?=ab)c', true, 6), ('^a$', true, 2), ('\b', true, 3), ('(\b|a?){2}', true, 26), ('[a-z]{5}', true, 6), ('[a-z]{5}[0-9]', true, 13), ('^.{0,1000}$', true, 2001),
               ('(a?){198}', true, 19899), ('(a?){199}', false, 20001), ('(^|$|a?){8}', true, 14756), ('(^|$|a?){9}', false, 20001), ('(\b|a?){6}', true, 7278), ('(\b|a?){7}', false, 20001), ('((a|b?)*){100}', false, 20001), ('(?=(a?){199})b', false, 20001),
               ('(((?=a)|x?)((?=b)|x?)((?=c)|x?)((?=d)|x?)((?=e)|x?)((?=f)|x?))*', false, 20001), ('(^|$|a?){100}', false, 20001), ('a{2000}', true, 2001), ('a{2001}', false, 20001), ('(a{40}){60}', false, 20001),
               (repeat('a', 1000), true, 1001), (repeat('a', 1001), false, 20001), ('(', false, 0)) v (pattern, fits, ways)
 cross join lateral ai.read_pattern(pattern) r;
select is(t.state(format('select ai.check_json_schema(%L)', jsonb_build_object('pattern', p))), 'ok', left(p, 60) || ' is a pattern that many have')
  from unnest(array['^[A-Za-z0-9_-]{1,64}$', '^.{0,1000}$', '^[\s\S]{1,1500}$', '^[^<>"{}]{1,1000}$', '^Hello, .{1,1000}$', '^[A-Z][a-z0-9 ]{1,900}[.!?]$', '^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})$',
                    '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$', '^\+?[0-9 ()-]{7,20}$', '^(\w+ ?){1,200}$', '^(?:[A-Z][a-z]{0,30} ?){1,10}$', '^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[A-Za-z\d@$!%*?&]{8,64}$',
                    '^((25[0-5]|2[0-4]\d|1?\d?\d)(\.(?!$)|$)){4}$', '^[a-zA-Z0-9.!#$%&''*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$',
                    '^https?:\/\/(www\.)?[-a-zA-Z0-9@:%._\+~#=]{1,256}\.[a-zA-Z0-9()]{1,6}\b([-a-zA-Z0-9()@:%_\+.~#?&//=]*)$', '^(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}$',
                    '^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?$']) p;
select throws_ok(format('select ai.check_json_schema(%L)', schema), 'PT400', message, name)
  from (values ('{"pattern": "(a?){199}"}'::jsonb, 'this JSON Schema has a pattern that is too large', 'a pattern above the limit is refused'),
               ('{"patternProperties": {"(a?){199}": true}}', 'this JSON Schema has a pattern that is too large', 'wherever it stands'),
               (jsonb_build_object('pattern', repeat('a', 1001)), 'this JSON Schema has a pattern that is too large', 'nor may one have more than 1,000 characters'),
               ('{"pattern": "(a)\\1"}', 'this JSON Schema has a pattern that cannot be used', 'what has no form here is told from it')) v (schema, message, name);

-- A schema of so many patterns, which differ in one letter, and one more as it is given.
create function t.patterns(p_many integer, p_pattern text, p_last text) returns jsonb language sql as $$
  select jsonb_build_object('allOf', jsonb_agg(jsonb_build_object('pattern', case when n = 0 then p_last else replace(p_pattern, '%', chr(255 + n)) end)))
    from generate_series(case when p_last is null then 1 else 0 end, p_many) n
$$;
create function t.pattern_steps(p_schema jsonb) returns integer language sql as $$
  select (ai.json_schema_index(jsonb_build_object('', p_schema), 1000000, 24) ->> 'steps')::integer
$$;
select is(t.pattern_steps('{"pattern": "abc"}'), 2, 'a pattern counts for a step, and half its characters');
select is(t.pattern_steps('{"pattern": "^.{0,1000}$"}'), 206, 'and a tenth of its ways');
select is(t.pattern_steps('{"items": {"pattern": "^.{0,1000}$"}, "properties": {"a": {"pattern": "^.{0,1000}$"}}}'), 206, 'once, however often it is there');
select is(t.pattern_steps('{"properties": {"a": {"patternProperties": {"abc": true, "^.{0,1000}$": true}}}}'), 208, 'names of properties have patterns, too');
select is(format('%s %s', t.pattern_steps(t.patterns(9, '(%?){140}', p)), t.state(format('select ai.check_json_schema(%L)', t.patterns(9, '(%?){140}', p)))), format('%s %s', steps, state), format('patterns of %s steps together: %s', steps, state))
  from (values ('(z?){135}a{54}', 9999, 'ok'), ('(z?){135}a{64}', 10000, 'ok'), ('(z?){135}a{74}', 10001, 'PT400')) v (p, steps, state);
select throws_ok(format('select ai.check_json_schema(%L)', t.patterns(10, '(%?){140}', null)), 'PT400', 'the patterns of this JSON Schema are too large together', 'it says what is wrong');
select is(t.state(format('select ai.check_json_schema(%L)', t.patterns(40, '([a-z]*[0-9]*){100}|%', null))), 'PT400', 'forty patterns of a hundred repetitions are none');

-- What was not checked before it is applied.
create function t.least(p_schema jsonb, p_instance jsonb, p_formats boolean default false) returns integer language plpgsql as $$
declare
  v_low  integer := 0;
  v_high integer := 50000;
begin
  while v_low < v_high loop  -- the bound of steps that is just enough
    if exists (select from ai.json_schema_errors(p_schema, p_instance, p_formats, '{}', (v_low + v_high) / 2) e where e.message like '%too many steps%') then
      v_low := (v_low + v_high) / 2 + 1;
    else
      v_high := (v_low + v_high) / 2;
    end if;
  end loop;
  return v_low;
end
$$;
select is(t.errors(t.patterns(100, '([a-z]*[0-9]*){40}|%', null), '"a"'), '  this takes too many steps to be checked', 'nor are they applied where nobody checked them');
select is(t.errors(jsonb_build_object('$ref', 'https://example.org/s')  || '{"pattern": "(a?){199}"}', '"a"'), ' /$ref this reference leads nowhere;  /pattern this pattern cannot be used', 'one that is too large is an error');
select is((select e.message from ai.json_schema_errors('{"$ref": "https://example.org/s"}', '"a"', p_documents => jsonb_build_object('https://example.org/s', t.patterns(100, '(%?){100}', null))) e),
          'this takes too many steps to be checked', 'patterns of other documents count');
select is(t.least('{"pattern": "abc"}', '"abc"'), 2 + 1 + 1, 'steps: the pattern, the value, the match');
select is(t.least('{"items": {"pattern": "abc"}}', '["abc", "abc"]'), 2 + 1 + 2 * 2, 'a pattern is compiled once');
select is(t.least('{"items": {"pattern": "abc"}}', '["abc", "abc"]', true), 2 + 1 + 2 * 3, 'or for each match, beside the expressions of the formats');
select is(t.least('{"pattern": "^.{0,1000}$"}', to_jsonb(repeat('x', 1000))), 206 + 1 + 1 + (1000.0 * (length(ai.json_pattern('^.{0,1000}$')) + 2 * 1003) / 10000)::integer, 'a match counts for the text by what is repeated');
select is(t.least(t.patterns(24, '(%?){20}', null), '""'), 24 * (1 + 4 + 23) + 1 + 24 * 2, '24 patterns stay compiled');
select is(t.least(t.patterns(25, '(%?){20}', null), '""'), 25 * (1 + 4 + 23) + 1 + 25 * (2 + 1 + 23), 'with 25 each match may compile one');
select is(t.least('{"patternProperties": {"a": true, "b": true}}', '{"x": 1, "y": 2}'), 2 * 1 + 1 + 2 * (1 + 2), 'names count as texts do');
select is(t.least('{"format": "regex"}', '"(a?){100}"', true), 1 + 4 + 515, 'a text that is to be a pattern counts as one');

-- What a keyword or a value makes longer counts.
create function t.list(p_many integer, p_item jsonb default null) returns jsonb language sql as $$
  select jsonb_agg(coalesce(p_item, to_jsonb('n' || n)) order by n) from generate_series(1, p_many) n
$$;
create function t.object(p_many integer, p_value jsonb) returns jsonb language sql as $$ select jsonb_object_agg('n' || n, p_value) from generate_series(1, p_many) n $$;
select is(t.least(schema, instance), 1 + pg_column_size(instance) / 5000 + more, format('%s: %s steps more', what, more))
  from (values (jsonb_build_object('required', t.list(2000)), '{}'::jsonb, 2000 / 20, 'names that are required'),
               (jsonb_build_object('type', t.list(2000, '"null"')), '1', 2000 / 20, 'types'),
               (jsonb_build_object('enum', t.list(2000)), '1', 2000 / 50 + pg_column_size(t.list(2000)) / 1000, 'values that are allowed'),
               (jsonb_build_object('enum', jsonb_build_array(t.list(2000))), '1', pg_column_size(jsonb_build_array(t.list(2000))) / 1000, 'a long one'),
               (jsonb_build_object('const', t.list(2000)), '1', pg_column_size(t.list(2000)) / 1000, 'the one that is required'),
               (jsonb_build_object('dependentRequired', jsonb_build_object('a', t.list(2000))), '{"a": 1}', pg_column_size(jsonb_build_object('a', t.list(2000))) / 300, 'names that another one requires'),
               (jsonb_build_object('dependentSchemas', t.object(2000, 'true')), '{}', pg_column_size(t.object(2000, 'true')) / 1000 + pg_column_size(jsonb_build_object('dependentSchemas', t.object(2000, 'true'))) / 20000,
                'schemas that may follow from names'),
               (jsonb_build_object('anyOf', t.list(2000, 'true')), '1', 2000 / 50 + 1, 'a choice that ends with its first'),
               ('{"anyOf": [{"items": false}, true]}', t.list(2000), 2000 / 20 + 3, 'items of which the first decides'),
               ('{"minProperties": 1}', t.object(2000, '1'), 2000 / 20, 'members that are counted'),
               ('{"anyOf": [{"additionalProperties": false}, true]}', t.object(2000, '1'), 2000 / 20 + 4, 'members of which the first decides'),
               ('{"prefixItems": [true]}', t.list(2000), 2000 / 20 + 1, 'items that no schema is for'),
               ('{"multipleOf": 3}', '1e131000', 131001 * 31 / 100000, 'a number of many digits'),
               ('{"additionalProperties": {"prefixItems": [true, true]}}', jsonb_build_object(repeat('x', 200000), '[1, 2]'::jsonb), 4 + (1 + 200) + 3 * (1 + 10), 'a long name, in every place below it'),
               ('{"uniqueItems": true}', t.list(2, t.list(2000, '1')), (pg_column_size(t.list(2, t.list(2000, '1'))) * ln(3) / 2000)::integer, 'items to be compared to their ends')) v (schema, instance, more, what);
select is(t.errors('{"items": {"type": "integer", "maximum": 1e131000}}', t.list(10000, '1e131000')), null, 'numbers are never written out');
select ok(t.least(jsonb_build_object('$ref', '#/$defs/a', '$defs', jsonb_build_object('a', jsonb_build_object('x', t.list(2000)))), '1') > pg_column_size(t.list(2000)) / 1000, 'what a reference leads to counts');
select is(t.state(format('select ai.check_json_schema(%L)', schema)), expected, what)
  from (values ('{"required": ["a", "b", "a"]}'::jsonb, 'PT400', 'a name that is required twice'), ('{"type": ["null", "null"]}', 'PT400', 'a type that is there twice'),
               ('{"dependentRequired": {"a": ["b"], "c": ["b", "b"]}}', 'PT400', 'a name that another one requires twice'), ('{"dependentRequired": {"a": ["b"], "c": ["b"]}}', 'ok', 'once by each'),
               ('{"minimum": 1e399}', 'ok', 'a number of 400 digits'), ('{"minimum": 1e400}', 'PT400', 'of more'), ('{"maxLength": 1e400}', 'PT400', 'a length'), ('{"multipleOf": 1e-400}', 'PT400', 'a divisor'),
               (jsonb_build_object('$id', repeat('x', 2000)), 'ok', 'a URI of 2,000 characters'), (jsonb_build_object('$id', repeat('x', 2001)), 'PT400', 'of more'),
               (jsonb_build_object('$comment', repeat('x', 2001)), 'ok', 'a comment')) v (schema, expected, what);
-- The clock stops what counts have not foreseen: in settling only.
select is((select e.message from ai.json_errors_until('{}', '1', false, '{}', 50000, clock_timestamp()) e), 'this takes too long to be checked', 'no time is left');
select is((select w.steps from ai.json_schema_walk('{"": true}', '{}', 0, 'true', '', '{}', '1', '', '', false, 0, 0, 9, v.until) w), v.steps, v.what)
  from (values (clock_timestamp(), 2147483646, 'nor at any step'), (clock_timestamp() + interval '1 hour', 1, 'there is time'), (null, 1, 'or no clock')) v (until, steps, what);

select is((select count(*)::integer from information_schema.role_routine_grants g where g.routine_schema = 'ai' and g.routine_name = 'json_schema_walk' and g.grantee = 'PUBLIC'), 0, 'the walk is nobody''s');

select * from finish();
rollback;
