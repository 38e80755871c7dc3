-- What was used and what it cost.

-- A report over the calls that began from p_from until before p_to, grouped by provider, model, user, kind, status or
-- day. Runs with the caller's rights: members see their own calls, who has usage:read (or inference:read) those of the tenant. The sum of
-- its cost is the sum of ai.llm_calls.cost, to the last digit. Raises PT400 for another grouping.
create or replace function ai.usage_report(
  p_from timestamptz default date_trunc('month', now()), p_to timestamptz default 'infinity', p_by text default 'model')
returns table (key text, calls bigint, succeeded bigint, input_tokens bigint, cached_tokens bigint, output_tokens bigint,
               cost numeric, estimated_cost numeric, unpriced bigint)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_by is null or p_by not in ('provider', 'model', 'user', 'kind', 'status', 'day') then
    raise exception 'a usage report is grouped by provider, model, user, kind, status or day' using errcode = 'PT400';
  end if;
  return query
    select case p_by when 'provider' then c.provider when 'model' then c.model when 'user' then c.user_id when 'kind' then c.kind
                     when 'status' then c.status else to_char(c.created_at at time zone 'UTC', 'YYYY-MM-DD') end,
           count(*), count(*) filter (where c.status = 'succeeded'), sum(c.input_tokens), sum(c.cached_tokens), sum(c.output_tokens),
           coalesce(sum(c.cost), 0), coalesce(sum(c.cost) filter (where c.estimated), 0), count(*) filter (where c.cost is null)
      from ai.llm_calls c
     where c.created_at >= p_from and c.created_at < p_to
     group by 1 order by 1;
end
$$;
comment on function ai.usage_report(timestamptz, timestamptz, text) is 'Calls, tokens and cost by provider, model, user, kind, status or day (UTC).';

-- For monitors, who see no call: sums of each tenant that called something.
create or replace function ai.tenant_totals(p_from timestamptz default date_trunc('day', now()), p_to timestamptz default 'infinity')
returns table (tenant_id uuid, tenant text, calls bigint, succeeded bigint, input_tokens bigint, cached_tokens bigint, output_tokens bigint, cost numeric, unpriced bigint)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select t.id, t.name, count(*), count(*) filter (where c.status = 'succeeded'), sum(c.input_tokens), sum(c.cached_tokens), sum(c.output_tokens),
         coalesce(sum(c.cost), 0), count(*) filter (where c.cost is null)
    from ai.llm_calls c join ai.tenants t on t.id = c.tenant_id
   where c.created_at >= p_from and c.created_at < p_to
   group by t.id order by t.name
$$;
comment on function ai.tenant_totals(timestamptz, timestamptz) is 'Calls, tokens and cost of each tenant, for monitors.';
revoke execute on function ai.usage_report(timestamptz, timestamptz, text), ai.tenant_totals(timestamptz, timestamptz) from public;
grant execute on function ai.usage_report(timestamptz, timestamptz, text) to ai_user;
grant execute on function ai.tenant_totals(timestamptz, timestamptz) to ai_monitor;

-- objects

drop policy if exists visible on ai.llm_calls;
create policy visible on ai.llm_calls for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (user_id = (select ai.user_id()) or (select ai.may('inference:read') or ai.may('usage:read'))));
grant select on ai.llm_calls to ai_user;
