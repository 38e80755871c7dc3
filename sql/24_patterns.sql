-- Patterns and terms of tenants, as regular expressions that cannot be slow. PostgreSQL's engine is an automaton whose
-- states are made when they are first needed: a text that keeps needing new ones costs fifty times as much a character. A
-- tenant's pattern therefore is a small language without back references, lookaround and unbounded repetition, of which
-- the automaton is built here, once, when the rule is inserted, and refused when it is large.

-- Sets of characters are lists of ranges of code points: 48-57,65-90. Its complement, and what it has in the other case.
create or replace function ai.inverted_ranges(p_ranges text) returns text
language sql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select string_agg(lower(r) || '-' || upper(r) - 1, ',')
                     from unnest(int4multirange(int4range(1, 1114112)) - (select range_agg(int4range(split_part(u, '-', 1)::integer, split_part(u, '-', 2)::integer + 1))
                                                                           from unnest(string_to_array(p_ranges, ',')) u)) r), '')
$$;
comment on function ai.inverted_ranges(text) is 'All characters but these.';

create or replace function ai.both_cases(p_ranges text) returns text
language sql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  with small as (
    select int4range(split_part(u, '-', 1)::integer, split_part(u, '-', 2)::integer + 1) as r from unnest(string_to_array(p_ranges, ',')) u
  ), both_of as (
    select r from small
    union all select int4range(lower(r * int4range(65, 91)) + 32, upper(r * int4range(65, 91)) + 32) from small where r && int4range(65, 91)
    union all select int4range(lower(r * int4range(97, 123)) - 32, upper(r * int4range(97, 123)) - 32) from small where r && int4range(97, 123)
  )
  select string_agg(lower(x) || '-' || upper(x) - 1, ',') from unnest((select range_agg(r) from both_of)) x
$$;
comment on function ai.both_cases(text) is 'These characters, and ASCII letters of them in the other case.';

-- Reads a pattern and gives it in reverse Polish form: sets of characters, . (then), | (or), ? (or nothing); repetitions
-- written out. compiled: the same for PostgreSQL, no group of which captures. Raises PT400 for what is not of the language.
create or replace function ai.parsed_pattern(p_pattern text, p_ignore_case boolean, out tokens text[], out compiled text)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  c_most   constant integer := 60;
  -- Characters that stand for something else while rules are applied: nothing matches them.
  c_ours   constant text := '\ue000-\ue03b';
  v_chars  text[] := regexp_split_to_array(p_pattern, '');
  v_length integer := length(p_pattern);
  v_at     integer := 1;
  v_char   text;
  v_set    text;
  v_class  text;
  v_not    boolean;
  v_from   integer;
  v_to     integer;
  v_rest   text;
  v_level  integer := 1;
  -- Of each open group: what is before the last |, what is before the last atom, the last atom; each in reverse Polish form.
  v_ors    text[] := '{""}';
  v_thens  text[] := '{""}';
  v_atoms  text[] := '{""}';
  v_atom   text;
  v_copies text;
begin
  if coalesce(v_length, 0) not between 1 and 500 then
    raise exception 'a pattern has 1 to 500 characters' using errcode = 'PT400';
  end if;
  compiled := case when p_ignore_case then '(?i)' else '' end;
  while v_at <= v_length loop
    v_char := v_chars[v_at];
    v_at := v_at + 1;
    v_set := null;
    if v_char in ('{', '?', '*', '+') then
      if v_char in ('*', '+') then
        raise exception 'a pattern must not repeat without an upper bound' using errcode = 'PT400', detail = format('Character %s: %s', v_at - 1, v_char),
          hint = 'Write {0,20} or {1,20}: what may be endless may take endlessly long.';
      end if;
      v_rest := substring(array_to_string(v_chars[v_at : v_at + 5], '') from '^([0-9]{1,2}(,[0-9]{1,2})?)\}');
      if v_atoms[v_level] = '' or v_char = '{' and v_rest is null then
        raise exception 'a pattern cannot repeat this' using errcode = 'PT400', detail = format('Character %s: %s', v_at - 1, v_char),
          hint = 'A repetition is ?, {3} or {1,20}, at most 60, behind a character, a class or a group, and not behind another repetition.';
      end if;
      if v_char = '?' then
        v_from := 0;
        v_to := 1;
        compiled := compiled || '?';
      else
        v_from := split_part(v_rest, ',', 1)::integer;
        v_to := coalesce(nullif(split_part(v_rest, ',', 2), '')::integer, v_from);
        v_at := v_at + length(v_rest) + 1;
        compiled := compiled || '{' || v_rest || '}';
      end if;
      if v_to < 1 or v_to < v_from or v_to > c_most then
        raise exception 'a pattern repeats something at most % times', c_most using errcode = 'PT400';
      end if;
      v_copies := '';
      for i in 1 .. v_to loop
        v_copies := v_copies || v_atoms[v_level] || case when i > v_from then '? ' else '' end || case when i > 1 then '. ' else '' end;
        if length(v_copies) > 100000 then
          raise exception 'the pattern is too large' using errcode = 'PT400', detail = format('Written out it may have %s characters.', c_most);
        end if;
      end loop;
      v_thens[v_level] := v_thens[v_level] || v_copies || case when v_thens[v_level] <> '' then '. ' else '' end;
      v_atoms[v_level] := '';
      continue;
    end if;

    -- What is not repeated joins what is before it.
    if v_atoms[v_level] <> '' then
      v_thens[v_level] := v_thens[v_level] || v_atoms[v_level] || case when v_thens[v_level] <> '' then '. ' else '' end;
      v_atoms[v_level] := '';
    end if;
    if v_char = '(' then
      if v_chars[v_at] = '?' then
        if v_chars[v_at + 1] is distinct from ':' then
          raise exception 'a pattern knows no lookaround and no options' using errcode = 'PT400', detail = format('Character %s.', v_at - 1),
            hint = 'Groups are ( ) or (?: ). For case see options.ignore_case.';
        end if;
        v_at := v_at + 2;
      end if;
      if v_level = 10 then
        raise exception 'a pattern has groups at most 9 deep' using errcode = 'PT400';
      end if;
      v_level := v_level + 1;
      v_ors[v_level] := '';
      v_thens[v_level] := '';
      v_atoms[v_level] := '';
      compiled := compiled || '(?:';
    elsif v_char in ('|', ')') then
      if v_thens[v_level] = '' or v_char = ')' and v_level = 1 then
        raise exception 'a group or alternative of the pattern is empty, or not closed' using errcode = 'PT400', detail = format('Character %s.', v_at - 1);
      end if;
      v_atom := v_ors[v_level] || v_thens[v_level] || case when v_ors[v_level] <> '' then '| ' else '' end;
      compiled := compiled || v_char;
      if v_char = '|' then
        v_ors[v_level] := v_atom;
        v_thens[v_level] := '';
      else
        v_level := v_level - 1;
        v_atoms[v_level] := v_atom;
      end if;
    elsif v_char = '\' then
      v_char := v_chars[v_at];
      v_at := v_at + 1;
      if v_char in ('m', 'M', 'y') then
        compiled := compiled || '\' || v_char;
        continue;
      end if;
      v_set := case lower(v_char) when 'd' then '48-57' when 'w' then '48-57,65-90,95-95,97-122' when 's' then '9-13,32-32' end;
      if v_set is not null and v_char in ('D', 'W', 'S') then
        v_set := ai.inverted_ranges(v_set);
      elsif v_set is null and v_char is not null and v_char !~ '[[:alnum:]]' then
        v_set := ascii(v_char) || '-' || ascii(v_char);
      elsif v_set is null then
        raise exception 'a pattern knows no \%', coalesce(v_char, '') using errcode = 'PT400', hint = 'It knows \d \w \s \D \W \S \m \M \y, and \ before a sign. Back references are not linear.';
      end if;
      compiled := compiled || case when v_char in ('D', 'W', 'S') then '[^\' || lower(v_char) || c_ours || ']' else '\' || v_char end;
    elsif v_char = '[' then
      v_class := '';
      v_not := v_chars[v_at] = '^';
      if v_not then
        v_at := v_at + 1;
      end if;
      v_from := v_at;
      loop
        v_char := v_chars[v_at];
        if v_char is null or v_char = '[' or v_char = ']' and v_at = v_from then
          raise exception 'a class of the pattern is not closed, or has [ or is empty' using errcode = 'PT400', hint = 'In a class, [ and ] are \[ and \].';
        end if;
        exit when v_char = ']';
        v_at := v_at + 1;
        if v_char = '\' then
          v_char := v_chars[v_at];
          v_at := v_at + 1;
          v_set := case v_char when 'd' then '48-57' when 'w' then '48-57,65-90,95-95,97-122' when 's' then '9-13,32-32' end;
          if v_set is null and (v_char is null or v_char ~ '[[:alnum:]]') then
            raise exception 'a class of the pattern knows no \%', coalesce(v_char, '') using errcode = 'PT400', hint = 'It knows \d \w \s, and \ before a sign.';
          end if;
          v_set := coalesce(v_set, ascii(v_char) || '-' || ascii(v_char));
        elsif v_chars[v_at] = '-' and v_chars[v_at + 1] is distinct from ']' then
          v_to := ascii(v_chars[v_at + 1]);
          if v_to < ascii(v_char) or v_chars[v_at + 1] in ('\', '[') then
            raise exception 'a range in a class of the pattern is none' using errcode = 'PT400';
          end if;
          v_set := ascii(v_char) || '-' || v_to;
          v_at := v_at + 2;
        else
          v_set := ascii(v_char) || '-' || ascii(v_char);
        end if;
        v_class := concat_ws(',', nullif(v_class, ''), v_set);
      end loop;
      compiled := compiled || '[' || case when v_not then '^' || c_ours else '' end || array_to_string(v_chars[v_from : v_at], '');
      v_at := v_at + 1;
      v_set := case when p_ignore_case then ai.both_cases(v_class) else v_class end;
      v_set := case when v_not then ai.inverted_ranges(v_set) else v_set end;
    elsif v_char = '.' then
      v_set := '1-1114111';
      compiled := compiled || '[^' || c_ours || ']';
    elsif v_char in ('^', '$', '}', ']') then
      raise exception 'a pattern has no % but as \%', v_char, v_char using errcode = 'PT400', hint = 'It is looked for anywhere in the text.';
    else
      v_set := ascii(v_char) || '-' || ascii(v_char);
      compiled := compiled || v_char;
    end if;
    if v_set is not null then
      v_atoms[v_level] := case when p_ignore_case then ai.both_cases(v_set) else v_set end || ' ';
    end if;
  end loop;

  v_atom := v_thens[1] || v_atoms[1] || case when v_atoms[1] <> '' and v_thens[1] <> '' then '. ' else '' end;
  if v_level > 1 or v_atom = '' then
    raise exception 'a group or alternative of the pattern is empty, or not closed' using errcode = 'PT400';
  end if;
  tokens := string_to_array(rtrim(v_ors[1] || v_atom || case when v_ors[1] <> '' then '| ' else '' end), ' ');
  if (select count(*) from unnest(tokens) t where t not in ('.', '|', '?')) > c_most then
    raise exception 'the pattern is too large' using errcode = 'PT400', detail = format('Written out it may have %s characters.', c_most);
  end if;
end
$$;
comment on function ai.parsed_pattern(text, boolean) is 'A tenant''s pattern in reverse Polish form, and for PostgreSQL; raises PT400 for what it does not allow.';

-- The regular expression for a tenant's pattern. Raises PT400 where it is not allowed, matches nothing at all, or needs an
-- automaton of more than 200 states: Glushkov's construction with sets of positions as bits, then its subsets, as far as that.
create or replace function ai.pattern_expression(p_pattern text, p_ignore_case boolean) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most   constant integer := 200;
  v_parsed record := ai.parsed_pattern(p_pattern, p_ignore_case);
  v_token  text;
  v_sets   text[] := '{}';
  v_follow bigint[] := '{}';
  v_empty  boolean[] := '{}';
  v_first  bigint[] := '{}';
  v_last   bigint[] := '{}';
  v_top    integer := 0;
  v_masks  bigint[];
  v_states bigint[];
  v_done   integer := 0;
  v_next   bigint;
begin
  foreach v_token in array v_parsed.tokens loop
    if v_token = '?' then
      v_empty[v_top] := true;
    elsif v_token = '|' then
      v_top := v_top - 1;
      v_empty[v_top] := v_empty[v_top] or v_empty[v_top + 1];
      v_first[v_top] := v_first[v_top] | v_first[v_top + 1];
      v_last[v_top] := v_last[v_top] | v_last[v_top + 1];
    elsif v_token = '.' then
      v_top := v_top - 1;
      for i in 1 .. cardinality(v_sets) loop
        if v_last[v_top] & (1::bigint << (i - 1)) <> 0 then
          v_follow[i] := v_follow[i] | v_first[v_top + 1];
        end if;
      end loop;
      v_first[v_top] := v_first[v_top] | case when v_empty[v_top] then v_first[v_top + 1] else 0 end;
      v_last[v_top] := v_last[v_top + 1] | case when v_empty[v_top + 1] then v_last[v_top] else 0 end;
      v_empty[v_top] := v_empty[v_top] and v_empty[v_top + 1];
    else
      v_sets := v_sets || v_token;
      v_follow := v_follow || 0::bigint;
      v_top := v_top + 1;
      v_empty[v_top] := false;
      v_first[v_top] := 1::bigint << (cardinality(v_sets) - 1);
      v_last[v_top] := v_first[v_top];
    end if;
  end loop;
  if v_empty[1] then
    raise exception 'the pattern also fits nothing at all' using errcode = 'PT400', hint = 'Some of it must not be optional.';
  end if;

  -- One character stands for all that no set tells apart; of each, the positions that take it.
  with ranges as (
    select s.n, split_part(u, '-', 1)::integer as low, split_part(u, '-', 2)::integer as high
      from unnest(v_sets) with ordinality s (ranges, n) cross join lateral unnest(string_to_array(s.ranges, ',')) u
  ), points as (
    select low as point from ranges union select high + 1 from ranges
  )
  select array_agg(distinct m.mask)
    into v_masks
    from (select bit_or(1::bigint << (r.n - 1)::integer) as mask from points p join ranges r on p.point between r.low and r.high group by p.point) m;

  v_states := array[v_first[1]];
  while v_done < cardinality(v_states) loop
    v_done := v_done + 1;
    for i in 1 .. cardinality(v_masks) loop
      v_next := v_first[1];
      for j in 1 .. cardinality(v_sets) loop
        if v_states[v_done] & v_masks[i] & (1::bigint << (j - 1)) <> 0 then
          v_next := v_next | v_follow[j];
        end if;
      end loop;
      if array_position(v_states, v_next) is null then
        v_states := v_states || v_next;
        if cardinality(v_states) > c_most then
          raise exception 'the pattern could be slow' using errcode = 'PT400',
            detail = format('Its automaton has more than %s states, because what it begins with may occur within it in too many ways.', c_most),
            hint = 'Shorten repetitions of . and of classes, above all those of an exact number.';
        end if;
      end if;
    end loop;
  end loop;
  return v_parsed.compiled;
end
$$;
comment on function ai.pattern_expression(text, boolean) is 'The regular expression for a tenant''s pattern; raises PT400 where it is not allowed or could be slow.';

-- A character of a term as an expression, in either case: the engine knows the cases of ASCII under "C"; those of other letters stand beside each other.
create or replace function ai.term_character(p_char text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case when p_char collate "C" ~ '[a-zA-Z0-9_]' then p_char
              when k.at > 0 then '[' || p_char || substr(k.other, k.at, 1) || ']'
              when p_char collate "C" ~ '[\x01-\x7f]' then '\' || p_char else p_char end
    from (select strpos(s.small || s.large, p_char) as at, s.large || s.small as other
            from (select 'àáâãäåæçèéêëìíîïñòóôõöøùúûüýąćęłńśźżčďěňřšťůžğşабвгдежзийклмнопрстуфхцчшщъыьэюяёїієґαβγδεζηθικλμνξοπρστυφχψωάέήίόύώ' as small,
                         'ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝĄĆĘŁŃŚŹŻČĎĚŇŘŠŤŮŽĞŞАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁЇІЄҐΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩΆΈΉΊΌΎΏ' as large) s) k
$$;
comment on function ai.term_character(text) is 'A regular expression that finds a character of a term, whatever its case.';

-- One expression for a list of terms: in either case and either normal form of Unicode, as whole words where a term begins or ends with a
-- letter or digit of an alphabet, any blanks where it has one. Databases in another encoding than UTF8 have no normal forms.
create or replace function ai.terms_expression(p_terms text[]) returns text
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select '(?i)(?:' || string_agg(
           case when t.term collate "C" ~ '^[a-zA-Z0-9_\u00c0-\u024f\u0370-\u052f]' then '(?<![a-z0-9_\u00c0-\u024f\u0300-\u052f])' else '' end
           || (select string_agg(case when c.c ~ '[[:space:]]' then '[[:space:]\u00a0]+'
                                      when f.apart = c.c then ai.term_character(c.c)
                                      else '(?:' || ai.term_character(c.c) || '|' || ai.term_character(left(f.apart, 1)) || substr(f.apart, 2) || ')' end, '' order by c.n)
                 from regexp_split_to_table(regexp_replace(t.term, '[[:space:]]+', ' ', 'g'), '') with ordinality c (c, n)
                cross join lateral (select case getdatabaseencoding() when 'UTF8' then normalize(c.c, nfd) else c.c end as apart) f)
           || case when t.term collate "C" ~ '[a-zA-Z0-9_\u00c0-\u024f\u0370-\u052f]$' then '(?![a-z0-9_\u00c0-\u024f\u0300-\u052f])' else '' end, '|' order by t.term) || ')'
    from (select distinct btrim(case getdatabaseencoding() when 'UTF8' then normalize(u.term, nfc) else u.term end, E' \t\n\r') as term from unnest(p_terms) u (term)) t
$$;
comment on function ai.terms_expression(text[]) is 'A regular expression that finds terms, whatever their case and normal form, as whole words.';

revoke execute on function ai.inverted_ranges(text), ai.both_cases(text), ai.parsed_pattern(text, boolean), ai.pattern_expression(text, boolean),
  ai.term_character(text), ai.terms_expression(text[]) from public;
