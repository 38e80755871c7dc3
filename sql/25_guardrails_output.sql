-- Guardrails at the end of a generation: the answer, and what was kept to be restored in it.

-- Whether nobody may see the answer before it has ended.
create or replace function ai.holds_output(p_tenant uuid, p_id uuid, p_kind text) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
begin
  return exists (select from ai.redactions r where r.tenant_id = p_tenant and r.generation_id = p_id) or ai.guards(p_tenant, p_kind, 'output');
end
$$;
comment on function ai.holds_output(uuid, uuid, text) is 'Whether an answer is shown at its end only: rules look at it, or placeholders are restored in it.';

-- Called once when a generation ends. Rules see the answer with its placeholders; what these stand for is put back
-- afterwards: it is the asker's own. Where that is too much the placeholders stay, and a stage says so. Forgets the redactions.
create or replace function ai.guard_output(p_tenant uuid, p_id uuid, p_user text, p_text text, out text text, out rejected jsonb, out stages jsonb)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  v_placeholders text[];
  v_originals    text[];
  v_result       record;
begin
  with gone as (
    delete from ai.redactions r where r.tenant_id = p_tenant and r.generation_id = p_id returning r.placeholder, r.original
  )
  select coalesce(array_agg(g.placeholder), '{}'), coalesce(array_agg(g.original), '{}') into v_placeholders, v_originals from gone g;
  text := p_text;
  if p_text is null then
    return;
  end if;
  v_result := ai.apply_guardrails(p_tenant, 'chat', 'output', p_text, p_text, null, v_placeholders, '{}', '{}', false);
  rejected := v_result.rejected;
  stages := v_result.stages;
  text := case when rejected is null then ai.restore(v_result.text, v_placeholders, v_originals) end;
  if rejected is null and text is null then
    text := v_result.text;
    stages := stages || ai.stage('guardrails', 'redacted', 'too much to restore', null, '{"scope": "output"}');
  end if;
end
$$;
comment on function ai.guard_output(uuid, uuid, text, text) is
  'The answer of a generation after the rules, with what its placeholders stand for, or why it is refused; forgets the redactions.';

-- For generations that end without an answer.
create or replace function ai.forget_redactions(p_tenants uuid[], p_ids uuid[]) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  delete from ai.redactions r using unnest(p_tenants, p_ids) e (tenant_id, id) where r.tenant_id = e.tenant_id and r.generation_id = e.id
$$;
comment on function ai.forget_redactions(uuid[], uuid[]) is 'Forgets what was taken out of the inputs of these generations.';

-- What a crash or a restore left behind. Returns how many rows are gone; at most p_limit.
create or replace function ai.sweep_redactions(p_limit integer default 1000) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_gone integer;
begin
  delete from ai.redactions r
   where (r.tenant_id, r.generation_id, r.placeholder) in (
           select o.tenant_id, o.generation_id, o.placeholder
             from ai.redactions o
             left join ai.generations g on g.tenant_id = o.tenant_id and g.id = o.generation_id
            where g.id is null or g.finished_at is not null
            limit p_limit);
  get diagnostics v_gone = row_count;
  return v_gone;
end
$$;
comment on function ai.sweep_redactions(integer) is 'Forgets redactions whose generation has ended or is gone.';

revoke execute on function ai.holds_output(uuid, uuid, text), ai.guard_output(uuid, uuid, text, text), ai.forget_redactions(uuid[], uuid[]),
  ai.sweep_redactions(integer) from public;
