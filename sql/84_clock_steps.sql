-- What a clock that was set back leaves behind: times that Martlet wrote itself, further ahead than it ever sets one. Nobody
-- would wait that long for a retry. What people asked for (run_after, expires_at, valid_from) is theirs, and stays.

-- Brings the times that workers and queues wait for within their usual reach of p_now, and gives how many that were.
-- Called by maintenance when it finds itself in the past of its own last run. Locks what it changes, passing over what
-- others hold: they are at it.
create or replace function ai.clock_went_back(p_now timestamptz) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_all   bigint := 0;
  v_count bigint;
  -- No retry and no closed way out waits longer.
  v_most  timestamptz := p_now + (select greatest(s.backoff_cap_ms, s.retry_after_cap_ms, (select max(b.cap_ms) from ai.breaker_settings b)) from ai.settings s)
                                 * interval '1 ms';
begin
  update ai.delayed d set due_at = p_now
   where d.ctid = any (array(select o.ctid from ai.delayed o
                               join ai.generations g on g.tenant_id = o.tenant_id and g.id = o.generation_id
                              where o.due_at > v_most and o.due_at is distinct from g.run_after
                                for update of o skip locked));
  get diagnostics v_all = row_count;
  -- They are parked anew where they have to wait.
  v_all := v_all + ai.unpark(array(select p.lane_id from ai.parked_lanes p where p.until > p_now + interval '1 minute' and isfinite(p.until) and p.counter_id <> 0));

  update ai.breakers b
     set opened_at = least(b.opened_at, p_now), probed_at = least(b.probed_at, p_now), probe_at = least(b.probe_at, p_now + b.cooldown_ms * interval '1 ms')
   where b.id = any (array(select o.id from ai.breakers o where greatest(o.opened_at, o.probed_at, o.probe_at - o.cooldown_ms * interval '1 ms') > p_now
                            order by o.id for update skip locked));
  get diagnostics v_count = row_count;
  v_all := v_all + v_count;
  update ai.exhausted_accounts e set since = p_now, until = p_now + e.cooldown_ms * interval '1 ms' where e.since > p_now;
  get diagnostics v_count = row_count;
  v_all := v_all + v_count;
  update ai.model_stats s set updated_at = p_now where s.updated_at > p_now;
  get diagnostics v_count = row_count;
  v_all := v_all + v_count;

  update ai.provider_batches b set due_at = p_now
   where b.ctid = any (array(select o.ctid from ai.provider_batches o where o.state <> 'ended' and o.due_at > p_now + interval '1 hour' for update skip locked));
  get diagnostics v_count = row_count;
  v_all := v_all + v_count;
  update ai.artifact_objects a set due_at = p_now
   where a.ctid = any (array(select o.ctid from ai.artifact_objects o where o.state = 'doomed' and o.due_at > p_now + interval '2 hours' for update skip locked));
  get diagnostics v_count = row_count;
  return v_all + v_count;
end
$$;
comment on function ai.clock_went_back(timestamptz) is 'Brings times that a clock now set back left too far ahead within reach; gives how many.';
revoke execute on function ai.clock_went_back(timestamptz) from public;
