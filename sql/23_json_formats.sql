-- The formats of JSON Schema (draft 2020-12, section 7.3) where they are asserted. What is written in another script is judged by its shape
-- alone: idn-hostname and idn-email know no tables of Unicode.

create or replace function ai.is_full_date(p_text text) returns boolean
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_year  integer;
  v_month integer;
  v_day   integer;
begin
  if p_text !~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' then
    return false;
  end if;
  v_year := left(p_text, 4);
  v_month := substr(p_text, 6, 2);
  v_day := substr(p_text, 9, 2);
  return v_month between 1 and 12
     and v_day between 1 and case when v_month in (4, 6, 9, 11) then 30 when v_month <> 2 then 31
                                  when v_year % 4 = 0 and (v_year % 100 <> 0 or v_year % 400 = 0) then 29 else 28 end;
end
$$;
comment on function ai.is_full_date(text) is 'Whether a text is a full-date of RFC 3339.';

-- A leap second is one at 23:59:60 of universal time.
create or replace function ai.is_full_time(p_text text) returns boolean
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_part   text[] := regexp_match(p_text, '^([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)(?:\.[0-9]+)?(?:[zZ]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))$');
  v_minute integer;
begin
  if v_part is null then
    return false;
  elsif v_part[3] <> '60' then
    return true;
  end if;
  v_minute := v_part[1]::integer * 60 + v_part[2]::integer
            - case when v_part[4] is null then 0 else (v_part[4] || '1')::integer * (v_part[5]::integer * 60 + v_part[6]::integer) end;
  return (v_minute + 1440) % 1440 = 1439;
end
$$;
comment on function ai.is_full_time(text) is 'Whether a text is a full-time of RFC 3339.';

create or replace function ai.is_ipv6_address(p_text text) returns boolean
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_text text := regexp_replace(p_text, '(^|:)((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3})$', '\10:0');
  v_halves text[] := string_to_array(v_text, '::');
begin
  if length(p_text) > 45 or v_text !~ '^[0-9a-fA-F:]+$' or cardinality(v_halves) > 2 then
    return false;
  elsif cardinality(v_halves) = 1 then
    return v_text ~ '^[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){7}$';
  end if;
  return v_halves[1] ~ '^([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*)?$' and v_halves[2] ~ '^([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*)?$'
     and cardinality(string_to_array(v_halves[1], ':')) + cardinality(string_to_array(v_halves[2], ':')) <= 7;
end
$$;
comment on function ai.is_ipv6_address(text) is 'Whether a text is an IPv6 address (RFC 4291).';

-- RFC 1123, with labels of other scripts where p_idn.
create or replace function ai.is_hostname(p_text text, p_idn boolean) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select length(p_text) between 1 and 253
     and not exists (
       select from unnest(string_to_array(case when p_idn then regexp_replace(p_text, '[\u3002\uff0e\uff61]', '.', 'g') else p_text end, '.')) l
        where length(l) not between 1 and 63 or l like '-%' or l like '%-' or l ~ '^..--' and l !~* '^xn--[a-z0-9-]*[a-z0-9]$'
           or l !~ case when p_idn then '^[a-zA-Z0-9\u0080-\U0010ffff-]+$' else '^[a-zA-Z0-9-]+$' end)
$$;
comment on function ai.is_hostname(text, boolean) is 'Whether a text is a host name.';

-- RFC 3986 or, p_iri, RFC 3987. p_absolute: with a scheme.
create or replace function ai.is_uri(p_text text, p_absolute boolean, p_iri boolean) returns boolean
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_part text[] := regexp_match(p_text, '^(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?$');
  v_host text[];
begin
  if v_part is null or p_absolute and v_part[1] is null
     or p_text !~ (case when p_iri then '^([A-Za-z0-9._~:/?#@!$&''()*+,;=\u00a0-\ud7ff\uf900-\U0010ffff-]|\[|\]|%[0-9a-fA-F]{2})*$'
                       else '^([A-Za-z0-9._~:/?#@!$&''()*+,;=-]|\[|\]|%[0-9a-fA-F]{2})*$' end)
     or (coalesce(v_part[3], '') || coalesce(v_part[4], '') || coalesce(v_part[5], '')) ~ '[][]' or v_part[5] ~ '#' then
    return false;
  elsif v_part[2] is null then
    return v_part[3] !~ '^//' and (v_part[1] is not null or v_part[3] !~ '^[^/]*:');
  end if;
  v_host := regexp_match(v_part[2], '^(?:[^@\[\]]*@)?(?:\[([^\]]*)\]|[^:@\[\]]*)(?::[0-9]*)?$');
  return v_host is not null and (v_host[1] is null or ai.is_ipv6_address(v_host[1]) or v_host[1] ~ '^v[0-9a-fA-F]+\.[A-Za-z0-9._~!$&''()*+,;=:-]+$')
     and v_part[3] ~ '^(/|$)';
end
$$;
comment on function ai.is_uri(text, boolean, boolean) is 'Whether a text is a URI or IRI, or a reference.';

-- A format that is not known fits anything, as the standard wants it.
create or replace function ai.json_format_fits(p_format text, p_text text) returns boolean
language plpgsql immutable parallel unsafe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_host text;
begin
  if length(p_text) > 100000 then
    return false;
  end if;
  case p_format
    when 'date' then
      return ai.is_full_date(p_text);
    when 'time' then
      return ai.is_full_time(p_text);
    when 'date-time' then
      return ai.is_full_date(left(p_text, 10)) and substr(p_text, 11, 1) in ('T', 't') and ai.is_full_time(substr(p_text, 12));
    when 'duration' then
      return p_text ~ '^P([0-9]+W|(?=[0-9T])([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)?(T(?=[0-9])([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)?)?)$';
    when 'email', 'idn-email' then
      v_host := substring(p_text from '@([^@]*)$');
      return v_host is not null
         and left(p_text, length(p_text) - length(v_host) - 1) ~ case when p_format = 'email'
               then '^([A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*|"([ !\x23-\x5b\x5d-\x7e]|\\[ -~])*")$'
               else '^([A-Za-z0-9!#$%&''*+/=?^_`{|}~\u0080-\U0010ffff-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~\u0080-\U0010ffff-]+)*|"([^"\\]|\\.)*")$' end
         and case when v_host like '[%]' then
                    case when v_host ilike '[IPv6:%' then ai.is_ipv6_address(substr(v_host, 7, length(v_host) - 7))
                         else substr(v_host, 2, length(v_host) - 2) ~ '^(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}$' end
                  else ai.is_hostname(v_host, p_format = 'idn-email') end;
    when 'hostname' then
      return ai.is_hostname(p_text, false);
    when 'idn-hostname' then
      return ai.is_hostname(p_text, true);
    when 'ipv4' then
      return p_text ~ '^(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])){3}$';
    when 'ipv6' then
      return ai.is_ipv6_address(p_text);
    when 'uri' then
      return ai.is_uri(p_text, true, false);
    when 'uri-reference' then
      return ai.is_uri(p_text, false, false);
    when 'iri' then
      return ai.is_uri(p_text, true, true);
    when 'iri-reference' then
      return ai.is_uri(p_text, false, true);
    when 'uri-template' then
      return p_text ~ '^([^\x01-\x20"''<>\\^`{|}\x7f%]|%[0-9A-Fa-f]{2}|\{[+#./;?&=,!@|]?([A-Za-z0-9_]|%[0-9A-Fa-f]{2})([A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(:[1-9][0-9]{0,3}|\*)?(,([A-Za-z0-9_]|%[0-9A-Fa-f]{2})([A-Za-z0-9_.]|%[0-9A-Fa-f]{2})*(:[1-9][0-9]{0,3}|\*)?)*\})*$';
    when 'uuid' then
      return p_text ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$';
    when 'json-pointer' then
      return p_text ~ '^(/([^~/]|~[01])*)*$';
    when 'relative-json-pointer' then
      return p_text ~ '^(0|[1-9][0-9]*)(#|(/([^~/]|~[01])*)*)$';
    when 'regex' then
      return ai.json_pattern(p_text) is not null;
    else
      return true;
  end case;
end
$$;
comment on function ai.json_format_fits(text, text) is 'Whether a text is of a format of JSON Schema; true for a format that is not known.';

revoke execute on function ai.is_full_date(text), ai.is_full_time(text), ai.is_ipv6_address(text), ai.is_hostname(text, boolean), ai.is_uri(text, boolean, boolean),
  ai.json_format_fits(text, text) from public;
