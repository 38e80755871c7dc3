-- What is audited: every table that says who may do what, at what cost, with which key. The rest is content, or state that
-- workers write all the time, which must never wait for a chain. Tests/SQL/audit.sql names each table as one or the other.

-- tenant: the column with the tenant whose chain tells of it; none: the operator's; via: the table that knows. omitted: besides all
-- bytea columns, which are keys, hashes and what is sealed. ignored: what changes by itself.
create or replace function ai.audited_tables() returns table (name text, tenant text, omitted text[], ignored text[])
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select v.name, v.tenant, v.omitted::text[], v.ignored::text[]
    from (values
      ('tenants',           'id',            '{}',        '{}'),
      ('members',           'tenant_id',     '{}',        '{}'),
      ('roles',             'tenant_id',     '{}',        '{}'),
      ('permissions',       'none',          '{}',        '{}'),
      ('role_bindings',     'tenant_id',     '{}',        '{member_role,member_permissions,member_enabled,asks_plainly}'),
      ('authenticators',    'none',          '{}',        '{}'),
      ('api_keys',          'tenant_id',     '{}',        '{}'),
      ('data_keys',         'tenant_id',     '{}',        '{}'),
      ('secrets',           'tenant_id',     '{}',        '{}'),
      ('capture_policies',  'tenant_id',     '{}',        '{}'),
      ('artifact_policies', 'tenant_id',     '{}',        '{}'),
      ('artifact_stores',   'none',          '{}',        '{}'),
      ('guardrails',        'tenant_id',     '{compiled}', '{compiled}'),
      ('limits',            'tenant_id',     '{}',        '{}'),
      ('credits',           'tenant_id',     '{}',        '{}'),
      ('cache_policies',    'tenant_id',     '{}',        '{}'),
      ('prompt_cache_policies', 'tenant_id', '{}',        '{}'),
      ('providers',         'tenant_id',     '{headers}', '{}'),
      ('provider_accounts', 'via providers', '{}',        '{}'),
      ('models',            'tenant_id',     '{}',        '{}'),
      ('prices',            'via models',    '{}',        '{}'),
      ('profiles',          'tenant_id',     '{}',        '{}'),
      ('profile_rules',     'tenant_id',     '{}',        '{}'),
      ('routes',            'tenant_id',     '{}',        '{}'),
      ('breaker_settings',  'none',          '{}',        '{}'),
      ('retry_rules',       'none',          '{}',        '{}'),
      ('prompt_templates',  'tenant_id',     '{}',        '{}'),
      ('context_sources',   'tenant_id',     '{}',        '{}'),
      ('tools',             'tenant_id',     '{}',        '{}'),
      ('settings',          'none',          '{}',        '{}'),
      ('partitioning',      'none',          '{}',        '{}'),
      ('realtime_key',      'none',          '{}',        '{}')) v (name, tenant, omitted, ignored)
$$;
comment on function ai.audited_tables() is 'The tables whose changes are on the audit log.';
revoke execute on function ai.audited_tables() from public;
grant execute on function ai.audited_tables() to ai_user;

-- objects

do $$
declare
  v_table record;
begin
  -- What this transaction has changed so far goes into the chains now: a trigger that has work to do cannot be replaced.
  if exists (select from pg_catalog.pg_trigger t where t.tgrelid = 'ai.audit_pending'::regclass and t.tgname = 'audit_pending_append') then
    set constraints ai.audit_pending_append immediate;
  else
    create constraint trigger audit_pending_append after insert on ai.audit_pending
      deferrable initially deferred for each row when (new.is_first) execute function ai.append_audit();
  end if;

  for v_table in
    select a.name, a.tenant, a.ignored,
           (select array_agg(t.attname order by array_position(c.conkey, t.attnum)) from pg_catalog.pg_attribute t where t.attrelid = r.oid and t.attnum = any (c.conkey)) as keys,
           a.omitted || array(select t.attname::text from pg_catalog.pg_attribute t
                               where t.attrelid = r.oid and t.attnum > 0 and not t.attisdropped and t.atttypid = 'bytea'::regtype) as omitted
      from ai.audited_tables() a
      join pg_catalog.pg_class r on r.relname = a.name and r.relnamespace = 'ai'::regnamespace
      join lateral (select k.conkey from pg_catalog.pg_constraint k where k.conrelid = r.oid and k.contype in ('p', 'u')
                     order by k.contype, k.conname limit 1) c on true
  loop
    execute format('create or replace trigger audited after insert or update or delete on ai.%I for each row execute function ai.audit_change(%L, %L, %L, %L)',
                   v_table.name, v_table.tenant, v_table.keys, v_table.omitted, v_table.ignored);
    execute format('create or replace trigger audited_whole before truncate on ai.%I for each statement execute function ai.refuse_truncate()', v_table.name);
  end loop;
end
$$;

create or replace trigger keep_audit before insert or update or delete on ai.audit_log
  for each row execute function ai.keep_audit('INSERT');
create or replace trigger keep_audit_whole before truncate on ai.audit_log
  for each statement execute function ai.keep_audit();
create or replace trigger keep_audit before insert or update or delete on ai.audit_heads
  for each row execute function ai.keep_audit('INSERT', 'UPDATE');
create or replace trigger keep_audit_whole before truncate on ai.audit_heads
  for each statement execute function ai.keep_audit();
create or replace trigger keep_audit before update or delete on ai.audit_pending
  for each row execute function ai.keep_audit('DELETE');
create or replace trigger keep_audit_whole before truncate on ai.audit_pending
  for each statement execute function ai.keep_audit();

drop policy if exists own on ai.audit_log;
create policy own on ai.audit_log for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (select ai.may('audit:read')));
drop policy if exists own on ai.audit_heads;
create policy own on ai.audit_heads for select to ai_user
  using (tenant_id = (select ai.tenant_id()) and (select ai.may('audit:read')));
grant select on ai.audit_log, ai.audit_heads to ai_user;
