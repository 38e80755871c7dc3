-- Provider batches as people see them: looking at them, cancelling them, and forgetting old ones.

-- Cancels all generations of a provider batch: what was not sent ends at once, what runs is cancelled at the provider and ends with
-- what that had done. Gives how many. Raises PT401, PT403; PT404 for one that is not the tenant's, or has generations that the
-- caller may not see. Locks nothing.
create or replace function ai.cancel_provider_batch(provider_batch uuid) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_owner boolean := ai.acts_as_owner();
  v_me    record;
  v_count bigint;
begin
  if not v_owner then
    select r.tenant_id, r.user_id into v_me from ai.require('inference:execute') r;
  end if;
  if not exists (select from ai.provider_batches b
                  where b.id = provider_batch
                    and (v_owner or b.tenant_id = v_me.tenant_id
                                    and (ai.may('inference:read') or not exists (select from ai.leases l where l.batched and l.worker_id = b.id and l.user_id <> v_me.user_id)))) then
    raise exception 'there is no provider batch %', provider_batch using errcode = 'PT404', hint = 'select id, state from ai.provider_batches;';
  end if;
  insert into ai.cancellations (generation_id, tenant_id, requested_at)
  select l.generation_id, l.tenant_id, ai.now() from ai.leases l where l.batched and l.worker_id = provider_batch;
  get diagnostics v_count = row_count;
  if v_count > 0 and ai.may_notify() then
    perform pg_notify('ai_batches', '');
  end if;
  return v_count;
end
$$;
comment on function ai.cancel_provider_batch(uuid) is 'Cancels every generation of a provider batch; gives how many.';

-- Of maintenance: forgets provider batches that ended more than 30 days ago, and takes back members whose batch is gone, which
-- only happens where somebody deleted it by hand. Gives how many.
create or replace function ai.tidy_provider_batches(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_results jsonb;
  v_count   integer;
begin
  delete from ai.provider_batches b where b.ctid = any (array(select o.ctid from ai.provider_batches o where o.ended_at < p_now - interval '30 days' limit 10000));
  get diagnostics v_count = row_count;
  select jsonb_agg(jsonb_build_object('id', l.generation_id, 'attempt', l.attempt, 'outcome', 'failed', 'signal', 'lost', 'sent', true, 'service_tier', 'batch'))
    into v_results
    from (select o.* from ai.leases o
           where o.batched and not exists (select from ai.provider_batches b where b.id = o.worker_id and b.state <> 'ended') limit 1000) l;
  if v_results is not null then
    v_count := v_count + (select count(*) from ai.conclude_attempts(null, v_results) c where c.result <> 'stale');
  end if;
  return v_count;
end
$$;
comment on function ai.tidy_provider_batches(timestamptz) is 'Forgets old provider batches and takes back members of deleted ones; gives how many.';

-- For monitors, who see no batch: how many there are in each state, of all tenants, how many members they hold, and when the oldest began.
create or replace function ai.provider_batch_totals() returns table (state text, batches bigint, members bigint, since timestamptz, failing bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select b.state, count(*), sum(b.requests), min(b.created_at), count(*) filter (where b.tries > 0)
    from ai.provider_batches b where b.state <> 'ended' group by 1 order by 1
$$;
comment on function ai.provider_batch_totals() is 'Provider batches that have not ended, by state, for monitors; failing: whose last step failed.';

revoke execute on function ai.cancel_provider_batch(uuid), ai.tidy_provider_batches(timestamptz), ai.provider_batch_totals() from public;
grant execute on function ai.cancel_provider_batch(uuid) to ai_user;
grant execute on function ai.provider_batch_totals() to ai_monitor;

-- objects

drop policy if exists visible on ai.provider_batches;
create policy visible on ai.provider_batches for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (select ai.may('inference:read') or ai.may('usage:read')));
-- Not the name of the key, which is the operator's business.
grant select (id, tenant_id, provider_id, model_id, kind, wire_name, state, action, due_at, tries, external_id, word, ending, error, created_at, closed_at, submitted_at,
              cancel_at, ended_at, requests, bytes, succeeded, failed, expired, cancelled, missing, repeated, strays, malformed) on ai.provider_batches to ai_user;
