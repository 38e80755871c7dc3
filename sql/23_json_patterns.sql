-- Regular expressions of JSON Schema (ECMA-262, unicode mode) in PostgreSQL's own, which match in linear time: what has no
-- such form (back references, most properties of Unicode) is refused instead of approximated.

-- Characters that an escape of a class stands for, as the inside of a bracket expression; null: it stands for none. \p{…}: the
-- classes that PostgreSQL has, as its collation understands them.
create or replace function ai.pattern_class(p_escape text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case p_escape
           when 'd' then '0-9'
           when 'D' then '\u0001-\u002f\u003a-\U0010ffff'
           when 'w' then 'A-Za-z0-9_'
           when 'W' then '\u0001-\u002f\u003a-\u0040\u005b-\u005e\u0060\u007b-\U0010ffff'
           when 's' then '\u0009-\u000d\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff'
           when 'S' then '\u0001-\u0008\u000e-\u001f\u0021-\u009f\u00a1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e\u2060-\u2fff\u3001-\ufefe\uff00-\U0010ffff'
           when 'p{L}' then '[:alpha:]'        when 'p{Letter}' then '[:alpha:]'           when 'p{Alphabetic}' then '[:alpha:]'
           when 'p{Lu}' then '[:upper:]'       when 'p{Uppercase_Letter}' then '[:upper:]' when 'p{Uppercase}' then '[:upper:]'
           when 'p{Ll}' then '[:lower:]'       when 'p{Lowercase_Letter}' then '[:lower:]' when 'p{Lowercase}' then '[:lower:]'
           when 'p{N}' then '[:digit:]'        when 'p{Nd}' then '[:digit:]'               when 'p{digit}' then '[:digit:]'
           when 'p{Number}' then '[:digit:]'   when 'p{Decimal_Number}' then '[:digit:]'
           when 'p{P}' then '[:punct:]'        when 'p{Punctuation}' then '[:punct:]'
           when 'p{White_Space}' then '[:space:]' end
$$;
comment on function ai.pattern_class(text) is 'The inside of a bracket expression for an escape such as d, W or p{L}; null: none.';

-- One escape at the head of p_rest, which begins behind the backslash: how long it is, and the character (as an escape of
-- PostgreSQL's) or the class that it stands for. All null: it has no form here.
create or replace function ai.pattern_escape(p_rest text, p_in_class boolean, out size integer, out single text, out class text, out negated boolean)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_first text := left(p_rest, 1);
  v_found text[];
begin
  negated := false;
  if v_first in ('d', 'D', 'w', 'W', 's', 'S') then
    size := 1;
    class := ai.pattern_class(v_first);
  elsif v_first in ('p', 'P') then
    v_found := regexp_match(p_rest, '^[pP](\{[A-Za-z_]+\})');
    class := ai.pattern_class('p' || v_found[1]);
    size := case when class is not null then length(v_found[1]) + 1 end;
    negated := v_first = 'P';
  elsif v_first in ('t', 'n', 'v', 'f', 'r') then
    size := 1;
    single := '\' || v_first;
  elsif v_first = 'b' and p_in_class then
    size := 1;
    single := '\u0008';
  elsif v_first = 'c' and substr(p_rest, 2, 1) ~ '^[A-Za-z]$' then
    size := 2;
    single := '\u' || lpad(to_hex(ascii(substr(p_rest, 2, 1)) % 32), 4, '0');
  elsif v_first = 'x' and p_rest ~ '^x[0-9a-fA-F]{2}' then
    size := 3;
    single := '\u00' || substr(p_rest, 2, 2);
  elsif p_rest ~ '^u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}' then
    size := 11;
    single := '\U' || lpad(to_hex(65536 + (('x0000' || substr(p_rest, 2, 4))::bit(32)::integer - 55296) * 1024
                                        + (('x0000' || substr(p_rest, 8, 4))::bit(32)::integer - 56320)), 8, '0');
  elsif p_rest ~ '^u(?![dD][89a-fA-F])[0-9a-fA-F]{4}' then
    size := 5;
    single := left('\u' || substr(p_rest, 2, 4), 6);
  elsif p_rest ~ '^u\{0*(10|[0-9a-fA-F])?[0-9a-fA-F]{1,4}\}' then
    v_found := regexp_match(p_rest, '^u\{0*([0-9a-fA-F]{1,6})\}');
    size := strpos(p_rest, '}');
    single := '\U' || lpad(v_found[1], 8, '0');
  elsif v_first <> '' and v_first !~ '[A-Za-z0-9]' then
    size := 1;
    single := case when v_first ~ '[[:space:]]' then v_first else '\' || v_first end;
  end if;
  if single in ('\u0000', '\U00000000') then
    size := null;  -- no text has it
  end if;
end
$$;
comment on function ai.pattern_escape(text, boolean) is 'What an escape of a pattern stands for; size null: it has no form here.';

-- A bracket expression at the head of p_rest, which begins behind the bracket.
create or replace function ai.pattern_bracket(p_rest text, out size integer, out translated text)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_not    boolean := p_rest like '^%';
  v_at     integer := case when p_rest like '^%' then 2 else 1 end;
  v_first  text;
  v_escape record;
  v_single boolean := false;  -- whether what came last can begin a range
  v_in     text := '';
begin
  loop
    v_first := substr(p_rest, v_at, 1);
    if v_first = '' then
      return;
    elsif v_first = ']' then
      size := v_at;
      translated := case when v_in <> '' then '[' || case when v_not then '^' else '' end || v_in || ']'
                         when v_not then '.' else '(?:(?!.)(?=.))' end;
      return;
    elsif v_first = '-' and v_single and substr(p_rest, v_at + 1, 1) not in (']', '') and substr(p_rest, v_at + 1, 2) !~ '^\\[dDwWsSpP]' then
      v_in := v_in || '-';
      v_single := false;
      v_at := v_at + 1;
      continue;
    elsif v_first = '\' then
      select * into v_escape from ai.pattern_escape(substr(p_rest, v_at + 1, 20), true);
      if v_escape.size is null or v_escape.negated then
        return;
      end if;
      v_in := v_in || coalesce(v_escape.single, v_escape.class);
      v_at := v_at + 1 + v_escape.size;
      v_single := v_escape.single is not null and v_in !~ '-\\?.$';
    else
      v_in := v_in || case when v_first in ('[', '^', '-') then '\' else '' end || v_first;
      v_at := v_at + 1;
      v_single := right(v_in, 2) !~ '^-' or v_first = '-';
    end if;
  end loop;
end
$$;
comment on function ai.pattern_bracket(text) is 'Translates a bracket expression; size null: it has no form here.';

-- What PostgreSQL makes of a pattern when it compiles it grows with the ways from one character to the next, and with the ways past
-- assertions (^, $, \b, lookarounds), which it tries in every combination: \b counts for three, a lookaround for two. They are counted as
-- it writes out repetitions. A part is five numbers: whether it can be empty (0 or 1); in how many ways it can be passed with assertions
-- alone; how many ways lead to its first characters; how many of its characters can be the last; how many ways are in it.

-- Two parts, one after the other.
create or replace function ai.pattern_joined(p_one float8[], p_next float8[]) returns float8[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select array[p_one[1] * p_next[1],
               (p_one[1] + p_one[2]) * (p_next[1] + p_next[2]) - p_one[1] * p_next[1],
               p_one[3] + (p_one[1] + p_one[2]) * p_next[3],
               p_next[4] + (p_next[1] + p_next[2]) * p_one[4],
               p_one[5] + p_next[5] + p_one[4] * p_next[3]]
$$;
comment on function ai.pattern_joined(float8[], float8[]) is 'The ways in two parts of a pattern, one after the other.';

-- One of two parts; null: there is none.
create or replace function ai.pattern_either(p_one float8[], p_other float8[]) returns float8[]
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_one is null then p_other
              else array[greatest(p_one[1], p_other[1]), p_one[2] + p_other[2], p_one[3] + p_other[3], p_one[4] + p_other[4], p_one[5] + p_other[5]] end
$$;
comment on function ai.pattern_either(float8[], float8[]) is 'The ways in two parts of a pattern of which one is taken.';

-- A part from p_low to p_high times; p_high null: without end. Null: far too many ways.
create or replace function ai.pattern_repeated(p_part float8[], p_low integer, p_high integer) returns float8[]
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_times integer := case when p_high is null then greatest(p_low, 1) else p_low end;
  v_past  float8 := p_part[1] + p_part[2];
  v_power float8;
  v_all   float8[] := '{1,0,0,0,0}';
begin
  if p_part[2] > 20 or greatest(p_low, p_high) * ln(greatest(v_past, 1) + case when p_part[2] > 0 then 1 else 0 end) > 30 then
    return null;
  end if;
  -- As often as it must be.
  if v_times > 0 then
    if v_past < 2 then
      v_all := array[p_part[1], v_past ^ v_times - p_part[1], p_part[3] * case when v_past = 0 then 1 else v_times end, p_part[4] * case when v_past = 0 then 1 else v_times end,
                     v_times * p_part[5] + p_part[4] * p_part[3] * case when v_past = 0 then v_times - 1 else v_times::float8 * (v_times - 1) / 2 end];
    else
      v_power := v_past ^ v_times;
      v_all := array[p_part[1], v_power - p_part[1], p_part[3] * (v_power - 1) / (v_past - 1), p_part[4] * (v_power - 1) / (v_past - 1),
                     v_times * p_part[5] + p_part[4] * p_part[3] * (v_power - v_times * v_past + v_times - 1) / (v_past - 1) ^ 2];
    end if;
  end if;
  if p_high is null then
    -- And again: from every end to every beginning, past what it asserts in every combination.
    v_power := 2 ^ p_part[2];
    return array[case when p_low = 0 then 1 else v_all[1] end, v_all[2] + v_power - 1, v_all[3] * v_power, v_all[4] * v_power, v_all[5] + p_part[4] * p_part[3] * v_power];
  elsif p_high > p_low and v_past = 0 then
    return ai.pattern_joined(v_all, array[1, 0, p_part[3] * (p_high - p_low), p_part[4], (p_high - p_low) * p_part[5] + (p_high - p_low - 1) * p_part[4] * p_part[3]]);
  elsif p_high > p_low then
    return ai.pattern_joined(v_all, ai.pattern_repeated(array[1::float8] || p_part[2:5], p_high - p_low, p_high - p_low));
  end if;
  return v_all;
end
$$;
comment on function ai.pattern_repeated(float8[], integer, integer) is 'The ways in a part of a pattern that is repeated; null: far too many.';

-- Into how many kinds the characters of a class may fall for PostgreSQL, which tells apart what the pattern tells apart.
create or replace function ai.pattern_kinds(p_pattern text) returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  with distinguished as (
    select distinct m.found[1] as one
      from regexp_matches(regexp_replace(p_pattern, '\{[0-9]+(,[0-9]*)?\}|\(\?(<?[=!]|:)', '', 'g'), '(\\.|\[(?:\\.|[^\]\\])*\]|[^()|^$*+?])', 'g') m (found)
  ), pieces as (
    select distinct m.found[1] as piece
      from distinguished d
     cross join lateral regexp_matches(case when d.one like '[%]' then substr(d.one, 2, length(d.one) - 2) else d.one end, '((?:\\.|[^\\])-(?:\\.|[^\\])|\\.|.)', 'g') m (found)
  )
  -- A class is cut by the others; each of their ranges has an inside and two ends.
  select least((select 2 ^ least(count(*) - 1, 20) from distinguished),
               (select sum(case when p.piece ~ '^\\[wWsSpP]' then 12 when length(p.piece) > 2 or p.piece ~ '^\\[dD]' then 3 else 1 end) from pieces p))::integer
$$;
comment on function ai.pattern_kinds(text) is 'How many kinds of characters a pattern may tell apart within a class.';

-- Reads a pattern. translated: as PostgreSQL writes it, not yet compiled; null: it has no form here, or would be too large. A bound of
-- more than 255 repetitions, which PostgreSQL does not take, is written as several. size: its characters, with all repetitions. ways: what
-- PostgreSQL makes of it, about; more than 20,000 where it is too large. looks: whether it looks ahead or behind.
create or replace function ai.read_pattern(p_pattern text, out translated text, out size integer, out ways integer, out looks boolean)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_weight constant integer := 2000;  -- characters, with all repetitions
  c_ways   constant integer := 20000;
  c_none   constant float8[] := '{1,0,0,0,0}';
  v_at      integer := 1;
  v_out     text := '';
  v_first   text;
  v_rest    text;
  v_found   text[];
  v_escape  record;
  v_atom    integer;              -- where in v_out begins what a quantifier would repeat; null: nothing can be repeated
  v_weight  integer := 0;         -- of it
  v_sum     integer := 0;         -- of the group so far
  v_begins  integer[] := '{}';    -- of the groups that are open
  v_sums    integer[] := '{}';
  v_low     integer;
  v_high    integer;
  v_unit    text;
  v_kinds   integer;
  v_last    float8[] := c_none;   -- the part that a quantifier would repeat
  v_branch  float8[] := c_none;   -- what is before it, since the group or the alternative began
  v_others  float8[];             -- the alternatives before this one
  v_open    jsonb := '[]';        -- of the groups that are open: how each begins, and the two above around it
begin
  looks := false;
  ways := 0;
  if length(p_pattern) > 1000 then
    ways := c_ways + 1;
    return;
  end if;
  v_kinds := ai.pattern_kinds(p_pattern);
  while v_at <= length(p_pattern) loop
    v_rest := substr(p_pattern, v_at);
    v_first := left(v_rest, 1);
    if v_first in ('*', '+', '?', '{') and v_atom is not null and (v_first <> '{' or v_rest ~ '^\{[0-9]{1,4}(,[0-9]{0,4})?\}') then
      v_unit := substr(v_out, v_atom + 1);
      if v_first = '{' then
        v_found := regexp_match(v_rest, '^\{([0-9]+)(,?)([0-9]*)\}');
        v_low := v_found[1]::integer;
        v_high := case when v_found[3] <> '' then v_found[3]::integer when v_found[2] = '' then v_low end;
        if v_low > v_high then
          return;
        elsif v_weight * greatest(v_low, v_high) > c_weight then
          ways := c_ways + 1;
          return;
        end if;
        v_last := ai.pattern_repeated(v_last, v_low, v_high);
        v_sum := v_sum + v_weight * greatest(v_low, v_high, 1);
        if greatest(v_low, v_high) <= 255 then
          v_out := v_out || format('{%s%s%s}', v_low, v_found[2], v_high);
          if v_found[2] = '' then
            v_out := left(v_out, length(v_out) - length(format('{%s%s}', v_low, v_high))) || format('{%s}', v_low);
          end if;
        else
          v_out := left(v_out, v_atom) || repeat(v_unit || '{255}', v_low / 255) || v_unit || format('{%s}', v_low % 255)
                   || case when v_high is null then v_unit || '*'
                           else repeat(v_unit || '{0,255}', (v_high - v_low) / 255) || v_unit || format('{0,%s}', (v_high - v_low) % 255) end;
        end if;
        v_at := v_at + length('{' || v_found[1] || v_found[2] || v_found[3] || '}');
      else
        v_out := v_out || v_first;
        v_at := v_at + 1;
        v_last := ai.pattern_repeated(v_last, case when v_first = '+' then 1 else 0 end, case when v_first = '?' then 1 end);
      end if;
      if v_last is null or v_last[5] > c_ways then
        ways := c_ways + 1;
        return;
      end if;
      if substr(p_pattern, v_at, 1) = '?' then
        v_at := v_at + 1;  -- whether it is greedy does not change whether it matches
      end if;
      v_atom := null;
      continue;
    elsif v_first in ('*', '+', '?') then
      return;
    end if;

    v_atom := length(v_out);
    v_weight := 1;
    if v_first <> ')' then
      v_branch := ai.pattern_joined(v_branch, v_last);
      v_last := array[0, 0, 1, 1, 0];
    end if;
    if v_first = '\' then
      if v_rest ~ '^\\[bB]' then
        v_out := v_out || case when v_rest like '\\b%' then '\y' else '\Y' end;
        v_atom := null;
        v_at := v_at + 2;
        v_last := '{0,3,0,0,0}';
      else
        select * into v_escape from ai.pattern_escape(substr(v_rest, 2, 20), false);
        if v_escape.size is null then
          return;
        end if;
        v_out := v_out || coalesce(v_escape.single, '[' || case when v_escape.negated then '^' else '' end || v_escape.class || ']');
        v_at := v_at + 1 + v_escape.size;
        v_last[3] := case when v_escape.single is null then v_kinds else 1 end;
      end if;
    elsif v_first = '[' then
      select * into v_escape from ai.pattern_bracket(substr(v_rest, 2)) b (size, single);
      if v_escape.size is null then
        return;
      end if;
      v_out := v_out || v_escape.single;
      v_at := v_at + 1 + v_escape.size;
      v_last[3] := v_kinds;
    elsif v_first = '(' then
      v_found := regexp_match(v_rest, '^\((\?:|\?=|\?!|\?<=|\?<!|\?<[A-Za-z_][A-Za-z0-9_]*>|(?!\?))');
      if v_found is null then
        return;
      end if;
      v_begins := v_begins || case when v_found[1] in ('?=', '?!', '?<=', '?<!') then -1 else v_atom end;
      v_sums := v_sums || v_sum;
      v_sum := 0;
      v_out := v_out || '(' || case when v_found[1] in ('?=', '?!', '?<=', '?<!') then v_found[1] else '?:' end;
      v_at := v_at + 1 + length(v_found[1]);
      v_atom := null;
      v_weight := 0;
      looks := looks or v_found[1] in ('?=', '?!', '?<=', '?<!');
      v_open := v_open || jsonb_build_array(jsonb_build_object('branch', v_branch, 'others', v_others));
      v_branch := c_none;
      v_others := null;
      v_last := c_none;
    elsif v_first = ')' then
      if cardinality(v_begins) = 0 then
        return;
      end if;
      v_out := v_out || ')';
      v_at := v_at + 1;
      v_atom := nullif(v_begins[cardinality(v_begins)], -1);
      v_branch := ai.pattern_either(v_others, ai.pattern_joined(v_branch, v_last));
      v_last := case when v_atom is null then array[0, 2, 0, 0, v_branch[2] + v_branch[3] + v_branch[4] + v_branch[5]] else v_branch end;
      v_branch := array(select e.value::float8 from jsonb_array_elements_text(v_open -> -1 -> 'branch') with ordinality e (value, n) order by e.n);
      v_others := case when jsonb_typeof(v_open -> -1 -> 'others') = 'array'
                       then array(select e.value::float8 from jsonb_array_elements_text(v_open -> -1 -> 'others') with ordinality e (value, n) order by e.n) end;
      v_open := v_open - (-1);
      v_weight := greatest(v_sum, 1);
      v_sum := v_sums[cardinality(v_sums)];
      v_begins := trim_array(v_begins, 1);
      v_sums := trim_array(v_sums, 1);
    elsif v_first in ('|', '^', '$') then
      v_out := v_out || v_first;
      v_at := v_at + 1;
      v_atom := null;
      v_last := '{0,1,0,0,0}';
      if v_first = '|' then
        v_others := ai.pattern_either(v_others, v_branch);
        v_branch := c_none;
        v_last := c_none;
      end if;
    elsif v_first = '.' then
      v_out := v_out || '[^\n\r\u2028\u2029]';
      v_at := v_at + 1;
      v_last[3] := v_kinds;
    else
      v_out := v_out || case when v_first in ('{', '}', ']') then '\' else '' end || v_first;
      v_at := v_at + 1;
    end if;
    v_sum := v_sum + v_weight;
    if v_sum > c_weight or length(v_out) > 20000 then
      ways := c_ways + 1;
      return;
    end if;
  end loop;
  if cardinality(v_begins) > 0 then
    return;
  end if;
  v_branch := ai.pattern_either(v_others, ai.pattern_joined(v_branch, v_last));
  ways := least(v_branch[2] + v_branch[3] + v_branch[4] + v_branch[5], c_ways + 1);
  if ways <= c_ways then
    translated := v_out;
    size := v_sum;
  end if;
end
$$;
comment on function ai.read_pattern(text) is 'Translates a regular expression of ECMA-262 into PostgreSQL''s, and says how large it becomes.';

-- Whether PostgreSQL takes a pattern that was translated. It is compiled: only for what ai.read_pattern() found small enough.
create or replace function ai.pattern_compiles(p_translated text) returns boolean
language plpgsql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  return '' ~ p_translated is not null;
exception when others then
  if ai.says_again(sqlstate) then
    raise;
  end if;
  return false;
end
$$;
comment on function ai.pattern_compiles(text) is 'Whether PostgreSQL takes this regular expression; false for a null.';

-- The pattern as PostgreSQL writes it; null: it has no form here, or would be too large.
create or replace function ai.json_pattern(p_pattern text) returns text
language sql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$ select r.translated from ai.read_pattern(p_pattern) r where ai.pattern_compiles(r.translated) $$;
comment on function ai.json_pattern(text) is 'A regular expression of ECMA-262 as PostgreSQL writes it; null: it has no form here, or would be too large.';

-- Reads the patterns of a schema. Gives {"patterns": {pattern: null (it cannot be used) or {"as": as PostgreSQL writes it, "size", "looks": as
-- ai.read_pattern() has them, "again": steps that each match counts for beside its text}}, "steps": what reading and compiling them counts for}.
-- Where that is more than p_most the rest is not read. PostgreSQL keeps 32 expressions compiled: with more patterns than p_kept each match may compile again.
create or replace function ai.read_patterns(p_patterns text[], p_most integer, p_kept integer) returns jsonb
language plpgsql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_patterns jsonb := '{}';
  v_steps    integer := 0;
  v_one      text;
  v_read     record;
begin
  foreach v_one in array p_patterns loop
    v_steps := v_steps + 1 + least(length(v_one), 1000) / 2;
    exit when v_steps > p_most;
    select * into v_read from ai.read_pattern(v_one);
    if v_read.translated is not null then
      v_steps := v_steps + v_read.ways / 10;
      exit when v_steps > p_most;
    end if;
    v_patterns := v_patterns || jsonb_build_object(v_one, case when ai.pattern_compiles(v_read.translated) then
      jsonb_build_object('as', v_read.translated, 'size', v_read.size, 'looks', v_read.looks,
                         'again', case when cardinality(p_patterns) > p_kept then 1 + v_read.ways / 10 else 0 end) end);
  end loop;
  return jsonb_build_object('patterns', v_patterns, 'steps', v_steps);
end
$$;
comment on function ai.read_patterns(text[], integer, integer) is 'The patterns of a schema as PostgreSQL writes them, and what they count for.';

revoke execute on function ai.pattern_class(text), ai.pattern_escape(text, boolean), ai.pattern_bracket(text), ai.pattern_joined(float8[], float8[]),
  ai.pattern_either(float8[], float8[]), ai.pattern_repeated(float8[], integer, integer), ai.pattern_kinds(text), ai.read_pattern(text), ai.pattern_compiles(text),
  ai.json_pattern(text), ai.read_patterns(text[], integer, integer) from public;
