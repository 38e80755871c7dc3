-- The way of a question that names its model: the lane that it lies in and the model that answers. Both follow from limits,
-- counters, models and providers, and how long it may be from ai.settings: a dozen looks for each question. A claim that has looked notes what it found in ai.known_ways;
-- inserts and claims that find a way there look no further.
--
-- What is noted is valid under one version: the number of changes that a snapshot sees of what ways follow from. Whoever changes it adds a row to
-- ai.policy_changes, in the same transaction, so that the change and the version become visible in the same moment, to the transaction itself at once. Of two
-- snapshots one sees all that is committed for the other; where both see as many changes, they see the same. A claim notes the version of a snapshot no younger than all
-- that it found, so that a change it has not seen in full makes its note void. Nothing is locked: an open change holds up nobody, and may be of any isolation level.
-- There is one version for all tenants. What changes where triggers do not fire is seen after ai.refresh_policies().

-- Trigger AFTER INSERT, UPDATE OR DELETE, each statement, of what ways follow from.
create or replace function ai.note_change() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.policy_changes default values;
  return null;
end
$$;
comment on function ai.note_change() is 'Trigger: makes what is noted in ai.known_ways void.';

-- Adds up what is in ai.policy_changes, so that all who ask for the sum read one row. Passes over what others hold.
create or replace function ai.add_up_changes() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  with gone as (
    delete from ai.policy_changes c
     where c.id = any (array(select o.id from ai.policy_changes o where exists (select from ai.policy_changes offset 1) for update skip locked))
    returning c.changes
  )
  insert into ai.policy_changes (changes) select sum(g.changes) from gone g having count(*) > 0;
end
$$;
comment on function ai.add_up_changes() is 'Makes one row of the rows of ai.policy_changes.';

-- Notes the ways of generations that were never tried, name a model and lie where they belong, each once. p_version: read no later
-- than what was found. p_first and p_last: the least and the greatest of the ids, or less and more. Waits for nobody.
create or replace function ai.note_ways(
  p_version bigint, p_ids uuid[], p_tenants uuid[], p_lanes bigint[], p_tries smallint[], p_models bigint[], p_first uuid, p_last uuid) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into ai.known_ways (version, tenant_id, user_id, api_key_id, kind, model, priority, lane_id, model_id, limited, max_bytes)
  select p_version, n.*
    from (select distinct u.tenant_id, case when t.tells_apart then g.user_id else '' end as user_id, case when t.tells_apart then g.api_key_id end as api_key_id,
                 g.kind, g.model, g.priority, u.lane_id, u.model_id, l.counters <> '{}', s.max_input_bytes
            from unnest(p_ids, p_tenants, p_lanes, p_tries, p_models) u (id, tenant_id, lane_id, attempts, model_id)
           cross join lateral (select o.user_id, o.api_key_id, o.kind, o.model, o.priority from ai.generations o
                                where o.tenant_id = u.tenant_id and o.id = u.id and o.id >= p_first and o.id <= p_last
                                  and o.model is not null and o.route is null and o.batch_id is null offset 0) g
           cross join lateral (select exists (select from ai.limits x
                                               where (x.tenant_id = u.tenant_id or x.tenant_id is null) and x.enabled
                                                 and (x.per <> 'tenant' or num_nonnulls(x.user_id, x.api_key_id) > 0)) as tells_apart) t
            -- Where no limit concerns the tenant nobody has looked whether it lies in a lane of limits that are gone.
            join ai.lanes l on l.id = u.lane_id and l.batch_id is null and (l.counters = '{}' or ai.limited(u.tenant_id))
            join ai.settings s on s.accepting
           where u.attempts = 0) n
   where not exists (select from ai.known_ways k
                      where k.tenant_id = n.tenant_id and k.model = n.model and k.user_id = n.user_id and k.version = p_version and k.kind = n.kind
                        and k.priority = n.priority and k.api_key_id is not distinct from n.api_key_id);
end
$$;
comment on function ai.note_ways(bigint, uuid[], uuid[], bigint[], smallint[], bigint[], uuid, uuid) is 'Notes which lane and model such questions come to.';

-- Deletes what is void, and what is a day old: who has not asked since is forgotten. At most 100,000 a call, passing over what others hold. Gives how many.
create or replace function ai.forget_ways(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  delete from ai.known_ways w
   where w.ctid = any (array(
     select o.ctid from ai.known_ways o
      where o.noted_at < p_now - interval '1 day' or o.version is distinct from (select sum(c.changes) from ai.policy_changes c)
      limit 100000 for update skip locked));
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function ai.forget_ways(timestamptz) is 'Deletes ways that are void or a day old; gives how many.';

revoke execute on function ai.note_change(), ai.add_up_changes(), ai.note_ways(bigint, uuid[], uuid[], bigint[], smallint[], bigint[], uuid, uuid),
  ai.forget_ways(timestamptz) from public;

-- objects

create or replace trigger note_change after insert or update of enabled or delete on ai.limits
  for each statement execute function ai.note_change();
create or replace trigger note_change after insert or update of tenant_id, provider_id, name, kind, enabled or delete on ai.models
  for each statement execute function ai.note_change();
create or replace trigger note_change after update of tenant_id, enabled on ai.providers
  for each statement execute function ai.note_change();
create or replace trigger note_change after insert or update of accepting, max_input_bytes or delete on ai.settings
  for each statement execute function ai.note_change();
-- State, which nobody deletes; whoever does finds lanes and counters made anew.
create or replace trigger note_change after update of subject or delete on ai.counters
  for each statement execute function ai.note_change();
create or replace trigger note_change after delete on ai.lanes
  for each statement execute function ai.note_change();
