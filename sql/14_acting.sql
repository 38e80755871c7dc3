-- Whose rights count. A definer function runs with those of its owner; what it allows must hang on those of who calls it.

-- The role whose rights a definer function must ask for: who logged in, or what it became by SET ROLE.
create or replace function ai.acting_role() returns name
language sql stable security invoker
set search_path = pg_catalog, pg_temp
as $$ select case current_setting('role') when 'none' then session_user else current_setting('role')::name end $$;
comment on function ai.acting_role() is 'Who logged in, or what that role became by SET ROLE; not the owner of a definer function.';

create or replace function ai.acts_as_owner() returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select pg_has_role(ai.acting_role(), n.nspowner, 'usage') from pg_namespace n where n.nspname = 'ai' $$;
comment on function ai.acts_as_owner() is 'Whether the acting role has the rights of the owner of schema ai.';

-- Whether the acting role passes by row-level security: the owner of the schema, and service roles of stacks that have them.
create or replace function ai.acts_for_all() returns boolean
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select ai.acts_as_owner() or coalesce((select r.rolbypassrls from pg_roles r where r.rolname = (select ai.acting_role())), false)
$$;
comment on function ai.acts_for_all() is 'Whether the acting role may name any tenant, because row-level security does not bind it.';

revoke execute on function ai.acting_role(), ai.acts_as_owner(), ai.acts_for_all() from public;
grant execute on function ai.acting_role(), ai.acts_as_owner() to ai_user;
