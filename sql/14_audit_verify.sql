-- Checking the audit log. Both functions run with their caller's rights: row-level security shows a member with audit:read the
-- chain of its own tenant, and the owner of the schema all of them.

-- Which chains a caller means: from … to. Raises PT401, and PT403 without audit:read or for another tenant's chain: what one may
-- not see must not look sound.
create or replace function ai.audit_chains(p_tenant uuid, out chain_from uuid, out chain_to uuid)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  v_own uuid;
begin
  if row_security_active('ai.audit_log') then
    v_own := ai.tenant_id();
    if v_own is null then
      raise exception 'this session is nobody' using errcode = 'PT401', hint = 'select * from ai.whoami();';
    elsif not ai.may('audit:read') or p_tenant <> v_own then
      raise exception 'the permission audit:read is needed, in one''s own tenant' using errcode = 'PT403', hint = 'select * from ai.whoami();';
    end if;
    p_tenant := v_own;
  end if;
  chain_from := coalesce(p_tenant, '00000000-0000-0000-0000-000000000000');
  chain_to := coalesce(p_tenant, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
end
$$;
comment on function ai.audit_chains(uuid) is 'The range of chains that a caller may ask for; PT401, PT403.';

create or replace function ai.audit_head(p_tenant uuid default null)
returns table (tenant_id uuid, seq bigint, hash bytea, chain uuid)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_range record;
begin
  select * into v_range from ai.audit_chains(p_tenant);
  return query select h.tenant_id, h.seq, h.hash, h.chain from ai.audit_heads h where h.chain between v_range.chain_from and v_range.chain_to order by h.chain;
end
$$;
comment on function ai.audit_head(uuid) is
  'The last entry of the tenant''s audit log, to be kept where nobody of here can change it; for the owner that of every chain, or of one.';

-- What is wrong with the audit log: nothing where it gives no row. One pass in the order of the key, with memory for one entry
-- and for what was found.
--   changed    an entry does not have the hash that it says
--   missing    entries are not there: numbers are missing before one that is
--   unlinked   an entry does not follow the one before: one of them was put in the place of another
--   cut        the last entries are missing: the head knows more
--   ahead      the head does not know the last entries, or another one in the last's place
--   headless   a chain has no head
--   rewritten  the entry that you know is missing or is another (p_known_seq, p_known_hash: of ai.audit_head(), kept elsewhere)
--   unwatched  (owner) an audited table has no trigger, or it is switched off
-- What somebody with the owner's rights removed or wrote anew from some entry to the end, head included, shows only against a
-- head that is kept elsewhere. All zeros for p_tenant: the operator's chain. Raises PT400, PT401, PT403.
create or replace function ai.audit_verify(p_tenant uuid default null, p_known_seq bigint default null, p_known_hash bytea default null)
returns table (tenant_id uuid, seq bigint, problem text, detail text)
language plpgsql stable security invoker
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
set enable_bitmapscan = off
set enable_sort = off
as $$
#variable_conflict use_column
declare
  c_zero  constant bytea := decode(repeat('00', 32), 'hex');
  v_range record;
begin
  select * into v_range from ai.audit_chains(p_tenant);
  if (p_known_seq is null) <> (p_known_hash is null) or p_known_seq is not null and v_range.chain_from <> v_range.chain_to then
    raise exception 'what is known of a chain is one number with its hash'
      using errcode = 'PT400', hint = 'select * from ai.audit_verify(tenant, seq, hash); all zeros for the tenant: the operator''s chain.';
  end if;

  return query
    select e.tenant_id, w.seq, w.problem, w.detail
      from (select l.*, lag(l.seq) over chain as last_seq, lag(l.hash) over chain as last_hash
              from ai.audit_log l
             where l.chain >= v_range.chain_from and l.chain <= v_range.chain_to
            window chain as (partition by l.chain order by l.seq)) e
     cross join lateral (
       select e.seq, 'changed', 'the entry does not have the hash that it says'
        where e.hash <> ai.audit_hash(e.prev_hash, e.tenant_id, e.seq, e.at, e.login, e.user_tenant_id, e.user_id, e.source, e.api_key_id,
                                      e.action, e.object, e.key, e.before, e.after)
       union all
       select coalesce(e.last_seq, 0) + 1, 'missing', format('entries %s to %s are missing', coalesce(e.last_seq, 0) + 1, e.seq - 1)
        where e.seq <> coalesce(e.last_seq, 0) + 1
       union all
       select e.seq, 'unlinked', 'the entry does not follow the one before'
        where e.seq = coalesce(e.last_seq, 0) + 1 and e.prev_hash <> coalesce(e.last_hash, c_zero)
       union all
       select e.seq, 'headless', 'the chain has no head'
        where e.last_seq is null and not exists (select from ai.audit_heads h where h.chain = e.chain)) w (seq, problem, detail);

  return query
    select h.tenant_id, case when e.seq = h.seq then h.seq else least(coalesce(e.seq, 0), h.seq) + 1 end, case when coalesce(e.seq, 0) < h.seq then 'cut' else 'ahead' end,
           format('the head says that the last entry is %s, and it is %s', h.seq, case when e.seq = h.seq then 'another' else coalesce(e.seq::text, 'none') end)
      from ai.audit_heads h
      left join lateral (select l.seq, l.hash from ai.audit_log l where l.chain = h.chain order by l.chain desc, l.seq desc limit 1) e on true
     where h.chain >= v_range.chain_from and h.chain <= v_range.chain_to
       and (h.seq, h.hash) is distinct from (coalesce(e.seq, 0), coalesce(e.hash, c_zero));

  if p_known_seq is not null
     and not exists (select from ai.audit_log l where l.chain = v_range.chain_from and l.seq = p_known_seq and l.hash = p_known_hash)
     and not (p_known_seq = 0 and p_known_hash = c_zero) then
    tenant_id := nullif(v_range.chain_from, '00000000-0000-0000-0000-000000000000');
    seq := p_known_seq;
    problem := 'rewritten';
    detail := 'the entry that you know is missing or is another';
    return next;
  end if;

  if not row_security_active('ai.audit_log') then
    return query
      select null::uuid, null::bigint, 'unwatched', format('ai.%s: its trigger %s is missing or switched off', a.name, n.name)
        from (select t.name, unnest(array['audited', 'audited_whole']) as trigger_name from ai.audited_tables() t
              union all
              select v.name, v.trigger_name from (values ('audit_log', 'keep_audit'), ('audit_log', 'keep_audit_whole'), ('audit_heads', 'keep_audit'),
                ('audit_heads', 'keep_audit_whole'), ('audit_pending', 'keep_audit'), ('audit_pending', 'audit_pending_append')) v (name, trigger_name)) a
       cross join lateral (select a.trigger_name as name) n
       where not exists (select from pg_trigger g where g.tgrelid = to_regclass(format('ai.%I', a.name)) and g.tgname = a.trigger_name and g.tgenabled in ('O', 'A'))
       order by 4;
  end if;
end
$$;
comment on function ai.audit_verify(uuid, bigint, bytea) is
  'What is wrong with the tenant''s audit log (for the owner: with every chain); no rows: nothing. With the number and hash of an entry kept elsewhere it is checked against that too.';

revoke execute on function ai.audit_chains(uuid), ai.audit_head(uuid), ai.audit_verify(uuid, bigint, bytea) from public;
grant execute on function ai.audit_chains(uuid), ai.audit_head(uuid), ai.audit_verify(uuid, bigint, bytea) to ai_user;
