-- Documents into chunks: at headings, paragraphs, sentences, words, in this order of preference.
--
-- A chunk is a range of the document's bytes, trimmed; the ranges follow each other, overlapping by a little, and leave
-- nothing out. All positions are of bytes, because any of them is reached at once: characters of a long text are counted
-- from its beginning each time.

-- Where a document may be cut: the first byte of each paragraph, heading and block of code, and what follows such a block.
-- section: a heading, the first of several without text between. path: the headings that it is under, the deepest of such
-- a run included. What is inside a block of code is neither heading nor paragraph. Knows Markdown's # headings, underlined
-- headings, fences, and a front matter between --- lines, which is a block too. Only the beginning of a line is looked
-- at, so that a document that is one line costs no more than another.
create or replace function ai.document_blocks(p_content text)
returns table (at integer, section boolean, path text)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_line    record;
  v_fence   text;              -- what closes the block of code that the line is in
  v_paths   text[] := '{}';    -- headings in effect, by level
  v_level   integer;
  v_ats     integer[] := '{}';
  v_heads   boolean[] := '{}';
  v_unders  text[] := '{}';
begin
  for v_line in
    with lines as (
      select l.n, left(l.line, 300) as line, octet_length(l.line) as bytes, left(lag(l.line) over w, 300) as above, left(lead(l.line) over w, 300) as below,
             (sum(octet_length(l.line) + 1) over (w rows unbounded preceding) - octet_length(l.line) - 1)::integer as at
        from string_to_table(p_content, E'\n') with ordinality l (line, n)
      window w as (order by l.n)
    ), looked as (
      select l.n, l.at, l.bytes, l.line, l.above,
             l.line ~ '^ {0,3}(```|~~~)' or (l.n = 1 and l.line ~ '^---\s*$') as fence,
             l.line ~ '^ {0,3}#{1,6}(\s|$)' as hashed,
             l.below ~ '^ {0,3}(=+|--+)\s*$' and l.line ~ '^ {0,3}[^[:space:]#>|`~*+=-]' and coalesce(l.above, '') !~ '[^[:space:]]' as underlined,
             l.below
        from lines l
    ), told as (
      select k.n, k.at, k.bytes, k.line, k.fence,
             case when k.hashed then length(substring(k.line from '^ *(#+)')) when k.underlined then case when k.below ~ '=' then 1 else 2 end end as level,
             -- A paragraph begins after an empty line, and after a heading.
             (coalesce(k.above, '') !~ '[^[:space:]]' or lag(k.hashed) over w or lag(k.underlined, 2) over w) and k.line ~ '[^[:space:]]' as begins
        from looked k
      window w as (order by k.n)
    )
    select * from told k where k.fence or k.level is not null or k.begins or k.line ~ '^(---|\.\.\.)\s*$' order by k.n
  loop
    if v_fence is not null then
      if v_line.line ~ v_fence then
        v_fence := null;
        v_ats := v_ats || v_line.at + v_line.bytes + 1;
        v_heads := v_heads || false;
        v_unders := v_unders || array_to_string(v_paths, ' > ');
      end if;
      continue;
    end if;
    if v_line.fence then
      v_fence := case when v_line.line ~ '^-' then '^(---|\.\.\.)\s*$'
                      when v_line.line ~ '`' then format('^ {0,3}`{%s,}\s*$', least(length(substring(v_line.line from '^ *(`+)')), 200))
                      else format('^ {0,3}~{%s,}\s*$', least(length(substring(v_line.line from '^ *(~+)')), 200)) end;
    elsif v_line.level is not null then
      -- A level that is skipped has no heading; array_to_string() passes over it.
      v_level := v_line.level;
      v_paths := v_paths[1:v_level - 1];
      v_paths[v_level] := nullif(btrim(regexp_replace(v_line.line, '^ {0,3}#+|\s#+\s*$', '', 'g'), E' \t\r'), '');
    elsif not v_line.begins then
      continue;
    end if;
    v_ats := v_ats || v_line.at;
    v_heads := v_heads || (v_line.level is not null and not v_line.fence);
    v_unders := v_unders || array_to_string(v_paths, ' > ');
  end loop;

  return query
    with blocks as (
      select b.at, b.head, nullif(b.path, '') as path,
             lag(b.head) over w is true as below_heading,
             count(*) filter (where not b.head) over (w rows unbounded preceding) as run
        from (select distinct on (u.at) u.* from unnest(v_ats, v_heads, v_unders) u (at, head, path) order by u.at, u.head desc) b
      window w as (order by b.at)
    ), under as (
      select b.*, last_value(b.path) over (partition by b.run, b.head order by b.at rows between unbounded preceding and unbounded following) as deepest
        from blocks b
    )
    -- A heading stays with what is under it.
    select u.at, u.head, u.deepest from under u where not u.below_heading order by u.at;
end
$$;
comment on function ai.document_blocks(text) is 'Where a document may be cut: at paragraphs, headings and blocks of code, in bytes from its beginning.';

-- How many bytes of a piece of text to take, so that it ends well: behind its last sentence, else line, else word, if
-- that is beyond p_least bytes. Chinese and Japanese sentences end without a space.
create or replace function ai.good_end(p_text text, p_least integer) returns integer
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
  select e.bytes
    from (values (1, octet_length(substring(p_text from '^.*[.!?…]["''”’»)\]]*\s+|^.*[。！？]'))),
                 (2, octet_length(substring(p_text from E'^.*\n'))),
                 (3, octet_length(substring(p_text from '^.*\s')))) e (rank, bytes)
   where e.bytes > p_least
   order by e.rank limit 1
$$;
comment on function ai.good_end(text, integer) is 'Bytes up to the end of the last sentence, line or word of a text, beyond a least number; null: none.';

-- The first byte of the character (UTF-8) that the byte at p_at belongs to.
create or replace function ai.character_start(p_bytes bytea, p_at integer) returns integer
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  while p_at > 0 and p_at < length(p_bytes) and get_byte(p_bytes, p_at) & 192 = 128 loop
    p_at := p_at - 1;
  end loop;
  return p_at;
end
$$;
comment on function ai.character_start(bytea, integer) is 'Where the UTF-8 character begins that a byte is of.';

-- Splits a document; sizes are in tokens of four bytes. Deterministic, and linear in the size of the document whatever is
-- in it: each step looks at no more than the largest chunk. What is only white space is left out. Raises PT400 for
-- sizes that do not fit each other.
--
-- A chunk ends before a new section, unless what it has is too little to stand alone; or where the document ends; else
-- behind the last paragraph that fits the target, else behind the first that fits the maximum; else it breaks a paragraph.
create or replace function ai.split_document(p_content text, p_target integer default 300, p_overlap integer default 40, p_max integer default 400)
returns table (n integer, heading text, content text, tokens integer, from_byte integer, to_byte integer)
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
declare
  v_bytes    bytea := convert_to(p_content, 'UTF8');
  v_end      integer := length(convert_to(p_content, 'UTF8'));
  v_target   integer;
  v_starts   integer[];
  v_sections boolean[];
  v_paths    text[];
  v_blocks   integer;
  v_next     integer := 1;  -- the first block behind v_done
  v_at       integer;
  v_from     integer := 0;
  v_done     integer := 0;  -- up to where chunks have it all
  v_to       integer;
  v_cut      integer;       -- the block that the chunk ends before: of a new section; else
  v_fits     integer;       -- the last that begins within the target; else
  v_whole    integer;       -- the first that begins beyond it
  v_new      boolean;       -- whether that is a new section
begin
  if p_target not between 16 and 8000 or p_overlap not between 0 and p_target / 2 or p_max not between p_target and 8000
     or p_target is null or p_overlap is null or p_max is null then
    raise exception 'these sizes of chunks do not fit each other'
      using errcode = 'PT400', detail = 'The target is 16 tokens or more, the maximum from the target to 8000, the overlap at most half of the target.';
  end if;
  v_target := p_target * 4;
  select coalesce(array_agg(b.at order by b.at), '{}'), array_agg(b.section order by b.at), array_agg(b.path order by b.at), count(*)
    into v_starts, v_sections, v_paths, v_blocks
    from ai.document_blocks(p_content) b where b.at < v_end;

  n := 0;
  while v_done < v_end loop
    while v_next <= v_blocks and v_starts[v_next] <= v_done loop
      v_next := v_next + 1;
    end loop;
    heading := v_paths[v_next - 1];

    v_cut := null;
    v_fits := null;
    v_whole := null;
    v_at := v_next;
    while v_at <= v_blocks and v_starts[v_at] <= v_from + p_max * 4 loop
      if v_sections[v_at] and v_starts[v_at] >= v_from + p_target and v_starts[v_at] <= v_from + p_target * 5 then
        v_cut := v_at;
        exit;
      elsif v_starts[v_at] > v_from + v_target then
        v_whole := coalesce(v_whole, v_at);
      elsif v_starts[v_at] > v_from + v_target / 2 then
        v_fits := v_at;
      end if;
      v_at := v_at + 1;
    end loop;
    if v_cut is null and v_end > v_from + least(p_max * 4, p_target * 5) then
      v_cut := coalesce(v_fits, v_whole);
    end if;
    v_new := coalesce(v_sections[v_cut], false);
    v_to := coalesce(v_starts[v_cut], case when v_end <= v_from + p_max * 4 then v_end end);
    if v_to is null then
      v_to := ai.character_start(v_bytes, v_from + v_target);
      v_to := coalesce(v_from + ai.good_end(convert_from(substring(v_bytes from v_from + 1 for v_to - v_from), 'UTF8'), greatest(v_target / 2, v_done - v_from)), v_to);
    end if;

    content := rtrim(ltrim(convert_from(substring(v_bytes from v_from + 1 for v_to - v_from), 'UTF8'), E'\r\n'), E' \t\r\n');
    if content ~ '[^[:space:]]' then
      n := n + 1;
      tokens := (octet_length(content) + 3) / 4;
      from_byte := v_from;
      to_byte := v_to;
      return next;
    end if;

    v_done := v_to;
    v_from := v_to;
    if p_overlap > 0 and not v_new and v_to < v_end then
      -- Back by the overlap, then on to the next word, or at least to the next character.
      v_at := v_to - p_overlap * 4;
      v_at := case when v_at = ai.character_start(v_bytes, v_at) then v_at else ai.character_start(v_bytes, v_at + 3) end;
      v_from := v_at + coalesce(octet_length(substring(convert_from(substring(v_bytes from v_at + 1 for v_to - v_at), 'UTF8') from '^\S*\s+')), 0);
    end if;
  end loop;
end
$$;
comment on function ai.split_document(text, integer, integer, integer) is
  'The chunks of a document: number, headings above, content, tokens, and the bytes of the document that it is from.';

revoke execute on function ai.document_blocks(text), ai.good_end(text, integer), ai.character_start(bytea, integer),
  ai.split_document(text, integer, integer, integer) from public;
