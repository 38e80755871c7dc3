-- One generation that makes a claim raise must not keep those of all others from being claimed. A claim (sql/45_claim.sql) takes all that it took or nothing,
-- so a worker whose claim failed claims one by one (docs/worker-protocol.md), and what fails alone, too, is taken out of the way.

-- Takes the next generation off the queue, in the turn of tenants in which ai.worker_claim() would with a null cursor, prepares it and leases it. The header says
-- whether there was any (wait_ms 0), and of one that could not be leased what it raised (faulty_state) and what was done (ai.fault_of()):
--   - What raises twice for a reason of its own ends as failed (faulty_ended). Nothing that it had begun is left: its reservations are given back.
--   - Where it cannot be told whose doing it was, or its end raises, too, it waits in ai.delayed for c_aside, or for its deadline where that is nearer. So does what
--     is not ready within statement_timeout although it has all of it; what somebody cancels is cancelled.
--   - The database's own trouble is raised, and nothing was done.
-- Only these are covered: what is taken off the queue. What raises for all, to take rows off it (sql/44_picking.sql) or to see what is stopped, is raised;
-- the chores of ai.worker_claim() (what is due, cancelled, parked) are left to it.
-- Locks: those of ai.worker_claim() with a limit of 1, so that no order of locks is broken however many follow each other, each of them a transaction; of one that
-- failed none but its queue row and then what ai.end_generation() locks. Takes as long as the one generation does. Raises PT404 as ai.worker_claim().
create or replace function ai.worker_claim_one(p_worker uuid)
returns table (generation_id uuid, attempt integer, kind text, dialect text, base_url text, secret text, headers jsonb, options jsonb,
               model text, stream boolean, request jsonb, timeout_ms integer, cursor text, wait_ms integer, retries integer,
               secret_ref bigint, tenant_only boolean, public_only boolean, seal jsonb,
               faulty_id uuid, faulty_state text, faulty_ended boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
set join_collapse_limit = 1
as $$
#variable_conflict use_column
declare
  c_aside constant interval := '1 minute';
  v_now   timestamptz := ai.now();
  v_one   record;
  v_named text;  -- the constraint that an error names
  v_fault text;
begin
  perform ai.check_worker(p_worker);
  v_one := ai.pick_in_turn(ai.claimed_after(), 1, 1, 1, '{}', '{}', ai.stopped_lanes());
  if v_one.taken = 0 then
    return next;
    return;
  end if;
  perform set_config('ai.claimed_after', v_one.last_tenant::text, false);
  wait_ms := 0;

  for v_try in 1 .. 2 loop
    begin
      return query
        select l.generation_id, l.attempt::integer, l.kind, l.dialect, l.base_url, l.secret, l.headers, l.options, l.model, l.stream, l.request,
               l.timeout_ms, null::text, null::integer, null::integer, l.secret_ref, l.tenant_only, l.public_only, l.seal, null::uuid, null::text, null::boolean
          from ai.prepare_taken(v_one.ids, v_one.owners, v_one.lanes, v_one.tries, v_one.targets, v_one.prepares) p
         cross join lateral ai.lease_to_batches(p_worker, v_now, p.ids, p.owners, p.lanes, p.tries, p.targets, p.leaders) l;
      faulty_state := null;
      v_fault := null;
      exit;
    exception
      when query_canceled then
        if not ai.statement_is_over() then
          raise;
        end if;
        faulty_state := sqlstate;
        v_fault := 'unclear';
      when others then
        get stacked diagnostics faulty_state = returned_sqlstate, v_named = constraint_name;
        v_fault := ai.fault_of(faulty_state, v_named);
        if v_fault = 'database' then
          raise;
        end if;
    end;
    exit when v_fault = 'unclear';
  end loop;
  if v_fault is null then
    return next;
    return;
  end if;

  -- Without its words, which may quote a prompt.
  raise warning 'generation % cannot be claimed: %', v_one.ids[1], faulty_state;
  faulty_id := v_one.ids[1];
  faulty_ended := false;
  if v_fault = 'generation' then
    begin
      perform ai.end_generation(v_one.last_tenant, faulty_id, 'failed',
        jsonb_build_object('class', 'unprepared', 'code', 'PT500', 'message', 'its call could not be prepared', 'sqlstate', faulty_state,
                           'hint', 'The log of the database has a warning that names it, and before that the error of a claim.'));
      faulty_ended := true;
    exception when others then
      get stacked diagnostics v_named = constraint_name;
      if ai.fault_of(sqlstate, v_named) = 'database' then
        raise;
      end if;
    end;
  end if;
  if not faulty_ended then
    insert into ai.delayed (generation_id, due_at, lane_id, tenant_id, attempts, target, prepare)
    select g.id, case when d.deadline_at > v_now then least(d.deadline_at, v_now + c_aside) else v_now + c_aside end,
           v_one.lanes[1], g.tenant_id, v_one.tries[1], v_one.targets[1], v_one.prepares[1]
      from ai.settings s
     cross join ai.generations g
     cross join lateral (select greatest(g.created_at, g.run_after) + coalesce(g.deadline_ms, s.deadline_ms) * interval '1 ms' as deadline_at) d
     where g.tenant_id = v_one.last_tenant and g.id = faulty_id;
  end if;
  return next;
end
$$;
comment on function ai.worker_claim_one(uuid) is
  'Leases the next queued generation to a worker; one that cannot be leased ends or waits, and the header says so; see docs/worker-protocol.md.';

-- Whether a statement that was cancelled had used up statement_timeout. Its time began before that of the server's clock, by what planning took.
create or replace function ai.statement_is_over() returns boolean
language sql volatile parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select t.most > interval '0' and clock_timestamp() - statement_timestamp() >= t.most * 0.9 from (select current_setting('statement_timeout')::interval as most) t
$$;
comment on function ai.statement_is_over() is 'Whether the statement that runs has taken as long as statement_timeout allows.';

revoke execute on function ai.worker_claim_one(uuid), ai.statement_is_over() from public;
grant execute on function ai.worker_claim_one(uuid) to ai_worker;
