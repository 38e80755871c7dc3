-- migrate:up
-- What an insert asks for each of its rows: who asks, and a new id.

-- Bindings say whether a plain prompt of theirs needs any further look: one probe, of two tables before.
alter table ai.role_bindings add column asks_plainly boolean not null default false;
comment on column ai.role_bindings.asks_plainly is
  'Whether the member may ask, and no guardrail, cache or rule concerns the tenant: a plain prompt is then inserted without a further look. Kept by triggers.';

-- A UUID of version 7, as before. From 18 on it is PostgreSQL's own, at a tenth of the price; no two of a session are then out of order.
-- Else its parts as text, for less than before: date_part() is exact to a quarter of a microsecond, extract() counts in numeric.
do $do$
begin
  if current_setting('server_version_num')::integer >= 180000 then
    execute 'create or replace function ai.uuid_v7() returns uuid language sql volatile parallel safe return uuidv7()';
  else
    create or replace function ai.uuid_v7() returns uuid
    language sql volatile parallel safe
    return (
      left(overlay(lpad(to_hex((date_part('epoch', clock_timestamp()) * 65536000)::bigint), 16, '0') placing '7' from 13 for 0), 16)
      || encode(substr(uuid_send(gen_random_uuid()), 9), 'hex')
    )::uuid;
  end if;
end
$do$;
