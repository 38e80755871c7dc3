-- Erasing generations of people who are being forgotten (sql/83_forgetting.sql), with all that hangs on them.
--
-- Whoever erases waits for nobody: what others hold is left, and come back to. p_in_app: in the transaction of an app,
-- which may stay open for long; it touches nothing for which a worker would wait.

-- Rows are looked up by both columns of their key, each from an array: a tenant that is given by itself lets a planner without statistics
-- read all of the tenant. Planned anew each time: a plan that was made when the tables were small is none for large ones.

-- Ends those of the generations that are in nobody's hands, as ai.cancel() does, and asks that those that run be aborted.
-- What is on its way from one to the other is come back to. Plans are kept, as in ai.worker_claim(): what each end calls would be
-- planned anew each time. Locks: queue, delayed and waiting rows, skipping what others
-- hold, then the generations, in the order of their ids.
create or replace function ai.stop_generations(p_tenant uuid, p_ids uuid[], p_in_app boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = on
set enable_sort = on
set plan_cache_mode = force_generic_plan
as $$
declare
  c_error constant jsonb := '{"class": "cancelled"}';
  v_lanes bigint[];
  v_ids   uuid[];
  v_id    uuid;
begin
  if p_ids is null then
    return;
  end if;
  v_lanes := array(select l.id from ai.lanes l where l.tenant_id = p_tenant and exists (select from ai.queue q where q.lane_id = l.id offset 0));
  with queued as (
    delete from ai.queue q
     where q.ctid = any (array(select o.ctid from ai.queue o where o.lane_id = any (v_lanes) and o.generation_id = any (p_ids) for update skip locked))
    returning q.generation_id
  ), delayed as (
    delete from ai.delayed d
     where d.generation_id = any (array(select o.generation_id from ai.delayed o where o.generation_id = any (p_ids) for update skip locked))
    returning d.generation_id
  )
  select array_agg(t.generation_id order by t.generation_id) into v_ids
    from (select q.generation_id from queued q union all select d.generation_id from delayed d) t;
  foreach v_id in array coalesce(v_ids, '{}') loop
    perform ai.end_generation(p_tenant, v_id, 'cancelled', c_error);
  end loop;

  -- What ends the one that another waits for locks all rows of it: so all of them, or none.
  if not p_in_app then
    for v_id in select distinct w.generation_id from ai.waiting w where w.generation_id = any (p_ids) order by 1 loop
      if (select count(*) from (select from ai.waiting w where w.generation_id = v_id order by w.for_id for update skip locked) h)
         = (select count(*) from ai.waiting w where w.generation_id = v_id)
         and ai.stop_waiting(p_tenant, v_id) then
        perform ai.end_generation(p_tenant, v_id, 'cancelled', c_error);
      end if;
    end loop;
  end if;

  with asked as (
    insert into ai.cancellations (generation_id, tenant_id, requested_at)
    select l.generation_id, l.tenant_id, ai.now() from ai.leases l
     where l.generation_id = any (p_ids) and not exists (select from ai.cancellations c where c.generation_id = l.generation_id)
    returning generation_id
  )
  select array_agg(a.generation_id) into v_ids from asked a;
  perform pg_notify(c.channel, '')
     from (select distinct coalesce(w.channel, 'ai_batches') as channel from ai.leases l left join ai.workers w on w.id = l.worker_id where l.generation_id = any (v_ids)) c
    where (select ai.may_notify());
end
$$;
comment on function ai.stop_generations(uuid, uuid[], boolean) is 'Ends queued generations of a person who is being forgotten, and has running ones aborted.';

-- Erases those of the generations that have ended and belong to somebody who is being forgotten: their content and whatever was
-- derived from it. What stays is what the books need, under the pseudonym. Gives how many of what, by user. Locks: cached
-- answers, then generations, skipping what others hold (in no order: a plan that gives them in order reads all of the tenant); what has a
-- cached answer is left alone where that is locked (and, in an app's transaction, always: a settle that keeps another answer to the
-- same question would wait for the app).
create or replace function ai.erase_generations(p_tenant uuid, p_ids uuid[], p_in_app boolean) returns table (user_id text, what text, erased bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
  if p_ids is null then
    return;
  end if;
  if not p_in_app then
    return query
      with held as materialized (
        select e.tenant_id, e.key, g.user_id
          from unnest(array_fill(p_tenant, array[cardinality(p_ids)]), p_ids) u (tenant_id, id)
          join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.finished_at is not null
          join ai.cache_entries e on e.tenant_id = g.tenant_id and e.key = g.cache_key and e.generation_id = g.id
         where (select f.pseudonym from ai.forgotten f where f.tenant_id = g.tenant_id and f.user_id = g.user_id) is not null
         order by e.key
           for update of e skip locked
      ), gone as (
        delete from ai.cache_entries e using held h where e.tenant_id = h.tenant_id and e.key = h.key
      )
      select h.user_id, 'cached answers', count(*) from held h group by 1;
  end if;

  return query
    with gone as materialized (
      select g.tenant_id, g.id, g.user_id, g.idempotency_key, g.provider_batch_id, (select f.pseudonym from ai.forgotten f where f.tenant_id = g.tenant_id and f.user_id = g.user_id) as pseudonym
        from unnest(array_fill(p_tenant, array[cardinality(p_ids)]), p_ids) u (tenant_id, id)
        join ai.generations g on g.tenant_id = u.tenant_id and g.id = u.id and g.finished_at is not null
       where (select f.pseudonym from ai.forgotten f where f.tenant_id = g.tenant_id and f.user_id = g.user_id) is not null
         and not exists (select from ai.cache_entries e where e.tenant_id = g.tenant_id and e.key = g.cache_key and e.generation_id = g.id)
         for no key update of g skip locked
    ), events as (
      delete from ai.stream_events e using gone o where e.generation_id = o.id and e.tenant_id = o.tenant_id
    ), tools as (
      delete from ai.tool_calls c using gone o where c.tenant_id = o.tenant_id and c.generation_id = o.id
    ), prompts as (
      delete from ai.prepared p using gone o where p.generation_id = o.id
    ), batched as (
      delete from ai.batched_requests b using gone o where b.batch_id = o.provider_batch_id and b.generation_id = o.id
    ), redacted as (
      delete from ai.redactions r using gone o where not p_in_app and r.tenant_id = o.tenant_id and r.generation_id = o.id
    ), jobs as (
      delete from ai.embedding_jobs j using gone o where j.tenant_id = o.tenant_id and j.generation_id = o.id
    ), keys as (
      delete from ai.idempotency_keys k using gone o where k.tenant_id = o.tenant_id and k.key = o.idempotency_key and k.generation_id = o.id
    ), sealed as (
      delete from ai.sealed_calls s using gone o where s.tenant_id = o.tenant_id and s.generation_id = o.id returning o.user_id
    ), calls as (
      update ai.llm_calls c set user_id = o.pseudonym, request_id = null, error_code = null
        from gone o
       where c.tenant_id = o.tenant_id and c.generation_id = o.id and c.user_id = o.user_id
      returning o.user_id
    ), wiped as (
      update ai.generations g
         set user_id = o.pseudonym, prompt = null, messages = null, params = '{}', metadata = null, idempotency_key = null, api_key_id = null, collection = null,
             template = null, template_version = null, cache_tags = null, cache_key = null, conversation_id = null, context = null, context_sources = null,
             output = null, output_message = null, embedding = null, finish_reason = null, sources = null, stages = null, degraded = null, dropped_params = null, tools = null, input_artifacts = null, artifacts = null,
             error = case when g.error is not null then jsonb_build_object('class', 'forgotten') end
        from gone o
       where g.tenant_id = o.tenant_id and g.id = o.id
    )
    select o.user_id, 'generations', count(*) from gone o group by 1
    union all
    select s.user_id, 'sealed calls', count(*) from sealed s group by 1
    union all
    select c.user_id, 'calls', count(*) from calls c group by 1;
end
$$;
comment on function ai.erase_generations(uuid, uuid[], boolean) is 'Erases ended generations of people who are being forgotten; gives how many of what, by user.';

revoke execute on function ai.stop_generations(uuid, uuid[], boolean), ai.erase_generations(uuid, uuid[], boolean) from public;
