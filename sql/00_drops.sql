-- Signatures that earlier versions had and this one has not. Runs before everything else, because `create or replace`
-- can neither rename a parameter nor change a return type.
drop function if exists ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text);
drop procedure if exists ai.ask(text, text, text, text, integer);
drop function if exists ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz,
  integer, integer, integer, integer);
-- With two columns more. What asked it is made again: the policies and the functions bound to it.
do $$
begin
  if exists (select from pg_catalog.pg_proc p where p.oid = to_regprocedure('ai.identity()') and not p.proargnames @> array['permissions']) then
    drop function ai.identity() cascade;
  end if;
end
$$;
