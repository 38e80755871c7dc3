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
select is((select count(*)::integer from information_schema.role_routine_grants g where g.routine_schema = 'ai' and g.routine_name = 'json_schema_walk' and g.grantee = 'PUBLIC'), 0, 'the walk is nobody''s');

select * from finish();
rollback;
