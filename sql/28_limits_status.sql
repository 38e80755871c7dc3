-- What is left of limits, and prepaid credit.

-- For the caller: the limits that concern the tenant or the caller; who has billing:read sees all of the tenant, per member
-- the caller and those of whom something was counted in the present window. Reserved is what runs now; used is what has ended, and all
-- requests. For credit, amount is what the top-ups come to.
create or replace function ai.limits_status()
returns table (limit_id bigint, per text, api_key_id uuid, user_id text, kind text, profile text, model text, metric text, period text, amount numeric,
               used numeric, reserved numeric, remaining numeric, resets_at timestamptz, on_limit text, soft boolean, exceeded boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  with caller as materialized (
    select i.tenant_id, i.user_id, case when i.api_key_id is not null then ai.key_origin(i.api_key_id) end as key, coalesce(i.permissions && array['billing:read', '*'], false) as sees_tenant, ai.now() as at from ai.identity() i where i.tenant_id is not null
  ), rules as materialized (
    select l.*, w.tenant_id as caller_tenant, w.user_id as caller_user, w.key as caller_key, w.sees_tenant, w.at, ai.window_start(l.period, w.at) as start
      from caller w
      join ai.limits l on l.enabled and (l.tenant_id = w.tenant_id or l.tenant_id is null)
                      and (l.user_id is null or l.user_id = w.user_id or w.sees_tenant) and (l.api_key_id is null or l.api_key_id = w.key or w.sees_tenant)
  ), counted as (
    select r.id, c.id as counter_id, c.subject,
           e.balance + coalesce((select sum(u.delta) from ai.unsettled u where u.counter_id = c.id and u.window_start = r.start), 0) as balance
      from rules r
      join ai.counters c on c.limit_id = r.id and c.tenant_id = r.caller_tenant and (r.per = 'tenant' or r.sees_tenant or c.subject = case r.per when 'member' then r.caller_user else r.caller_key::text end)
     cross join lateral (select e.balance from ai.counter_entries e where e.counter_id = c.id and e.window_start = r.start order by e.seq desc limit 1) e
  ), running as materialized (
    select u.counter_id, sum(u.amount) as amount
      from caller w
      join ai.leases l on l.tenant_id = w.tenant_id
     cross join lateral unnest(l.counters, l.amounts) u (counter_id, amount)
      join ai.counters c on c.id = u.counter_id
      join rules r on r.id = c.limit_id and l.claimed_at >= r.start and r.metric <> 'requests'
     group by u.counter_id
  ), topped as materialized (
    select coalesce(sum(t.amount), 0) as amount from caller w join ai.credits t on t.tenant_id = w.tenant_id
  ), all_rows as (
    select r.*, c.subject, c.balance, coalesce(x.amount, 0) as reserved,
           r.amount + case r.metric when 'credit' then t.amount else 0 end as bound
      from rules r
     cross join topped t
     cross join lateral (
       select o.counter_id, o.subject, o.balance from counted o where o.id = r.id
       union all
       select null, own.subject, 0 from (select case r.per when 'member' then coalesce(r.user_id, r.caller_user) when 'api_key' then coalesce(r.api_key_id, r.caller_key)::text else '' end as subject) own
        where own.subject is not null and not exists (select from counted o where o.id = r.id and o.subject = own.subject)) c
      left join running x on x.counter_id = c.counter_id
  )
  select a.id, a.per, case a.per when 'api_key' then a.subject::uuid else a.api_key_id end, case a.per when 'member' then a.subject else a.user_id end, a.kind, a.profile, a.model, a.metric, a.period, trim_scale(a.bound),
         trim_scale(a.balance - a.reserved), trim_scale(a.reserved), trim_scale(greatest(a.bound - a.balance, 0)),
         case when a.period is not null then ai.window_end(a.period, a.at) end, a.on_limit, a.soft, a.balance > a.bound
    from all_rows a
   order by a.id, 3, 4
$$;
comment on function ai.limits_status() is
  'What is used, reserved and left of the limits that concern the caller; who has billing:read sees the whole tenant.';

-- Adds prepaid credit (a negative amount takes it back), and gives what the top-ups now come to. What waits for credit goes
-- on. Credit counts where a limit with the metric credit concerns the tenant; where there is none, one is made that
-- rejects what exceeds it. For the operator. Raises PT404, PT400. Locks the tenant's row against another such call.
create or replace function ai.add_credit(p_tenant uuid, p_amount numeric, p_note text default null) returns numeric
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_amount is null or p_amount = 0 or p_amount not between -1e30 and 1e30 or scale(p_amount) > 20 then
    raise exception 'credit is added by an amount other than 0, with at most 20 digits after the point' using errcode = 'PT400';
  end if;
  perform from ai.tenants t where t.id = p_tenant for no key update;
  if not found then
    raise exception 'there is no tenant %', p_tenant using errcode = 'PT404';
  end if;
  if not exists (select from ai.limits l where l.metric = 'credit' and (l.tenant_id = p_tenant or l.tenant_id is null)) then
    insert into ai.limits (tenant_id, metric, amount, on_limit) values (p_tenant, 'credit', 0, 'reject');
  end if;
  insert into ai.credits (tenant_id, amount, note) values (p_tenant, p_amount, p_note);
  return (select trim_scale(sum(t.amount)) from ai.credits t where t.tenant_id = p_tenant);
end
$$;
comment on function ai.add_credit(uuid, numeric, text) is 'Tops up a tenant''s prepaid credit; gives what the top-ups come to. For the operator.';

revoke execute on function ai.limits_status(), ai.add_credit(uuid, numeric, text) from public;
grant execute on function ai.limits_status() to ai_user;
