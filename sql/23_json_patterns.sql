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

-- The pattern as PostgreSQL writes it; null: it has no form here, or would be too large. A bound of more than 255 repetitions,
-- which PostgreSQL does not take, is written as several.
create or replace function ai.json_pattern(p_pattern text) returns text
language plpgsql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_weight constant integer := 2000;  -- states, about
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
begin
  if length(p_pattern) > 1000 then
    return null;
  end if;
  while v_at <= length(p_pattern) loop
    v_rest := substr(p_pattern, v_at);
    v_first := left(v_rest, 1);
    if v_first in ('*', '+', '?', '{') and v_atom is not null and (v_first <> '{' or v_rest ~ '^\{[0-9]{1,4}(,[0-9]{0,4})?\}') then
      v_unit := substr(v_out, v_atom + 1);
      if v_first = '{' then
        v_found := regexp_match(v_rest, '^\{([0-9]+)(,?)([0-9]*)\}');
        v_low := v_found[1]::integer;
        v_high := case when v_found[3] <> '' then v_found[3]::integer when v_found[2] = '' then v_low end;
        if v_low > v_high or v_weight * greatest(v_low, v_high) > c_weight then
          return null;
        end if;
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
      end if;
      if substr(p_pattern, v_at, 1) = '?' then
        v_at := v_at + 1;  -- whether it is greedy does not change whether it matches
      end if;
      v_atom := null;
      continue;
    elsif v_first in ('*', '+', '?') then
      return null;
    end if;

    v_atom := length(v_out);
    v_weight := 1;
    if v_first = '\' then
      if v_rest ~ '^\\[bB]' then
        v_out := v_out || case when v_rest like '\\b%' then '\y' else '\Y' end;
        v_atom := null;
        v_at := v_at + 2;
      else
        select * into v_escape from ai.pattern_escape(substr(v_rest, 2, 20), false);
        if v_escape.size is null then
          return null;
        end if;
        v_out := v_out || coalesce(v_escape.single, '[' || case when v_escape.negated then '^' else '' end || v_escape.class || ']');
        v_at := v_at + 1 + v_escape.size;
      end if;
    elsif v_first = '[' then
      select * into v_escape from ai.pattern_bracket(substr(v_rest, 2)) b (size, single);
      if v_escape.size is null then
        return null;
      end if;
      v_out := v_out || v_escape.single;
      v_at := v_at + 1 + v_escape.size;
    elsif v_first = '(' then
      v_found := regexp_match(v_rest, '^\((\?:|\?=|\?!|\?<=|\?<!|\?<[A-Za-z_][A-Za-z0-9_]*>|(?!\?))');
      if v_found is null then
        return null;
      end if;
      v_begins := v_begins || case when v_found[1] in ('?=', '?!', '?<=', '?<!') then -1 else v_atom end;
      v_sums := v_sums || v_sum;
      v_sum := 0;
      v_out := v_out || '(' || case when v_found[1] in ('?=', '?!', '?<=', '?<!') then v_found[1] else '?:' end;
      v_at := v_at + 1 + length(v_found[1]);
      v_atom := null;
      v_weight := 0;
    elsif v_first = ')' then
      if cardinality(v_begins) = 0 then
        return null;
      end if;
      v_out := v_out || ')';
      v_at := v_at + 1;
      v_atom := nullif(v_begins[cardinality(v_begins)], -1);
      v_weight := greatest(v_sum, 1);
      v_sum := v_sums[cardinality(v_sums)];
      v_begins := trim_array(v_begins, 1);
      v_sums := trim_array(v_sums, 1);
    elsif v_first in ('|', '^', '$') then
      v_out := v_out || v_first;
      v_at := v_at + 1;
      v_atom := null;
    elsif v_first = '.' then
      v_out := v_out || '[^\n\r\u2028\u2029]';
      v_at := v_at + 1;
    else
      v_out := v_out || case when v_first in ('{', '}', ']') then '\' else '' end || v_first;
      v_at := v_at + 1;
    end if;
    v_sum := v_sum + v_weight;
    if v_sum > c_weight or length(v_out) > 20000 then
      return null;
    end if;
  end loop;
  if cardinality(v_begins) > 0 then
    return null;
  end if;
  begin
    perform '' ~ v_out;
  exception when others then
    if ai.says_again(sqlstate) then
      raise;
    end if;
    return null;
  end;
  return v_out;
end
$$;
comment on function ai.json_pattern(text) is 'A regular expression of ECMA-262 as PostgreSQL writes it; null: it has no form here, or would be too large.';

revoke execute on function ai.pattern_class(text), ai.pattern_escape(text, boolean), ai.pattern_bracket(text), ai.json_pattern(text) from public;
