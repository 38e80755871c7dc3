-- Placeholders: what is found is replaced by [EMAIL_1] and the like, and put back where it was asked for. Pure functions.
--
-- No placeholder is ever given out that the text already has, or that was given out before: whoever writes [EMAIL_1] into
-- a text gets it back as it was, and never somebody's address.

-- What a placeholder looks like. Numbers grow from 1; those of more digits than any text has findings are nobody's.
create or replace function ai.placeholder_pattern() returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$ select '\[(?:EMAIL|PHONE|CARD|IBAN|IP|SSN|SECRET|TERM|PATTERN)_[0-9]{1,9}\]' $$;
comment on function ai.placeholder_pattern() is 'Regular expression of placeholders.';

-- A character that a text does not have, to stand between its parts and for what was replaced. Null where a text has all
-- of those that are tried, which no text has by chance.
create or replace function ai.unused_character(p_text text) returns text
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  for i in 1 .. 60 loop  -- U+E000 to U+E03B
    if strpos(p_text, chr(57343 + i) collate "C") = 0 then
      return chr(57343 + i);
    end if;
  end loop;
  return null;
end
$$;
comment on function ai.unused_character(text) is 'A private-use character that does not occur in a text; null: all that were tried do.';

-- The placeholders in a text, each once; null: more than ai.most_found().
create or replace function ai.placeholders_in(p_text text) returns text[]
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_text collate "C" !~ ai.placeholder_pattern() then
    return '{}';
  elsif regexp_replace(p_text collate "C", ai.placeholder_pattern(), '', 1, ai.most_found() + 1) <> p_text then
    return null;
  end if;
  return array(select distinct m.c[1] from regexp_matches(p_text collate "C", ai.placeholder_pattern(), 'g') m (c));
end
$$;
comment on function ai.placeholders_in(text) is 'The placeholders that a text has, each once; null: too many.';

-- Replaces what a detector finds. p_mask (a character that the text does not have and no expression matches) covers the
-- placeholders given out before while this detector looks, so that none is found, or found within, again. Equal values get equal placeholders.
-- excess: more candidates, or placeholders of the text's own, than are told apart; then nothing is replaced.
create or replace function ai.redact(
  p_detector text, p_pattern text, p_text text, p_mask text, p_taken text[], p_placeholders text[], p_originals text[],
  out text text, out placeholders text[], out originals text[], out hits integer, out excess boolean)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_label  text := case p_detector when 'terms' then 'TERM' else upper(p_detector) end;
  v_masked text := p_text;
  v_hidden text[];
  v_in     record;
  v_value  text;
  v_new    text;
  v_next   integer := 1;
begin
  text := p_text;
  placeholders := p_placeholders;
  originals := p_originals;
  hits := 0;
  if cardinality(placeholders) > 0 and v_masked collate "C" ~ ai.placeholder_pattern() then
    with pieces as (
      select p.n, p.piece, m.c[1] as own, k.placeholder
        from regexp_split_to_table(p_text collate "C", ai.placeholder_pattern()) with ordinality p (piece, n)
        left join regexp_matches(p_text collate "C", ai.placeholder_pattern(), 'g') with ordinality m (c, n) on m.n = p.n
        left join (select distinct u.placeholder from unnest(placeholders) u (placeholder)) k on k.placeholder = m.c[1]
    )
    select string_agg(p.piece || case when p.placeholder is not null then p_mask else coalesce(p.own, '') end, '' order by p.n),
           array_agg(p.placeholder order by p.n) filter (where p.placeholder is not null)
      into v_masked, v_hidden from pieces p;
  end if;

  v_in := ai.find_in(p_detector, p_pattern, v_masked);
  excess := v_in.excess;
  hits := cardinality(array_remove(v_in.confirmed, null));
  if excess or hits = 0 then
    return;
  end if;

  for v_value in select c.value from unnest(v_in.confirmed) with ordinality c (value, n) where c.value is not null group by c.value order by min(c.n) loop
    continue when array_position(originals, v_value) is not null;
    loop
      v_new := '[' || v_label || '_' || v_next || ']';
      v_next := v_next + 1;
      exit when array_position(placeholders, v_new) is null and array_position(p_taken, v_new) is null;
    end loop;
    placeholders := placeholders || v_new;
    originals := originals || v_value;
  end loop;

  with known as (
    select k.original, min(k.placeholder) as placeholder from unnest(placeholders, originals) k (placeholder, original) where k.original is not null group by k.original
  )
  select string_agg(p.piece || case when k.placeholder is null then coalesce(c.candidate, '') else replace(c.candidate, c.value, k.placeholder) end, '' order by p.n)
    into text
    from regexp_split_to_table(v_masked collate "C", p_pattern) with ordinality p (piece, n)
    left join unnest(v_in.candidates, v_in.confirmed) with ordinality c (candidate, value, n) on c.n = p.n
    left join known k on k.original = c.value;
  if v_hidden is not null then
    select string_agg(p.piece || coalesce(h.placeholder, ''), '' order by p.n)
      into text
      from unnest(string_to_array(text, p_mask)) with ordinality p (piece, n)
      left join unnest(v_hidden) with ordinality h (placeholder, n) on h.n = p.n;
  end if;
end
$$;
comment on function ai.redact(text, text, text, text, text[], text[], text[]) is 'Replaces what a detector finds by placeholders.';

-- Puts back what placeholders stand for, each where it is, in one pass. Null: the text has more than 20,000 placeholders, or would have more
-- bytes than an answer may (docs/hardening.md): a short answer may name a long original many times.
create or replace function ai.restore(p_text text, p_placeholders text[], p_originals text[]) returns text
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_times constant integer := 20000;
  c_bytes constant integer := 16777216;
  v_known jsonb;
  v_found text[];
begin
  if cardinality(p_placeholders) = 0 or p_text collate "C" !~ ai.placeholder_pattern() then
    return p_text;
  elsif regexp_replace(p_text collate "C", ai.placeholder_pattern(), '', 1, c_times + 1) <> p_text then
    return null;
  end if;
  v_known := jsonb_object(p_placeholders, p_originals);
  v_found := array(select m.c[1] from regexp_matches(p_text collate "C", ai.placeholder_pattern(), 'g') with ordinality m (c, n) order by m.n);
  if octet_length(p_text) + (select sum(f.times * coalesce(octet_length(v_known ->> f.placeholder) - octet_length(f.placeholder), 0))
                               from (select u.placeholder, count(*) as times from unnest(v_found) u (placeholder) group by u.placeholder) f) > c_bytes then
    return null;
  end if;
  return (select string_agg(p.piece || coalesce(v_known ->> p.found, p.found, ''), '' order by p.n)
            from unnest(regexp_split_to_array(p_text collate "C", ai.placeholder_pattern()), v_found) with ordinality p (piece, found, n));
end
$$;
comment on function ai.restore(text, text[], text[]) is 'A text with what its placeholders stand for; null: that is too much.';

revoke execute on function ai.placeholder_pattern(), ai.unused_character(text), ai.placeholders_in(text), ai.redact(text, text, text, text, text[], text[], text[]),
  ai.restore(text, text[], text[]) from public;
