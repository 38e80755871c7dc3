-- Detectors: pure functions that find personal data, secrets and terms in text. No table is read here.
--
-- Every detector is one regular expression that proposes, and a check that confirms (a checksum, a range, a word beside
-- it). A hostile text must cost no more than a harmless one of its length, and PostgreSQL's engine gives that only to
-- expressions written for it:
--   * no capturing group, back reference or lookaround beyond one character: those leave the automaton, which takes
--     some 5 ns a character, for a search that may be quadratic;
--   * repetitions either have no upper bound and no counter, or begin only where a match can begin once: a counter that
--     may start at every character multiplies the automaton's states, and each new state costs a hundred times a known one;
--   * everything runs under collation "C": the same in every database, with tables instead of calls per character.
-- U+E000 to U+E03B stand between texts and for what was replaced already: no expression matches them.
-- Each match is a new search of about a microsecond, so that no text is searched for more than ai.most_found() of them.

-- More than this many candidates in one text are not told apart any more: it counts as found, and is not redacted but
-- rejected. With a checksum that one in ten passes by chance, a thousand candidates without one do not happen.
create or replace function ai.most_found() returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select 1000 $$;
comment on function ai.most_found() is 'How many candidates a detector looks at in one text.';

-- What proposes. Ranges of letters are those of Latin with its extensions, Greek and Cyrillic: [a-z\u00c0-\u024f\u0370-\u052f].
create or replace function ai.detector_pattern(p_detector text) returns text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select case p_detector
    when 'email' then
      '(?i)[a-z0-9.!%+_''\u00c0-\u024f\u0370-\u052f-]+@(?:[a-z0-9\u00c0-\u024f\u0370-\u052f-]+\.)+(?:xn--[a-z0-9-]+|[a-z\u00c0-\u024f\u0370-\u052f]{2,24})'
    when 'phone' then
      '(?i)' || array_to_string(array[
        -- +49 (0)89 1234567, 0049 89 1234567
        '(?<![0-9a-z+])\+[1-9](?:[ ./()\u00a0-]{0,3}[0-9])+',
        '(?<![0-9a-z.,/:+#-])00[1-9](?:[ ./()-]{0,2}[0-9])+',
        -- North America: (212) 555-0143, 1-800-555-0199
        '(?<![0-9a-z.,/:+#-])(?:1[-. ])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-.])[2-9][0-9]{2}[-.][0-9]{4}(?![0-9-])',
        -- with the trunk prefix 0 or 8: 030/1234567, 06 12 34 56 78, 03-1234-5678, 8 (912) 345-67-89
        '(?<![0-9a-z.,/:+#-])0[1-9](?:[ .][0-9]{2}){4}(?![0-9])',
        '(?<![0-9a-z.,/:+#-])0[1-9][0-9]{0,4}(?: ?/ ?|[ -])[0-9]{2,8}(?:[ -][0-9]{2,6}){0,4}(?![0-9])',
        '(?<![0-9a-z.,/:+#-])8 ?\([0-9]{3}\) ?[0-9]{3}-[0-9]{2}-[0-9]{2}(?![0-9])',
        -- anything with as many digits as a number has, soon behind a word that announces one
        '(?:phone|tel|fon|call|mobile|mobil|cell|handy|nummer|number|num[eé]ro|n[uú]mero|ll[aá]m|whatsapp|sms|fax|text me|numer|тел|номер|звон|電話|电话|手机|전화)'
          || '[^0-9+.;\n\ue000-\ue03b]*[0-9](?:[ ./()-]{0,2}[0-9]){6,13}(?![0-9])'], '|')
    when 'card' then
      '(?<![0-9.])(?:[2-6][0-9]{12,18}|[2-6][0-9]{3}(?:(?: [0-9]{4}){3}|(?:-[0-9]{4}){3})(?:[ -][0-9]{1,3})?|3[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5}'
        || '|3[0-9]{3}[ -][0-9]{4}[ -][0-9]{4}[ -][0-9]{2})(?![0-9])'
    when 'iban' then
      '(?i)(?<![a-z0-9])[a-z]{2}[0-9]{2}(?:[a-z0-9]{11,30}|(?:[ -][a-z0-9]{4}){2,7}(?:[ -][a-z0-9]{1,3})?)(?![a-z0-9])'
    when 'ip' then
      '(?i)(?:(?<![a-z])(?:v|ver|version|release|section|sec|chapter|article|paragraph|clause|kapitel|absatz|abschnitt|firmware|software|python|build|§)[.: ]{0,2})?'
        || '(?:(?<![0-9.a-z])|(?<=v))[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?:\.[0-9]+)*(?![0-9a-z])'
        || '|(?<![0-9a-z:.])[0-9a-f]{0,4}:[0-9a-f:]*:(?:[0-9a-f]{1,4}|(?:[0-9]{1,3}\.){3}[0-9]{1,3})?(?![0-9a-z:])'
    when 'ssn' then
      '(?i)(?<![0-9a-z-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![0-9a-z-])'
        || '|(?<![a-z])(?:ssn|social|seguro)[^0-9;\n\ue000-\ue03b]*[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{4}(?![0-9-])'
    when 'secret' then
      array_to_string(array[
        '(?<![A-Za-z0-9])(?:sk-|gsk_|hf_|npm_|gh[pousr]_|github_pat_|glpat-|dop_v1_|doo_v1_|xox[abeoprs]-|xapp-|AIza|ya29\.|pypi-|shpat_|(?:sk|rk|pk)_(?:live|test)_|whsec_|SG\.)[A-Za-z0-9._-]{16,}',
        '(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])',
        '(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*',
        '-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=:,\s-]*',
        'hooks\.slack\.com/services/[A-Za-z0-9/_-]{20,}',
        '(?<![0-9])[0-9]{8,10}:AA[A-Za-z0-9_-]{30,}',
        '://[^][\s/:@\ue000-\ue03b]*:[^][\s/@\ue000-\ue03b]+@',
        '[Bb]earer +[A-Za-z0-9._~+/=-]{16,}',
        -- a name of a secret, then its value
        '(?:[Pp]ass(?:word|wort|wd|phrase)|PASS(?:WORD|WD|PHRASE)|[Pp]asswort|[Mm]ot de passe|[Cc]ontrase(?:ñ|n)a|[Ss]enha|[Pp]wd|PWD|[Ss]ecret|SECRET|[Tt]oken|TOKEN|[Aa]pi[-_ ]?[Kk]ey|API[-_ ]?KEY'
          || '|[Aa]ccess[-_ ]?[Kk]ey|ACCESS[-_ ]?KEY|[Pp]rivate[-_ ]?[Kk]ey)["'']?(?: *[:=]+>? *| +(?:is|ist|lautet|est|es|è|é)[: ]+)["''“]?[^][\s"'',;(){}<>“”\ue000-\ue03b]{6,}'], '|')
  end
$$;
comment on function ai.detector_pattern(text) is 'Regular expression of what may be found by a detector; null: it has none of its own.';

-- Luhn's check over the digits of a text, whatever stands between them.
create or replace function ai.luhn(p_number text) returns boolean
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_digits text := reverse(translate(p_number, ' -', ''));
  v_sum    integer := 0;
begin
  if v_digits !~ '^[0-9]{2,40}$' then
    return false;
  end if;
  for i in 1 .. length(v_digits) loop
    v_sum := v_sum + case when i % 2 = 1 then ascii(substr(v_digits, i, 1)) - 48 else (array[0, 2, 4, 6, 8, 1, 3, 5, 7, 9])[ascii(substr(v_digits, i, 1)) - 47] end;
  end loop;
  return v_sum % 10 = 0;
end
$$;
comment on function ai.luhn(text) is 'Whether the digits, among spaces and dashes, pass Luhn''s check.';

-- The part of the text that is an IBAN, from its beginning: a country's IBANs all have one length, so that words behind a
-- number in groups of four are not taken for groups. Null: none, or its remainder by 97 is not 1.
create or replace function ai.iban_in(p_text text) returns text
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_lengths constant text := 'AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28'
    'HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24'
    'SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20';
  v_at     integer := strpos(c_lengths, upper(left(p_text, 2)));
  v_length integer;
  v_iban   text := upper(translate(left(p_text, 60), ' -', ''));
  v_number text := '';
  v_rest   integer := 0;
  v_code   integer;
begin
  if v_at = 0 or v_at % 4 <> 1 then
    return null;
  end if;
  v_length := substr(c_lengths, v_at + 2, 2)::integer;
  v_iban := left(v_iban, v_length);
  if length(v_iban) < v_length or v_iban !~ '^[A-Z0-9]+$' then
    return null;
  end if;
  v_number := substr(v_iban, 5) || left(v_iban, 4);
  for i in 1 .. v_length loop
    v_code := ascii(substr(v_number, i, 1));
    v_rest := case when v_code < 58 then (v_rest * 10 + v_code - 48) % 97 else (v_rest * 100 + v_code - 55) % 97 end;
  end loop;
  if v_rest <> 1 then
    return null;
  end if;
  -- As it stands in the text, with its separators, unless letters go on behind it.
  v_number := substring(p_text collate "C" from '^(?:[ -]*[A-Za-z0-9]){' || v_length || '}');
  return case when substr(p_text, length(v_number) + 1, 1) collate "C" !~ '[A-Za-z0-9]' then v_number end;
end
$$;
comment on function ai.iban_in(text) is 'The IBAN that a text begins with, its checksum right; null: none.';

-- Whether a text of hexadecimal groups is an IPv6 address. Short compressed forms such as 1::3 are slices and the like
-- more often than hosts, and do not count.
create or replace function ai.is_ipv6(p_text text) returns boolean
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_text   text := p_text;
  v_groups text[];
begin
  if length(v_text) > 45 or v_text like '%:::%' or v_text like '%::%::%' then
    return false;
  end if;
  if v_text like '%.%' then
    v_text := regexp_replace(v_text, '[0-9.]+$', '0:0');
  end if;
  v_groups := array_remove(string_to_array(v_text, ':'), '');
  if exists (select from unnest(v_groups) g where length(g) > 4) then
    return false;
  elsif v_text like '%::%' then
    return cardinality(v_groups) < 8 and (v_text = '::1' or cardinality(v_groups) >= 3 or length(v_groups[1]) >= 3 and cardinality(v_groups) = 2);
  end if;
  return cardinality(v_groups) = 8 and v_text !~ '^:|:$';
end
$$;
comment on function ai.is_ipv6(text) is 'Whether a text is an IPv6 address that is not likely to be something else.';

-- What of a candidate is the thing itself: all of it, or the value behind the word that announced it. Null: it only
-- looked like it. A candidate may be as long as the text; no more than its first thousand characters are looked at.
create or replace function ai.confirmed(p_detector text, p_candidate text) returns text
language plpgsql immutable strict parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_text   text := left(p_candidate, 1000) collate "C";
  v_digits text;
  v_value  text;
begin
  case p_detector
    when 'phone' then
      v_value := substring(v_text from '[+(]*[0-9][0-9 ./()\u00a0-]*$');
      v_digits := regexp_replace(v_value, '[^0-9]', '', 'g');
      if v_text ~ '^[+(0-9]' then
        -- 01-05-2024 and 2024-01-05 are dates
        if v_value ~ '^[+]' or v_value ~ '^00' then
          return case when length(v_digits) between 8 and 17 then v_value end;
        end if;
        return case when length(v_digits) between 9 and 12 then v_value end;
      end if;
      -- The word must be near: no more than 25 characters before the number.
      return case when length(v_digits) between 7 and 14
                    and right(left(v_text, length(v_text) - length(v_value)), 25)
                        ~* 'phone|tel|fon|call|mobil|cell|handy|num|núm|ll[aá]m|whatsapp|sms|fax|text me|тел|номер|звон|電話|电话|手机|전화' then v_value end;
    when 'card' then
      v_digits := translate(v_text, ' -', '');
      if not (v_digits ~ '^4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})$'
              or v_digits ~ '^(?:5[0-8]|2[2-7])[0-9]{14}$' or v_digits ~ '^6[0-9]{15,18}$'
              or v_digits ~ '^3[47][0-9]{13}$' or v_digits ~ '^3[0689][0-9]{12}(?:[0-9]{2})?$' or v_digits ~ '^35[0-9]{14,17}$') then
        return null;
      end if;
      return case when ai.luhn(v_digits) then v_text end;
    when 'iban' then
      return ai.iban_in(v_text);
    when 'ip' then
      if v_text ~ '^[0-9]+[.]' then
        return case when v_text ~ '^(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:[.]|$)){4}$' and v_text !~ '[.]$' then v_text end;
      end if;
      return case when v_text ~ '^[0-9a-fA-F:.]+$' and ai.is_ipv6(lower(v_text)) then v_text end;
    when 'ssn' then
      v_value := substring(v_text from '[0-9]{3}[ -]?[0-9]{2}[ -]?[0-9]{4}$');
      v_digits := translate(v_value, ' -', '');
      if v_digits ~ '^(?:000|666|9)' or v_digits ~ '^...00' or v_digits ~ '0000$' then
        return null;
      end if;
      return case when v_text ~ '^[0-9]' or length(v_text) - length(v_value) <= 60 then v_value end;
    when 'secret' then
      if v_text ~ '^://' then
        return case when v_text ~ ':[^:]{3,}@$' then substr(p_candidate, 4, length(p_candidate) - 4) end;
      elsif v_text ~ '^-----BEGIN' then
        -- Up to the line that ends it, if there is one.
        return coalesce(substring(p_candidate collate "C" from '^-----BEGIN[^-]*-----[^-]*-----END[^-]*-----'), rtrim(p_candidate, E' \n\r\t'));
      elsif v_text ~ '^[Bb]earer' then
        return substring(p_candidate from '[^ ]+$');
      elsif v_text ~* '^(?:pass|mot|contra|senha|pwd|secret|token|api|access|private)' then
        v_value := rtrim(substring(p_candidate collate "C" from '(?:[:=]+>? *| (?:is|ist|lautet|est|es|è|é)[: ]+)["''“]?([^]["'',;(){}<>“”[:space:]]{6,})$'), '.');
        -- A word is not a secret, a word with digits may be one; [ would be a placeholder's.
        return case when v_value ~ '[0-9]' and v_value ~ '[A-Za-z]' and v_value !~ '^(?:https?://|[$%])' then v_value end;
      end if;
      return case when v_text ~ '[0-9]' or length(v_text) >= 30 or v_text ~ '^A[A-Z]{3}' then rtrim(p_candidate, '.') end;
    else
      return p_candidate;
  end case;
end
$$;
comment on function ai.confirmed(text, text) is 'The thing itself within what a detector''s pattern matched; null: it only looks like it.';

-- Candidates in order, with what is confirmed of each (null: nothing). excess: there are more than ai.most_found(), and
-- nothing is listed.
create or replace function ai.find_in(p_detector text, p_pattern text, p_text text, out candidates text[], out confirmed text[], out excess boolean)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  excess := false;
  candidates := '{}';
  confirmed := '{}';
  if p_text collate "C" !~ p_pattern then
    return;
  end if;
  -- Replaces the one behind the last that is allowed, and stops there: the only count that ends early.
  if regexp_replace(p_text collate "C", p_pattern, '', 1, ai.most_found() + 1) <> p_text then
    excess := true;
    return;
  end if;
  select array_agg(m.c[1] order by m.n), array_agg(ai.confirmed(p_detector, m.c[1]) order by m.n)
    into candidates, confirmed
    from regexp_matches(p_text collate "C", p_pattern, 'g') with ordinality m (c, n);
end
$$;
comment on function ai.find_in(text, text, text) is 'What a pattern proposes in a text and what of it is confirmed, in order.';

-- What is found, as a list: for trying a rule before it is made.
create or replace function ai.find_all(p_detector text, p_text text) returns setof text
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select c from ai.find_in(p_detector, ai.detector_pattern(p_detector), p_text) f, unnest(f.confirmed) with ordinality u (c, n)
   where c is not null order by n
$$;
comment on function ai.find_all(text, text) is 'What a detector of personal data or secrets finds in a text, in order.';

-- Whether there is nothing to be seen: spaces, marks of direction and joiners only.
create or replace function ai.is_blank(p_text text) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select p_text is null or p_text collate "C" !~ '[^\x01-\x20\x7f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0]'
$$;
comment on function ai.is_blank(text) is 'Whether a text has no character that can be seen.';

revoke execute on function ai.most_found(), ai.detector_pattern(text), ai.luhn(text), ai.iban_in(text), ai.is_ipv6(text), ai.confirmed(text, text),
  ai.find_in(text, text, text), ai.find_all(text, text), ai.is_blank(text) from public;
