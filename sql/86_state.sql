-- State that claims and settlements keep about rows that people write: counters of limits, breakers and averages of models and providers.

-- Trigger AFTER DELETE, each row, of ai.limits, ai.models and ai.providers: deletes what was kept about it. No foreign key does, because
-- that would make every worker wait for whoever has locked the row. What a worker adds at this very moment stays, and is never read.
create or replace function ai.forget_state() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  case tg_table_name
    when 'limits' then
      delete from ai.counters c where c.limit_id = old.id;
    when 'models' then
      delete from ai.model_stats s where s.model_id = old.id;
      delete from ai.breakers b where b.model_id = old.id;
    when 'providers' then
      delete from ai.exhausted_accounts e where e.provider_id = old.id;
      delete from ai.breakers b where b.provider_id = old.id;
  end case;
  return null;
end
$$;
comment on function ai.forget_state() is 'Trigger: deletes what was kept about a limit, a model or a provider that is gone.';
revoke execute on function ai.forget_state() from public;

-- objects

create or replace trigger forget_state after delete on ai.limits
  for each row execute function ai.forget_state();
create or replace trigger forget_state after delete on ai.models
  for each row execute function ai.forget_state();
create or replace trigger forget_state after delete on ai.providers
  for each row execute function ai.forget_state();
