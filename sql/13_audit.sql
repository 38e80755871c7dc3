-- The audit log: who changed which policy, price, key, secret or member, and who opened what was sealed. What is written here;
-- sql/14_audit_verify.sql checks it, sql/87_audited.sql says of which tables.
--
-- An entry is made where a row changes (ai.audit_change(), by triggers) or something is done that changes none (ai.audit()),
-- with the identity of that moment. It is kept in ai.audit_pending; at commit all entries of the transaction get their
-- numbers and hashes. So the heads of chains are the last things that a transaction locks, in their order, and
-- it holds them for its commit only: changes of one tenant's policy follow each other there, no deadlock can come of it, and an
-- open transaction blocks nobody. Who says `set constraints all immediate` holds them for longer, and nobody else suffers: what cannot
-- have its chain within a second stays in ai.audit_pending for the next who adds to the chain, at the latest ai.worker_maintain().
-- Nothing hot may write an audited table: whatever workers do for each generation is state.

-- The hash of an entry: SHA-256 of the hash before (32 bytes) and of a JSON array, in UTF-8, of these fields as strings in this order,
-- without spaces; null stays null. Times are in UTC with six digits, JSON is as PostgreSQL prints jsonb. No two entries are
-- written alike, and json.dumps(fields, ensure_ascii=False, separators=(",", ":")) of Python writes the same. Without a search_path,
-- so that a check of a million entries inlines it: an array takes a sixth of the time that fields joined one by one take.
create or replace function ai.audit_hash(
  p_prev bytea, p_tenant uuid, p_seq bigint, p_at timestamptz, p_login text, p_user_tenant uuid, p_user text, p_source text, p_api_key uuid,
  p_action text, p_object text, p_key jsonb, p_before jsonb, p_after jsonb) returns bytea
language sql stable parallel safe security invoker
return sha256(p_prev || convert_to(array_to_json(array[
  p_tenant::text, p_seq::text, to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), p_login, p_user_tenant::text, p_user, p_source,
  p_api_key::text, p_action, p_object, p_key::text, p_before::text, p_after::text])::text, 'UTF8'));
comment on function ai.audit_hash(bytea, uuid, bigint, timestamptz, text, uuid, text, text, uuid, text, text, jsonb, jsonb, jsonb) is
  'The hash of an entry of the audit log, from the hash of the one before and everything that the entry says.';

-- Adds an entry, when the transaction commits. The member that did it is told in the chain of its own tenant and in the
-- operator's; in another tenant's chain the login role must do. Locks nothing yet.
create or replace function ai.audit(p_tenant uuid, p_action text, p_object text, p_key jsonb, p_before jsonb, p_after jsonb) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  insert into ai.audit_pending (xact, is_first, tenant_id, at, login, user_tenant_id, user_id, source, api_key_id, action, object, key, before, after)
  select x.id, not exists (select from ai.audit_pending p where p.xact = x.id), p_tenant, ai.now(), session_user,
         i.tenant_id, i.user_id, i.source, i.api_key_id, p_action, p_object, p_key, p_before, p_after
    from (select pg_current_xact_id() as id offset 0) x
    left join ai.actor() i on p_tenant is null or p_tenant = i.tenant_id;
end
$$;
comment on function ai.audit(uuid, text, text, jsonb, jsonb, jsonb) is
  'Adds an entry to the audit log: of a tenant, or (null) of the operator. For acts that change no row; changed rows are noted by themselves.';

-- Puts what is pending into the chains: what this transaction did, or (p_all) whatever can be seen, and with it what others had to
-- leave. Gives how many entries. Locks the heads of these chains, in their order; what another holds is waited for a second
-- (p_all: not at all) and then left, and so is what somebody added to since the snapshot of REPEATABLE READ.
create or replace function ai.append_pending(p_all boolean) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set lock_timeout = '1s'
as $$
declare
  v_chains uuid[];
  v_row    record;
  v_chain  uuid;
  v_seq    bigint;
  v_prev   bytea;
  v_hash   bytea;
  v_count  integer := 0;
begin
  v_chains := array(select distinct p.chain from ai.audit_pending p where p_all or p.xact = pg_current_xact_id() order by p.chain);
  if v_chains = '{}' then
    return 0;
  end if;
  -- Not by a SET clause: an ordinary owner may not make a function with a setting that the server does not know.
  perform set_config('ai.appending', 'on', true);
  begin
    insert into ai.audit_heads (tenant_id, seq, hash)
    select nullif(n.chain, '00000000-0000-0000-0000-000000000000'), 0, decode(repeat('00', 32), 'hex')
      from unnest(v_chains) n (chain)
     where not exists (select from ai.audit_heads h where h.chain = n.chain)
     order by n.chain
    on conflict do nothing;
    if not p_all then
      perform from ai.audit_heads h where h.chain = any (v_chains) order by h.chain for update;
    end if;
  exception when lock_not_available or serialization_failure then
    null;
  end;
  begin
    v_chains := array(select h.chain from ai.audit_heads h where h.chain = any (v_chains) order by h.chain for update skip locked);
  exception when serialization_failure then
    perform set_config('ai.appending', '', true);
    return 0;
  end;

  for v_row in
    with gone as (delete from ai.audit_pending p where p.chain = any (v_chains) returning p.*)
    select * from gone g order by g.chain, g.id
  loop
    if v_row.chain is distinct from v_chain then
      update ai.audit_heads h set seq = v_seq, hash = v_hash where h.chain = v_chain;
      v_chain := v_row.chain;
      select h.seq, h.hash into v_seq, v_hash from ai.audit_heads h where h.chain = v_chain;
    end if;
    v_seq := v_seq + 1;
    v_prev := v_hash;
    v_hash := ai.audit_hash(v_prev, v_row.tenant_id, v_seq, v_row.at, v_row.login, v_row.user_tenant_id, v_row.user_id, v_row.source, v_row.api_key_id,
                            v_row.action, v_row.object, v_row.key, v_row.before, v_row.after);
    insert into ai.audit_log (tenant_id, seq, at, login, user_tenant_id, user_id, source, api_key_id, action, object, key, before, after, prev_hash, hash)
    values (v_row.tenant_id, v_seq, v_row.at, v_row.login, v_row.user_tenant_id, v_row.user_id, v_row.source, v_row.api_key_id,
            v_row.action, v_row.object, v_row.key, v_row.before, v_row.after, v_prev, v_hash);
    v_count := v_count + 1;
  end loop;
  update ai.audit_heads h set seq = v_seq, hash = v_hash where h.chain = v_chain;
  perform set_config('ai.appending', '', true);
  return v_count;
end
$$;
comment on function ai.append_pending(boolean) is 'Puts pending entries of the audit log into their chains; gives how many.';

-- Constraint trigger, at commit, once a transaction.
create or replace function ai.append_audit() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform ai.append_pending(false);
  return null;
end
$$;
comment on function ai.append_audit() is 'Trigger: puts the entries of a transaction into their chains as it commits.';

-- Called by ai.worker_maintain(): what had to be left, and no change came that took it along.
create or replace function ai.append_left(p_now timestamptz) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return case when exists (select from ai.audit_pending) then ai.append_pending(true) else 0 end;
end
$$;
comment on function ai.append_left(timestamptz) is 'Puts entries of the audit log that had to be left into their chains; gives how many.';

-- Trigger BEFORE INSERT, UPDATE, DELETE, TRUNCATE: what is named in its arguments is done by ai.append_pending(), which says so by
-- a setting, the rest by nobody. Raises PT403. It keeps an owner from accidents; who owns the table can drop the trigger, and what
-- was done then is for ai.audit_verify() to find, with a head that is kept elsewhere.
create or replace function ai.keep_audit() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = any (tg_argv) and current_setting('ai.appending', true) = 'on' then
    if tg_op = 'DELETE' then
      return old;
    end if;
    return new;
  end if;
  raise exception 'the audit log is only added to, by its own function' using errcode = 'PT403', detail = format('%s on ai.%I is refused.', tg_op, tg_table_name);
end
$$;
comment on function ai.keep_audit() is 'Trigger: refuses what is not done by ai.append_pending().';

-- What a log must not hold, taken out of JSON: values whose names say that they are keys, and user, password and query of addresses.
create or replace function ai.audit_masked(p_value jsonb) returns jsonb
language plpgsql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
set standard_conforming_strings = on
as $$
begin
  case jsonb_typeof(p_value)
    when 'object' then
      return coalesce((select jsonb_object_agg(e.key, case when jsonb_typeof(e.value) = 'string' and e.key ~* '(key|token|secret|passw|authori|credential|cookie)'
                                                           then '{"omitted": true}' else ai.audit_masked(e.value) end)
                         from jsonb_each(p_value) e), '{}');
    when 'array' then
      return coalesce((select jsonb_agg(ai.audit_masked(e.value) order by e.at) from jsonb_array_elements(p_value) with ordinality e (value, at)), '[]');
    when 'string' then
      if p_value #>> '{}' ~* '^[a-z]+://' then
        return to_jsonb(regexp_replace(regexp_replace(p_value #>> '{}', '^([a-z]+://)[^/?#]*@', '\1…@', 'i'), '[?#].*$', '?…'));
      end if;
      return p_value;
    else
      return p_value;
  end case;
end
$$;
comment on function ai.audit_masked(jsonb) is 'JSON without what may be a secret.';

-- A row as the log keeps it. Columns in p_omitted are only said to be there; what is longer than 1,000 bytes is told by its SHA-256:
-- whoever has the text can show that it was this one. p_nulls: also columns that are null.
create or replace function ai.audit_row(p_row jsonb, p_omitted text[], p_nulls boolean) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_object_agg(e.key, case when e.value = 'null' then e.value
                                      when e.key = any (p_omitted) then '{"omitted": true}'
                                      when octet_length(e.value::text) <= 1000 then case when jsonb_typeof(e.value) in ('object', 'array') or e.value::text ~ '://'
                                                                                         then ai.audit_masked(e.value) else e.value end
                                      else (select jsonb_build_object('sha256', encode(sha256(t.bytes), 'hex'), 'bytes', length(t.bytes))
                                              from (select convert_to(e.value #>> '{}', 'UTF8') as bytes) t) end)
    from jsonb_each(p_row) e
   where p_nulls or e.value <> 'null'
$$;
comment on function ai.audit_row(jsonb, text[], boolean) is 'A row, or part of one, as the audit log keeps it: without secrets and long texts.';

-- Trigger AFTER INSERT OR UPDATE OR DELETE, each row of an audited table. Arguments: how the tenant is known (a column, or via:
-- the table that knows), the columns of the key, those that are never shown, and those whose changes are none. A row that moves
-- from one tenant to another is told to both.
create or replace function ai.audit_change() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set intervalstyle = 'postgres'
as $$
declare
  v_omitted text[] := tg_argv[2]::text[];
  v_old     jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
  v_new     jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
  v_tenants uuid[];
  v_key     jsonb;
  v_before  jsonb;
  v_after   jsonb;
begin
  if tg_op = 'UPDATE' then
    select jsonb_object_agg(o.key, o.value), jsonb_object_agg(o.key, n.value) into v_before, v_after
      from jsonb_each(v_old) o join jsonb_each(v_new) n on n.key = o.key
     where o.value <> n.value and o.key <> all (tg_argv[3]::text[]);
    if v_after is null then
      return null;
    end if;
  else
    v_before := v_old;
    v_after := v_new;
  end if;
  select jsonb_object_agg(k, coalesce(v_new, v_old) -> k) into v_key from unnest(tg_argv[1]::text[]) k;
  v_tenants := array(select distinct ai.audit_tenant(tg_argv[0], r.row) from (values (v_old), (v_new)) r (row) where r.row is not null);
  perform ai.audit(t.id, lower(tg_op), tg_table_name, v_key, ai.audit_row(v_before, v_omitted, tg_op = 'UPDATE'), ai.audit_row(v_after, v_omitted, tg_op = 'UPDATE'))
     from unnest(v_tenants) t (id);
  return null;
end
$$;
comment on function ai.audit_change() is 'Trigger: notes a changed row of an audited table.';

-- Whose chain the change of a row belongs to: p_by is the column with the tenant, none: the operator, or via models or providers. What
-- was deleted together with its model or provider is told to the operator.
create or replace function ai.audit_tenant(p_by text, p_row jsonb) returns uuid
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return case p_by
    when 'none' then null
    when 'via models' then (select m.tenant_id from ai.models m where m.id = (p_row ->> 'model_id')::bigint)
    when 'via providers' then (select p.tenant_id from ai.providers p where p.id = (p_row ->> 'provider_id')::bigint)
    else (p_row ->> p_by)::uuid end;
end
$$;
comment on function ai.audit_tenant(text, jsonb) is 'The tenant in whose chain the change of a row is told; null: the operator''s.';

-- Trigger BEFORE TRUNCATE on audited tables: it would tell nothing of the rows. Raises PT409.
create or replace function ai.refuse_truncate() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'ai.% is not truncated', tg_table_name using errcode = 'PT409', detail = 'Its changes are on the audit log, row by row.', hint = 'Use delete.';
end
$$;
comment on function ai.refuse_truncate() is 'Trigger: refuses to truncate an audited table.';

revoke execute on function ai.audit_hash(bytea, uuid, bigint, timestamptz, text, uuid, text, text, uuid, text, text, jsonb, jsonb, jsonb),
  ai.audit(uuid, text, text, jsonb, jsonb, jsonb), ai.append_pending(boolean), ai.append_audit(), ai.append_left(timestamptz), ai.keep_audit(), ai.audit_masked(jsonb), ai.audit_row(jsonb, text[], boolean),
  ai.audit_change(), ai.audit_tenant(text, jsonb), ai.refuse_truncate() from public;
grant execute on function ai.audit_hash(bytea, uuid, bigint, timestamptz, text, uuid, text, text, uuid, text, text, jsonb, jsonb, jsonb) to ai_user;
