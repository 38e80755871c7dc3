-- migrate:up
-- What an insert pays for at each statement and row. A constraint is parsed by every statement, a list of words byte by byte: one
-- function that is called is a sixth of five lists that are parsed. And a look into one small table replaces looks into six.

-- Whoever inserts calls it, with a search_path of one's own: so every operator is named with its schema. A setting would be made and
-- taken back for each row.
create function ai.is_generation(p_kind text, p_status text, p_priority text, p_cache text, p_purpose text) returns boolean
language plpgsql immutable parallel safe security invoker
as $$
begin
  return p_kind operator(pg_catalog.=) any ('{chat,completion,embedding,classification,rerank,moderation,image,transcription,speech}'::pg_catalog.text[])
     and p_status operator(pg_catalog.=) any ('{queued,running,succeeded,failed,cancelled,rejected}'::pg_catalog.text[])
     and p_priority operator(pg_catalog.=) any ('{high,normal,low,batch}'::pg_catalog.text[])
     and (p_cache is null or p_cache operator(pg_catalog.=) any ('{off,exact,semantic,refresh}'::pg_catalog.text[]))
     and (p_purpose is null or p_purpose operator(pg_catalog.=) any ('{query,moderation,chunks,rows}'::pg_catalog.text[]));
end
$$;
comment on function ai.is_generation(text, text, text, text, text) is 'Whether the words of a generation are those that there are: kind, status, priority, cache, purpose.';
revoke execute on function ai.is_generation(text, text, text, text, text) from public;
grant execute on function ai.is_generation(text, text, text, text, text) to ai_user;

alter table ai.generations
  drop constraint generations_kind, drop constraint generations_status, drop constraint generations_priority,
  drop constraint generations_cache, drop constraint generations_purpose,
  add constraint generations_words check (ai.is_generation(kind, status, priority, cache, purpose));

-- Only added to, and twice where two do so at once: who sets the first limit of a tenant must not wait for another who does and has not committed.
create table ai.policies_in_use (
  id    bigint not null generated always as identity constraint policies_in_use_pkey primary key,
  scope uuid   not null,
  name  text   not null
);
create index policies_in_use_scope on ai.policies_in_use (scope);
comment on table ai.policies_in_use is 'Tables of policies in which a tenant has, or had, rows of its own, so that an insert looks at no others. Kept by triggers; a name may be there twice.';
comment on column ai.policies_in_use.scope is 'The tenant; all zeros: rows that all tenants share.';
alter table ai.policies_in_use enable row level security;
