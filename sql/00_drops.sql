-- Signatures that earlier versions had and this one has not. Runs before everything else, because `create or replace`
-- can neither rename a parameter nor change a return type.
drop function if exists ai.generate(text, jsonb, text, text, jsonb, boolean, text, timestamptz, integer, text, jsonb, text);
drop procedure if exists ai.ask(text, text, text, text, integer);
drop function if exists ai.after_attempt(text, boolean, text, boolean, bigint, integer, integer, uuid, uuid, boolean, timestamptz, timestamptz,
  integer, integer, integer, integer);
