-- Sealed calls: which are kept, and who may open them.

-- Whether a generation is among p_percent of a hundred: by its id, so that all of its attempts are or none, and whoever asks
-- gets the same answer.
create or replace function ai.is_sampled(p_id uuid, p_percent numeric) returns boolean
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select (get_byte(uuid_send(p_id), 13) * 65536 + get_byte(uuid_send(p_id), 14) * 256 + get_byte(uuid_send(p_id), 15)) < p_percent * 167772.16 $$;
comment on function ai.is_sampled(uuid, numeric) is 'Whether a generation is in a sample of that many of a hundred.';

-- How a tenant's calls are kept: its own row, else that of all. No row: nothing is.
create or replace function ai.capture_policy(p_tenant uuid, out mode text, out percent numeric)
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select p.mode, p.percent from ai.capture_policies p
   where p.tenant_id = p_tenant or p.tenant_id is null
   order by p.tenant_id nulls last limit 1
$$;
comment on function ai.capture_policy(uuid) is 'How a tenant''s calls are kept sealed.';

-- Books that a caller opens sealed calls of a generation, of one attempt or (null) of all. Gives the number under which
-- ai.opened_call() hands them out, to this caller, for a minute, once this transaction is committed: an opening that is
-- rolled back has shown nothing. Raises PT401, PT403; PT404 where nothing is sealed, or not for this tenant.
create or replace function ai.open_call(p_generation uuid, p_attempt integer default null) returns uuid
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_owner  boolean := ai.acts_as_owner();
  v_tenant uuid;
  v_id     uuid;
begin
  if not v_owner then
    select r.tenant_id into v_tenant from ai.require('call:open') r;
  end if;
  select c.tenant_id into v_tenant
    from ai.tenants t
    join ai.sealed_calls c on c.tenant_id = t.id and c.generation_id = p_generation and (p_attempt is null or c.attempt = p_attempt)
   where v_owner or t.id = v_tenant limit 1;
  if not found then
    raise exception 'nothing is sealed of this call'
      using errcode = 'PT404', hint = 'select attempt, capture from ai.llm_calls where generation_id = …; ai.capture_policies says what is kept.';
  end if;
  delete from ai.call_openings o where o.created_at < ai.now() - interval '1 hour';
  insert into ai.call_openings (tenant_id, generation_id, attempt, created_at) values (v_tenant, p_generation, p_attempt, ai.now()) returning id into v_id;
  perform ai.audit(v_tenant, 'open', 'sealed_calls', jsonb_build_object('generation_id', p_generation, 'attempt', p_attempt), null, null);
  return v_id;
end
$$;
comment on function ai.open_call(uuid, integer) is 'Books an opening of sealed calls; ai.opened_call() gives them once that is committed. Needs call:open.';

-- What ai.open_call() booked: sealed still, to be opened by who has the master key (martlet calls show). wrapped is null where
-- the key was destroyed. The login may be a gateway's, who comes with another member now, or with nobody: so it is asked again who that is.
-- Raises PT401, PT403; PT404 for a number that is unknown, another's, or older than a minute; PT409 where the opening is not
-- committed yet.
create or replace function ai.opened_call(p_opening uuid)
returns table (tenant_id uuid, generation_id uuid, attempt integer, created_at timestamptz, mode text, data_key_id uuid, wrapped bytea, master_key_id text,
               facts bytea, request bytea, response bytea)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
#variable_conflict use_column
declare
  v_owner  boolean := ai.acts_as_owner();
  v_tenant uuid;
  v_it     record;
begin
  if not v_owner then
    select r.tenant_id into v_tenant from ai.require('call:open') r;
  end if;
  select o.* into v_it
    from ai.call_openings o
   where o.id = p_opening and o.opened_by = session_user and (v_owner or o.tenant_id = v_tenant) and o.created_at > ai.now() - interval '1 minute';
  if not found then
    raise exception 'this opening is unknown, another''s, or over' using errcode = 'PT404', hint = 'ai.open_call()';
  elsif v_it.xact = pg_current_xact_id_if_assigned() then
    raise exception 'the opening is not committed yet' using errcode = 'PT409', hint = 'Commit, then ask.';
  end if;
  return query
    select c.tenant_id, c.generation_id, c.attempt::integer, c.created_at, c.mode, c.data_key_id, k.wrapped, k.master_key_id, c.facts, c.request, c.response
      from ai.sealed_calls c
      left join ai.data_keys k on k.id = c.data_key_id
     where c.tenant_id = v_it.tenant_id and c.generation_id = v_it.generation_id and (v_it.attempt is null or c.attempt = v_it.attempt)
     order by c.attempt, c.created_at;
end
$$;
comment on function ai.opened_call(uuid) is 'Sealed calls whose opening ai.open_call() has booked.';

-- Keeps what workers sealed of a batch of attempts: p_calls says which (what the fence let through), p_results holds it.
create or replace function ai.keep_sealed(p_calls jsonb, p_results jsonb) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into ai.sealed_calls (tenant_id, generation_id, attempt, created_at, mode, data_key_id, facts, request, response)
  select c.tenant_id, c.id, c.attempt, c.claimed_at, c.capture, (r.sealed ->> 'key')::uuid,
         decode(r.sealed ->> 'facts', 'base64'), decode(r.sealed ->> 'request', 'base64'), decode(r.sealed ->> 'response', 'base64')
    from jsonb_to_recordset(p_calls) c (id uuid, attempt smallint, tenant_id uuid, claimed_at timestamptz, capture text)
    join (select distinct on (p.id, p.attempt) p.* from jsonb_to_recordset(p_results) p (id uuid, attempt smallint, sealed jsonb)
           where p.sealed is not null) r on r.id = c.id and r.attempt = c.attempt
$$;
comment on function ai.keep_sealed(jsonb, jsonb) is 'Inserts the sealed requests and responses of a batch. Internal: ai.conclude_attempts().';

-- Trigger BEFORE INSERT: what an admin of a tenant inserts is the tenant's own.
create or replace function ai.own_capture_policy() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  if row_security_active('ai.capture_policies') then
    new.tenant_id := coalesce(new.tenant_id, (select ai.tenant_id()));
  end if;
  return new;
end
$$;
comment on function ai.own_capture_policy() is 'Trigger: the policy that an admin inserts is that of the admin''s tenant.';

revoke execute on function ai.is_sampled(uuid, numeric), ai.capture_policy(uuid), ai.open_call(uuid, integer), ai.opened_call(uuid), ai.keep_sealed(jsonb, jsonb),
  ai.own_capture_policy() from public;
grant execute on function ai.open_call(uuid, integer), ai.opened_call(uuid) to ai_user;

-- objects

create or replace trigger own_capture_policy before insert on ai.capture_policies
  for each row execute function ai.own_capture_policy();

drop policy if exists visible on ai.capture_policies;
create policy visible on ai.capture_policies for select to ai_user
  using ((tenant_id is null or tenant_id = (select ai.tenant_id())) and (select ai.may('policy:read') or ai.may('policy:write')));
drop policy if exists own on ai.capture_policies;
create policy own on ai.capture_policies for insert to ai_admin
  with check (tenant_id = (select ai.tenant_id()) and (select ai.may('policy:write')));
drop policy if exists own_change on ai.capture_policies;
create policy own_change on ai.capture_policies for update to ai_admin
  using (tenant_id = (select ai.tenant_id()) and (select ai.may('policy:write')));
grant select on ai.capture_policies to ai_user;
-- A policy is switched off (mode off), not deleted.
grant insert (tenant_id, mode, percent), update (mode, percent) on ai.capture_policies to ai_admin;
