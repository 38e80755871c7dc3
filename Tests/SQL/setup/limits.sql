-- For tests of limits: reserve and settle as the claim does, without a queue. Made inside the test's transaction.
-- Several assertions may stand in one SELECT: each on a line of its own.
\pset fieldsep '\n'

-- Inserts a limit from its columns, and gives its id.
create function t.limit_id(p_columns jsonb) returns bigint language sql as $$
  insert into ai.limits (tenant_id, per, user_id, kind, profile, model, metric, period, amount, soft, on_limit, enabled)
  select tenant_id, coalesce(per, 'tenant'), user_id, kind, profile, model, metric, period, amount, coalesce(soft, false), coalesce(on_limit, 'wait'), coalesce(enabled, true)
    from jsonb_to_record(p_columns) r (tenant_id uuid, per text, user_id text, kind text, profile text, model text, metric text, period text, amount numeric, soft boolean,
                                       on_limit text, enabled boolean)
  returning id
$$;

-- What runs: as ai.leases has it.
create table t.running (id uuid, counters bigint[], amounts numeric[], claimed_at timestamptz, at serial);
create table t.errors (error jsonb, at serial);

-- The lane of what a user of alpha asks, listed, with its counters made.
create function t.limit_lane(p_user text, p_model text) returns bigint language plpgsql as $$
declare
  v_lane bigint;
begin
  insert into ai.lanes (tenant_id, priority, counters)
  select t.alpha(), 'normal', ai.make_counters(t.alpha(), p_user, 'chat', p_model, null) on conflict do nothing;
  select id into v_lane from ai.lanes l
   where l.tenant_id = t.alpha() and l.priority = 'normal' and l.batch_id is null and l.counters = ai.generation_counters(t.alpha(), p_user, 'chat', p_model, null);
  if not exists (select from ai.active_lanes a where a.lane_id = v_lane) and not exists (select from ai.parked_lanes p where p.lane_id = v_lane) then
    insert into ai.active_lanes select id, tenant_id, rank from ai.lanes where id = v_lane;
  end if;
  return v_lane;
end
$$;

create function t.reserve(p_first boolean[], p_user text default 'ann', tokens integer[] default null, model text default 'mtap/one', follows boolean default false, ids uuid[] default null)
returns table (verdict text, error jsonb) language plpgsql as $$
#variable_conflict use_column
declare
  v_lane bigint := t.limit_lane(p_user, model);
  v_ids  uuid[] := coalesce(ids, array(select gen_random_uuid() from unnest(p_first)));
  v_row  record;
begin
  for v_row in
    select u.* from ai.reserve_limits(v_ids, array(select t.alpha() from unnest(p_first)), array(select v_lane from unnest(p_first)),
      array(select t.model(model) from unnest(p_first)), coalesce(tokens, array(select 0 from unnest(p_first))), array(select 0 from unnest(p_first)),
      array(select case when f then 0 else 1 end from unnest(p_first) f)::smallint[], '{}', array(select case when follows then gen_random_uuid() end from unnest(p_first))) r
     cross join lateral unnest(v_ids, r.verdicts, r.counters, r.amounts, r.errors) u (generation_id, verdict, counters, amounts, error)
  loop
    if v_row.verdict = 'go' then
      insert into t.running (id, counters, amounts, claimed_at) values (v_row.generation_id, v_row.counters::bigint[], v_row.amounts::numeric[], ai.now());
    elsif v_row.error is not null then
      insert into t.errors (error) values (v_row.error);
    end if;
    verdict := v_row.verdict;
    error := v_row.error;
    return next;
  end loop;
end
$$;
create function t.verdicts(p_count integer, tokens integer default 0, "user" text default 'ann', model text default 'mtap/one', first boolean default true, follows boolean default false)
returns text language sql as $$
  select string_agg(r.verdict, ' ') from t.reserve(array_fill(first, array[p_count]), "user", array_fill(tokens, array[p_count]), model, follows) r
$$;
create function t.last_error() returns jsonb language sql as $$ select error from t.errors order by at desc limit 1 $$;

-- Settles what runs (the first p_count of it), each with the same.
create function t.settle_all(tokens integer default 0, cost numeric default 0, sent boolean default true, ended boolean default true, p_count integer default 1000, later boolean default false)
returns boolean language plpgsql as $$
declare
  v_done jsonb;
begin
  with gone as (delete from t.running r where r.at in (select at from t.running order by at limit p_count) returning *)
  select jsonb_agg(jsonb_build_object('counters', counters, 'amounts', amounts, 'claimed_at', claimed_at, 'tokens', tokens, 'cost', cost, 'sent', sent, 'ended', ended)) into v_done from gone;
  return case when later then ai.settle_later(v_done) else ai.settle_limits(v_done) end;
end
$$;
create function t.settle_one(later boolean default false, cost numeric default 0) returns boolean language sql as $$ select t.settle_all(cost => cost, p_count => 1, later => later) $$;

-- Used and reserved of a limit in the present window, all its counters together.
create function t.used(p_limit bigint, p_at timestamptz default ai.now()) returns numeric language sql as $$
  select coalesce(sum((select e.balance from ai.counter_entries e where e.counter_id = c.id and e.window_start = ai.window_start(l.period, p_at) order by e.seq desc limit 1)), 0)
    from ai.counters c join ai.limits l on l.id = c.limit_id where l.id = p_limit
$$;
create function t.lane_place(p_user text) returns text language sql as $$
  select string_agg(distinct place, '+' order by place) from (
    select lane_id, 'active' as place from ai.active_lanes union all select lane_id, 'parked' from ai.parked_lanes) p
   where lane_id = t.limit_lane(p_user, 'mtap/one')
$$;

-- Away with all limits, whatever they counted.
create function t.clear() returns void language plpgsql as $$
begin
  delete from ai.counter_entries;
  delete from ai.limits;
  delete from ai.unsettled;
  delete from ai.credits;
  delete from ai.parked_lanes;
  delete from ai.active_lanes;
  delete from ai.lanes where counters <> '{}';
  delete from t.running;
end
$$;
