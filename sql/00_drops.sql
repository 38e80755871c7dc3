-- Signatures that earlier versions had and this one has not. Runs before everything else, because `create or replace`
-- can neither rename a parameter nor change a return type.
drop function if exists ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text);
drop procedure if exists ai.ask(text, text, text, text, integer);
drop function if exists ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz,
  integer, integer, integer, integer);
-- With columns more. What asked it is made again: the policies and the functions bound to it.
do $$
begin
  if exists (select from pg_catalog.pg_proc p where p.oid = to_regprocedure('ai.identity()') and not p.proargnames @> array['only_user']) then
    drop function ai.identity() cascade;
  end if;
  if exists (select from pg_catalog.pg_proc p where p.oid = to_regprocedure('ai.whoami()') and not p.proargnames @> array['permissions']) then
    drop function ai.whoami();
  end if;
end
$$;
drop function if exists ai.collection_keeper();
drop function if exists ai.check_visible(uuid);
drop function if exists ai.check_batch_visible(uuid);
-- With columns for secrets, addresses and capture.
do $$
begin
  if exists (select from pg_catalog.pg_proc p where p.oid = to_regprocedure('ai.worker_claim(uuid, integer, text)') and not p.proargnames @> array['secret_ref']) then
    drop function ai.worker_claim(uuid, integer, text);
    drop function if exists ai.lease_generations(uuid, timestamptz, uuid[], uuid[], bigint[], smallint[], smallint[], uuid[]);
  end if;
end
$$;
-- Permissions took their place; policies that asked them are made again.
drop function if exists ai.sees_tenant() cascade;
drop function if exists ai.is_tenant_admin() cascade;
drop function if exists ai.take_turn();
-- With the API key.
drop function if exists ai.generation_counters(uuid, text, text, text, text);
drop function if exists ai.make_counters(uuid, text, text, text, text);
drop function if exists ai.existing_lane(uuid, text, uuid, text, text, text, text);
do $$
begin
  if exists (select from pg_catalog.pg_proc p where p.oid = to_regprocedure('ai.limits_status()') and not p.proargnames @> array['api_key_id']) then
    drop function ai.limits_status();
  end if;
end
$$;
-- Done by the triggers that are left; theirs go with them.
drop function if exists ai.append_question() cascade;
drop function if exists ai.extend_batch_deadline() cascade;
drop function if exists ai.extend_provider_batch_deadline() cascade;
-- With what the claim knows already.
drop function if exists ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[]);
drop function if exists ai.move_to_lanes(uuid[], uuid[], bigint[], smallint[], smallint[]);
drop function if exists ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], uuid[], uuid, uuid);
drop function if exists ai.pass_limits(uuid[], uuid[], bigint[], smallint[], smallint[], text[], bigint[], uuid[], integer[], integer[], uuid[], boolean, uuid, uuid);
-- Gives arrays.
drop function if exists ai.reserve_limits(uuid[], uuid[], bigint[], bigint[], integer[], integer[], boolean[], boolean[]);
-- The claim's pick says it.
drop function if exists ai.has_batch_lane(bigint[]);
-- With what patterns count for.
drop function if exists ai.json_schema_index(jsonb);
drop function if exists ai.pattern_steps(text, bigint);
-- Of what was prepared, addresses of images included.
drop function if exists ai.files_weight(uuid, uuid[]);
-- Of one table.
drop function if exists ai.make_partitions(timestamptz);
drop function if exists ai.drop_old_partitions(timestamptz);
-- With a stop by the clock.
drop function if exists ai.json_schema_walk(jsonb, jsonb, integer, jsonb, text, text[], jsonb, text, text, boolean, integer, integer, integer);
-- A mark is of one person: a name that is being forgotten is given to nobody.
drop function if exists ai.note_new_member() cascade;
drop function if exists ai.has_artifacts(uuid, text, uuid);
-- With whose part of the document it is.
drop function if exists ai.erase_document(uuid, uuid, text, boolean);
-- As a chore.
drop function if exists ai.unlist_empty_lanes();
-- With leaders, which are no probes.
drop function if exists ai.choose_targets(uuid[], text[], smallint[], integer[]);
do $$
declare
  v_breakers regprocedure := to_regprocedure('ai.pass_breakers(uuid[], uuid[], bigint[], smallint[], smallint[], text[], uuid[], integer[], integer[], timestamptz)');
begin
  if exists (select from pg_catalog.pg_proc p where p.oid = v_breakers and not p.proargnames @> array['probes']) then
    execute format('drop function %s', v_breakers);
  end if;
end
$$;
