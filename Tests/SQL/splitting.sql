-- Splitting documents into chunks: what holds for every document, what Markdown means, sizes at their limits, and
-- documents that try to make it hang. MARTLET_SEED repeats a run.
begin;
\ir setup/world.sql
select no_plan();
set local statement_timeout = '100s';
\getenv seed MARTLET_SEED
\if :{?seed}
\else
  select (random() * 1000000)::integer as seed \gset
\endif
select diag('MARTLET_SEED=' || :'seed');
select setseed((:'seed'::bigint % 1000000) / 1000000.0) \gset ignored_

-- What holds for every document and all sizes
create function t.split(p_content text, p_target integer, p_overlap integer, p_max integer) returns text language plpgsql as $$
declare
  v_bytes bytea := convert_to(p_content, 'UTF8');
  v_one   record;
  v_from  integer := -1;
  v_to    integer := 0;
  v_n     integer := 0;
begin
  for v_one in select * from ai.split_document(p_content, p_target, p_overlap, p_max) loop
    v_n := v_n + 1;
    if v_one.n <> v_n then return format('chunk %s is numbered %s', v_n, v_one.n); end if;
    if v_one.from_byte > v_to and convert_from(substring(v_bytes from v_to + 1 for v_one.from_byte - v_to), 'UTF8') ~ '[^[:space:]]' then
      return format('something is left out before byte %s', v_one.from_byte);
    end if;
    if v_one.from_byte <= v_from or v_one.to_byte <= v_to then return format('chunk %s brings nothing new', v_n); end if;
    if v_one.from_byte < v_to - p_overlap * 4 then return format('chunk %s overlaps by %s bytes', v_n, v_to - v_one.from_byte); end if;
    if v_one.content <> rtrim(ltrim(convert_from(substring(v_bytes from v_one.from_byte + 1 for v_one.to_byte - v_one.from_byte), 'UTF8'), E'\r\n'), E' \t\r\n') then
      return format('chunk %s is not what the document has there', v_n);
    end if;
    if v_one.content !~ '[^[:space:]]' then return format('chunk %s is empty', v_n); end if;
    if v_one.tokens <> ceil(octet_length(v_one.content) / 4.0) then return format('chunk %s says it has %s tokens', v_n, v_one.tokens); end if;
    if v_one.tokens > p_max then return format('chunk %s has %s tokens', v_n, v_one.tokens); end if;
    v_from := v_one.from_byte;
    v_to := v_one.to_byte;
  end loop;
  if convert_from(substring(v_bytes from v_to + 1), 'UTF8') ~ '[^[:space:]]' then return format('the end is left out from byte %s', v_to); end if;
  return 'whole';
end
$$;
create function t.document(p_pieces integer) returns text language sql volatile as $$
  select string_agg((array['Word ', 'and another, longer one ', 'A sentence ends. ', 'Does it? ', E'\n', E'\n\n', E'\r\n', E'\r\n\r\n', E'\n# One\n', E'\n## Zwei ü\n', E'\n### Three #\n\n',
    E'\n```\n', E'\n~~~ sh\n', E'```\n', E'\nTitle\n=====\n', E'\nOther\n---\n', '日本語の文章です。', '長い', '🜁🜂🜃', 'é', E'\t', '   ', '- item', E'\n| a | b |\n', E'---\n', '#', '`x`', '”) ', E'\u00a0',
    repeat('x', 1 + (random() * 300)::integer), repeat('Ünïcödé', 1 + (random() * 60)::integer), repeat(' ', 1 + (random() * 200)::integer), repeat(E'\n', 1 + (random() * 9)::integer)])
    [1 + floor(random() * 33)::integer], '')
    from generate_series(1, p_pieces)
$$;
create table t.documents as
select n, t.document(1 + (random() * random() * 800)::integer) as content, s.target, floor(random() * (s.target / 2 + 1))::integer as overlap, s.target + floor(random() * 200)::integer as max
  from generate_series(1, 300) n, lateral (select 16 + floor(random() * random() * 500)::integer as target where n > 0) s;
select is_empty($$ select n, target, overlap, max, t.split(content, target, overlap, max) as what, left(content, 200) from t.documents where t.split(content, target, overlap, max) <> 'whole' $$,
  'of 300 documents of any characters nothing is left out, no chunk exceeds its maximum, none overlaps by more than it may, each brings something new');
select cmp_ok((select count(*) from t.documents d cross join lateral ai.split_document(d.content, d.target, d.overlap, d.max)), '>', 1500::bigint, 'which are not trivial');
select is_empty($$ select n from t.documents d where (select array_agg(s) from ai.split_document(d.content, d.target, d.overlap, d.max) s) is distinct from
                                                     (select array_agg(s) from ai.split_document(d.content, d.target, d.overlap, d.max) s) $$, 'twice the same is the same');
select cmp_ok((select avg(d.overlap - (s.before - s.from_byte) / 4.0)::numeric
                 from t.documents d cross join lateral (select s.*, lag(s.to_byte) over (order by s.n) as before from ai.split_document(repeat('word and word ', 500), d.target, d.overlap, d.max) s) s
                where s.before is not null and d.overlap > 4),
  '<', 2::numeric, 'the overlap is what it is set to, to the word');
select results_eq($$ select count(*) from t.documents d cross join lateral (select s.*, lag(s.to_byte) over (order by s.n) as before from ai.split_document(d.content, d.target, 0, d.max) s) s where s.from_byte < s.before $$,
  'values (0::bigint)', 'without an overlap there is none');

-- Headings, paragraphs, sentences
create function t.chunks(p_content text, p_target integer default 16, p_overlap integer default 0, p_max integer default 24)
returns table (heading text, content text) language sql as $$ select s.heading, s.content from ai.split_document(p_content, p_target, p_overlap, p_max) s order by s.n $$;
select results_eq($$ select * from t.chunks(E'# Birds\n\n## Swifts\nThey sleep in the air, and never land.\n\n## Swallows\nThey sit on wires, and on roofs.\n# Fish\nFish swim, all of them, all of the time.') $$,
  $$ values ('Birds > Swifts', E'# Birds\n\n## Swifts\nThey sleep in the air, and never land.'), ('Birds > Swallows', E'## Swallows\nThey sit on wires, and on roofs.'),
            ('Fish', E'# Fish\nFish swim, all of them, all of the time.') $$, 'a section is a chunk under its headings, those without text of their own included');
select results_eq($$ select heading from t.chunks(E'### Deep\ntext enough to be a chunk of its own\n# Top\ntext enough to be a chunk of its own\n### Deeper\ntext enough to be a chunk of its own') $$,
  $$ values ('Deep'), ('Top'), ('Top > Deeper') $$, 'levels may be skipped');
select results_eq($$ select heading from t.chunks(E'Title\n=====\ntext enough to be a chunk of its own\n\nSub\n---\ntext enough to be a chunk of its own\n') $$,
  $$ values ('Title'), ('Title > Sub') $$, 'underlined headings are headings');
select results_eq($$ select heading from t.chunks(E'# One ##\r\ntext enough to be a chunk of its own\r\n\r\n## Two\r\ntext enough to be a chunk of its own\r\n') $$,
  $$ values ('One'), ('One > Two') $$, 'and with CRLF');
select results_eq($$ select heading, content from t.chunks(E'#hashtag and text enough to be a chunk of its own\n\n    # indented, so it is code in a chunk of its own') $$,
  $$ values (null, '#hashtag and text enough to be a chunk of its own'), (null, '    # indented, so it is code in a chunk of its own') $$, 'what only looks like a heading is none');
select results_eq($$ select heading, content from t.chunks(E'# Code\n```sh\n# not a heading\n\n# nor this\n```\nText after the code, enough for a chunk of its own, and more.', 16, 0, 40) $$,
  $$ values ('Code', E'# Code\n```sh\n# not a heading\n\n# nor this\n```'), ('Code', 'Text after the code, enough for a chunk of its own, and more.') $$, 'a block of code is kept whole, and what is in it is no heading');
select results_eq($$ select heading from t.chunks(E'# Code\n````\n```\n# not a heading\n````\ntext\n# A heading\n') $$, $$ values ('Code'), ('A heading') $$, 'a fence is closed by one at least as long');
select is((select count(*) from ai.split_document(E'```\n' || repeat(E'# x\n\nline of code\n', 200))), (select count(distinct n) from ai.split_document(E'```\n' || repeat(E'# x\n\nline of code\n', 200)) where heading is null),
  'one that is never closed goes to the end');
select results_eq($$ select heading, content from t.chunks(E'---\ntitle: Birds\nof: all kinds of them\n---\n# Swifts\nThey sleep in the air, and never land.') $$,
  $$ values (null, E'---\ntitle: Birds\nof: all kinds of them\n---'), ('Swifts', E'# Swifts\nThey sleep in the air, and never land.') $$, 'front matter is no heading');
select results_eq($$ select content from t.chunks(E'One paragraph that fits the target well.\n\nAnother that fits the target as well, well.') $$,
  $$ values ('One paragraph that fits the target well.'), ('Another that fits the target as well, well.') $$, 'paragraphs are kept whole');
select results_eq($$ select content from t.chunks('This sentence has some forty letters, all in all. This one has not. It goes on and on until nobody listens any more.', 16, 0, 16) $$,
  $$ values ('This sentence has some forty letters, all in all.'), ('This one has not. It goes on and on until nobody listens any'), ('more.') $$, 'else sentences, else words');
select results_eq($$ select content from t.chunks(repeat('日本語の文章です。', 4), 16, 0, 16) $$, $$ values (repeat('日本語の文章です。', 2)), (repeat('日本語の文章です。', 2)) $$, 'sentences without spaces, too');
select results_eq($$ select content from ai.split_document('one two three four five six seven eight nine ten eleven twelve thirteen fourteen', 16, 4, 16) $$,
  $$ values ('one two three four five six seven eight nine ten eleven twelve'), ('eleven twelve thirteen fourteen') $$, 'a chunk begins with the last words of the one before');
select is_empty($$ select * from ai.split_document('') $$, 'nothing is no chunk');
select is_empty($$ select * from ai.split_document(repeat(E' \t\r\n', 10000)) $$, 'nor is white space');

-- Sizes at, below and above their limits
select lives_ok($$ select ai.split_document('x', 16, 0, 16) $$, 'a target of 16 tokens');
select throws_ok($$ select ai.split_document('x', 15, 0, 16) $$, 'PT400', null, 'not of 15');
select lives_ok($$ select ai.split_document('x', 8000, 4000, 8000) $$, 'of 8000, with half of it as overlap');
select throws_ok($$ select ai.split_document('x', 8000, 4001, 8000) $$, 'PT400', null, 'not more than half');
select throws_ok($$ select ai.split_document('x', 8000, 40, 8001) $$, 'PT400', null, 'no maximum of 8001');
select throws_ok($$ select ai.split_document('x', 300, 40, 299) $$, 'PT400', null, 'nor below the target');
select throws_ok($$ select ai.split_document('x', 300, -1, 400) $$, 'PT400', null, 'no overlap below 0');
select throws_ok(format('select ai.split_document(%L, %s)', 'x', sizes), 'PT400', null, 'and no nulls: ' || sizes)
  from unnest(array['null, 40, 400', '300, null, 400', '300, 40, null']) sizes;
select is((select array_agg(tokens) from ai.split_document(repeat('x', 1200), 300, 0, 300)), array[300], 'what fits exactly is one chunk');
select is((select array_agg(tokens) from ai.split_document(repeat('x', 1201), 300, 0, 300)), array[300, 1], 'a byte more is two');

-- Documents that would be slow, were anything here quadratic
select is((select count(*) from ai.split_document(repeat('x', 10000000))), 9615::bigint, '10 MB without a space');
select cmp_ok((select count(*) from ai.split_document(repeat('A sentence, as they are. ', 400000))), '>', 8000::bigint, '10 MB in one line');
select cmp_ok((select count(*) from ai.split_document(repeat('é', 5000000))), '>', 8000::bigint, '10 MB of letters of two bytes');
select cmp_ok((select count(*) from ai.split_document(repeat(E'# h\n', 100000))), '>', 300::bigint, '100,000 headings');
select cmp_ok((select count(*) from ai.split_document(repeat(E'a\n\n', 100000))), '>', 200::bigint, '100,000 paragraphs');
select is((select count(*) from ai.split_document(repeat(E'\n', 1000000))), 0::bigint, 'a million empty lines');
select cmp_ok((select count(*) from ai.split_document(repeat(E'```\n', 100000))), '>', 300::bigint, '100,000 fences');
select cmp_ok((select count(*) from ai.split_document(repeat('`', 1000000))), '>', 800::bigint, 'one fence of a million');
select cmp_ok((select count(*) from ai.split_document(repeat('.', 1000000))), '>', 800::bigint, 'a million full stops');
select cmp_ok((select count(*) from ai.split_document('# ' || repeat('a #', 300000))), '>', 700::bigint, 'a heading of a megabyte');

select * from finish();
rollback;
