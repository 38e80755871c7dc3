-- Which tables of policies an insert has to look at. Most tenants have rows in none or few of them, and a look into six empty
-- tables costs more than all else that an insert checks. ai.policies_in_use names, for each tenant and for all, the tables with
-- rows. A name is added by a trigger, in the transaction that adds the row, and stays when the row goes: one name too many costs
-- a look, one too few would pass over a guardrail. Limits apart, bindings copy whether there is any (sql/17_bindings.sql).

-- Trigger AFTER INSERT OR UPDATE, each row of a table of policies with a tenant_id. For a new name, limits apart, it takes a turn among those who
-- change the tenant's bindings, or everybody's, and raises PT400 for the first policy of a table that all tenants share at another isolation level than READ
-- COMMITTED. Otherwise it waits for nobody.
create or replace function ai.note_policy() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_scope uuid := coalesce(new.tenant_id, '00000000-0000-0000-0000-000000000000');
begin
  if not exists (select from ai.policies_in_use p where p.scope = v_scope and p.name = tg_table_name::text) then
    insert into ai.policies_in_use (scope, name) values (v_scope, tg_table_name);
    if tg_table_name <> 'limits' then
      if new.tenant_id is null then
        perform ai.take_turn_of_all();
      else
        perform ai.take_turn(new.tenant_id);
      end if;
      update ai.role_bindings b set asks_plainly = false where (new.tenant_id is null or b.tenant_id = new.tenant_id) and b.asks_plainly;
    end if;
  end if;
  return null;
end
$$;
comment on function ai.note_policy() is 'Trigger: notes that a tenant, or all, have a row in this table of policies.';

-- Notes everything anew: what changed where triggers do not fire (a restore of some rows, session_replication_role), and what
-- has no row any more, and then what bindings copy. Known ways are void. Every `martlet migrate` does it. Waits for who writes to these tables, and lets nobody write to
-- them, and to bindings and what they copy, until the transaction ends. Gives how many tenants and tables there are.
create or replace function ai.refresh_policies() returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_count integer;
begin
  lock table ai.guardrails, ai.cache_policies, ai.profile_rules, ai.limits in share mode;
  delete from ai.policies_in_use;
  insert into ai.policies_in_use (scope, name)
  select coalesce(h.tenant_id, '00000000-0000-0000-0000-000000000000'), h.name
    from (select tenant_id, 'guardrails' as name from ai.guardrails
          union select tenant_id, 'cache_policies' from ai.cache_policies
          union select tenant_id, 'profile_rules' from ai.profile_rules
          union select tenant_id, 'limits' from ai.limits) h;
  get diagnostics v_count = row_count;
  perform ai.refresh_bindings();
  insert into ai.policy_changes default values;
  delete from ai.known_ways;
  return v_count;
end
$$;
comment on function ai.refresh_policies() is 'Notes anew in which tables of policies each tenant has rows; gives how many. For the operator.';

revoke execute on function ai.note_policy(), ai.refresh_policies() from public;

-- objects

create or replace trigger note_policy after insert or update on ai.guardrails for each row execute function ai.note_policy();
create or replace trigger note_policy after insert or update on ai.cache_policies for each row execute function ai.note_policy();
create or replace trigger note_policy after insert or update on ai.profile_rules for each row execute function ai.note_policy();
create or replace trigger note_policy after insert or update on ai.limits for each row execute function ai.note_policy();
do $$ begin perform ai.refresh_policies(); end $$;
