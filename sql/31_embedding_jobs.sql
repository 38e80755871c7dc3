-- Embeddings of documents and of apps' tables, 32 texts a call. Each call is an ordinary generation (kind embedding, purpose
-- chunks or rows, priority low), claimed, retried, limited and booked like any other; its job says what it embeds.

-- Asks for the embeddings of refs, and gives the number of generations. A day is their deadline: what does not get done
-- within it fails, and can be asked for again. What all tenants share is embedded by the shared model, also where a tenant has one of that name.
-- Raises PT403 where the user is no enabled member of the tenant.
create or replace function ai.queue_embeddings(p_tenant uuid, p_user text, p_model text, p_source text, p_refs bigint[], p_version bigint) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_batch constant integer := 32;
  v_count integer;
  v_route bigint[];  -- null: the name decides
begin
  if p_source = 'rows' then
    select coalesce(ai.route_models(null, 'embedding', p_model, null, null, null, null, null), '{}') into v_route
      from ai.vectorizer_versions v join ai.vectorizers z on z.id = v.vectorizer_id where v.id = p_version and z.tenant_id is null;
  end if;
  with batches as materialized (
    select ai.uuid_v7() as id, b.refs
      from (select array_agg(r.ref order by r.n) as refs from unnest(p_refs) with ordinality r (ref, n) group by (r.n - 1) / c_batch
             order by (r.n - 1) / c_batch offset 0) b
  ), jobs as (
    insert into ai.embedding_jobs (tenant_id, generation_id, source, version, user_id, model, refs)
    select p_tenant, b.id, p_source, p_version, p_user, p_model, b.refs from batches b
  )
  insert into ai.generations (id, tenant_id, user_id, kind, model, route, priority, deadline_ms, purpose)
  select b.id, p_tenant, p_user, 'embedding', p_model, v_route, 'low', 86400000, p_source from batches b;
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.queue_embeddings(uuid, text, text, text, bigint[], bigint) is
  'Asks for the embeddings of chunks or rows, 32 a generation; gives how many generations. Internal.';

-- The texts that a generation embeds, in the order of its refs; [] where none is left. What has gone meanwhile, or has a newer
-- text, is left out, and is remembered so that each vector finds its text. A text is cut to what its model takes, where that is
-- known: three characters a token, which is on the safe side of the usual four.
--
-- A job with room takes over the refs of others that nobody has claimed, so that rows inserted one by one are embedded by 32,
-- too; the generations that are left without a job end without a call. Locks its job, and those it takes over, skipping what
-- others hold. It may wait for the one claim that takes over, which waits for none.
create or replace function ai.embedding_inputs(p_tenant uuid, p_id uuid) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  c_batch constant integer := 32;
  v_job   record;
  v_more  bigint[];
  v_texts jsonb;
  v_sent  bigint[];
begin
  select j.source, j.version, j.user_id, j.model, j.refs, j.sent, j.taken into v_job
    from ai.embedding_jobs j where j.tenant_id = p_tenant and j.generation_id = p_id for update;
  if not found then
    return '[]';
  end if;
  if not v_job.taken then
    update ai.embedding_jobs j set taken = true where j.tenant_id = p_tenant and j.generation_id = p_id;
    if cardinality(v_job.refs) < c_batch
       and exists (select from ai.embedding_jobs j
                    where j.tenant_id = p_tenant and j.source = v_job.source and j.version = v_job.version and j.model = v_job.model and j.user_id = v_job.user_id
                      and not j.taken and cardinality(j.refs) < 32)
       and exists (select from ai.embedding_batching b for update skip locked) then
      with others as (
        select o.generation_id, sum(cardinality(o.refs)) over (order by o.generation_id) as room
          from (select j.generation_id, j.refs from ai.embedding_jobs j
                 where j.tenant_id = p_tenant and j.source = v_job.source and j.version = v_job.version and j.model = v_job.model and j.user_id = v_job.user_id
                   and not j.taken and cardinality(j.refs) < 32
                 order by j.generation_id limit c_batch for update skip locked) o
      ), taken as (
        delete from ai.embedding_jobs j
         where j.tenant_id = p_tenant and j.generation_id in (select o.generation_id from others o where o.room <= c_batch - cardinality(v_job.refs))
        returning j.generation_id, j.refs
      )
      select array_agg(r.ref order by t.generation_id, r.n) into v_more from taken t cross join unnest(t.refs) with ordinality r (ref, n);
      if v_more is not null then
        v_job.refs := v_job.refs || v_more;
        update ai.embedding_jobs j set refs = v_job.refs where j.tenant_id = p_tenant and j.generation_id = p_id;
      end if;
    end if;
  end if;

  if v_job.source = 'chunks' then
    select jsonb_agg(t.content order by u.n), array_agg(u.ref order by u.n)
      into v_texts, v_sent
      from unnest(v_job.refs) with ordinality u (ref, n)
      join ai.chunk_texts(p_tenant, v_job.refs) t on t.ref = u.ref;
  else
    select jsonb_agg(left(r.content, l.characters) order by u.n), array_agg(u.ref order by u.n)
      into v_texts, v_sent
      from unnest(v_job.refs) with ordinality u (ref, n)
      join ai.vectorized_rows r on r.ref = u.ref and r.version = v_job.version and r.tenant_id = p_tenant and r.content is not null
      join ai.vectorizer_versions v on v.id = r.version and v.status <> 'retired'
      join ai.vectorizers z on z.id = v.vectorizer_id
     cross join lateral (select least(z.max_characters, 3 * m.context_tokens) as characters
                           from (values (ai.target_model(z.tenant_id, 'embedding', v.model, null, 1))) t (id)
                           left join ai.models m on m.id = t.id offset 0) l
     where not exists (select from ai.vectorized_rows n where n.row_key = r.row_key and n.version = r.version and n.ref > r.ref);
  end if;
  if coalesce(v_sent, '{}') is distinct from coalesce(v_job.sent, v_job.refs) then
    update ai.embedding_jobs j set sent = coalesce(v_sent, '{}') where j.tenant_id = p_tenant and j.generation_id = p_id;
  end if;
  return coalesce(v_texts, '[]');
end
$$;
comment on function ai.embedding_inputs(uuid, uuid) is 'Texts that a generation of purpose chunks or rows embeds, as a JSON array; [] where none is left.';

-- Stores an answer: an array of arrays of numbers, one for each text that was sent. Gives what is wrong with it, or null; the
-- caller treats a wrong answer as a failure. Raises nothing for what a provider may send. Locks rows of its own job, and
-- older ones of the same keys, skipping what others hold: it waits for nobody.
create or replace function ai.store_embeddings(p_tenant uuid, p_id uuid, p_vectors jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_job      record;
  v_vectors  ai.embedding[];
  v_sizes    integer[];
  v_expected integer;
  v_known    integer;
begin
  select j.source, j.version, coalesce(j.sent, j.refs) as sent into v_job
    from ai.embedding_jobs j where j.tenant_id = p_tenant and j.generation_id = p_id;
  if not found then
    return null;  -- nobody wants it any more
  end if;
  if jsonb_typeof(p_vectors) is distinct from 'array' or jsonb_array_length(p_vectors) <> cardinality(v_job.sent) then
    return format('the provider gave %s vectors for %s texts',
                  case when jsonb_typeof(p_vectors) = 'array' then jsonb_array_length(p_vectors)::text else 'no' end, cardinality(v_job.sent));
  end if;
  if exists (select from jsonb_array_elements(p_vectors) v where jsonb_typeof(v.value) <> 'array') then
    return 'the provider gave something that is no vector';
  end if;
  begin
    -- Nothing is written in this block, so that it costs no transaction id.
    select array_agg(v.value::text::ai.embedding order by v.n), array_agg(distinct jsonb_array_length(v.value))
      into v_vectors, v_sizes from jsonb_array_elements(p_vectors) with ordinality v (value, n);
  exception when data_exception or program_limit_exceeded then
    return 'the provider gave something that is no vector';
  end;
  if cardinality(v_sizes) <> 1 then
    return 'the provider gave vectors of different sizes';
  end if;

  if v_job.source = 'chunks' then
    return ai.store_chunk_vectors(p_tenant, v_job.version, v_job.sent, p_vectors);
  end if;

  select v.dimensions, m.dimensions into v_known, v_expected
    from ai.vectorizer_versions v
    join ai.vectorizers z on z.id = v.vectorizer_id
    left join ai.models m on m.id = ai.target_model(z.tenant_id, 'embedding', v.model, null, 1)
   where v.id = v_job.version;
  if v_sizes[1] <> coalesce(v_known, v_expected, v_sizes[1]) then
    return format('the provider gave vectors of size %s, not %s', v_sizes[1], coalesce(v_known, v_expected));
  end if;
  if v_known is null then
    -- Who is about to replace the version holds it; then its size does not matter any more.
    update ai.vectorizer_versions v set dimensions = v_sizes[1]
     where v.id = (select o.id from ai.vectorizer_versions o where o.id = v_job.version and o.dimensions is null for update skip locked);
    if not found and (select v.dimensions from ai.vectorizer_versions v where v.id = v_job.version) <> v_sizes[1] then
      return format('the provider gave vectors of size %s, and of another size before', v_sizes[1]);
    end if;
  end if;
  perform ai.store_row_vectors(v_job.version, v_job.sent, p_vectors);
  return null;
end
$$;
comment on function ai.store_embeddings(uuid, uuid, jsonb) is 'Stores the vectors of a generation of purpose chunks or rows; gives what is wrong with them, else null.';

-- Stores checked vectors of rows. What is locked is just being deleted by an app, or replaced by another report, and is left
-- alone; a text whose key has a newer one embedded already is removed, as are older texts of the keys.
create or replace function ai.store_row_vectors(p_version bigint, p_refs bigint[], p_vectors jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_stored bigint[];
begin
  with own as materialized (
    select r.ref, r.row_key from ai.vectorized_rows r where r.ref = any (p_refs) and r.version = p_version and r.state <> 'gone' for update skip locked
  ), late as materialized (
    select o.ref from own o
     where exists (select from ai.vectorized_rows n where n.row_key = o.row_key and n.version = p_version and n.ref > o.ref and n.state = 'embedded')
  ), dropped as (
    delete from ai.vectorized_rows r where r.ref = any (array(select ref from late))
  ), stored as (
    update ai.vectorized_rows r
       set embedding = v.value::text::ai.embedding, state = 'embedded', error = null, embedded_at = ai.now()
      from unnest(p_refs) with ordinality u (ref, n)
      join jsonb_array_elements(p_vectors) with ordinality v (value, n) on v.n = u.n
     where r.ref = u.ref and r.ref = any (array(select ref from own except select ref from late))
    returning r.ref
  )
  select array_agg(ref) into v_stored from stored;

  with older as materialized (
    select o.ref, s.ref as newer
      from ai.vectorized_rows s
      join ai.vectorized_rows o on o.row_key = s.row_key and o.version = s.version and o.ref < s.ref
     where s.ref = any (v_stored)
  ), gone as (
    delete from ai.vectorized_rows r
     where r.ref = any (array(select r.ref from ai.vectorized_rows r where r.ref = any (array(select ref from older)) for update skip locked))
    returning r.ref
  )
  update ai.vectorized_rows r set older_left = true
   where r.ref = any (array(select o.newer from older o where o.ref not in (select g.ref from gone g)));
end
$$;
comment on function ai.store_row_vectors(bigint, bigint[], jsonb) is 'Stores vectors of rows of ai.vectorized_rows. Internal: ai.store_embeddings().';

-- When a generation with a job has ended, however: what it has not embedded failed, with the generation's error, unless a
-- newer text made it superfluous. Locks what is left of its rows, skipping what others hold.
create or replace function ai.end_embedding_job(p_tenant uuid, p_id uuid, p_status text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_job   record;
  v_error jsonb;
begin
  delete from ai.embedding_jobs j where j.tenant_id = p_tenant and j.generation_id = p_id returning j.source, j.version, j.refs into v_job;
  if not found then
    return;
  end if;
  if p_status <> 'succeeded' then
    v_error := coalesce((select g.error from ai.generations g where g.tenant_id = p_tenant and g.id = p_id), jsonb_build_object('class', p_status));
  end if;
  if v_job.source = 'chunks' then
    if v_error is not null then
      perform ai.chunk_embedding_failed(p_tenant, v_job.version, v_job.refs, v_error);
    end if;
    return;
  end if;

  with own as materialized (
    select r.ref, r.row_key, exists (select from ai.vectorized_rows n where n.row_key = r.row_key and n.version = r.version and n.ref > r.ref) as superseded
      from ai.vectorized_rows r
     where r.ref = any (v_job.refs) and r.version = v_job.version and r.state = 'pending'
       for update of r skip locked
  ), dropped as (
    delete from ai.vectorized_rows r where r.ref = any (array(select ref from own where superseded))
  )
  update ai.vectorized_rows r set state = 'failed', error = v_error
   where v_error is not null and r.ref = any (array(select ref from own where not superseded));
end
$$;
comment on function ai.end_embedding_job(uuid, uuid, text) is 'Ends the job of a generation that has ended: marks what failed.';

revoke execute on function ai.queue_embeddings(uuid, text, text, text, bigint[], bigint), ai.embedding_inputs(uuid, uuid),
  ai.store_embeddings(uuid, uuid, jsonb), ai.store_row_vectors(bigint, bigint[], jsonb), ai.end_embedding_job(uuid, uuid, text) from public;
