-- migrate:up
-- What tenants manage themselves: members, roles, providers.

-- A tenant could name anybody a member, also people of other tenants. So whom a tenant added is that member only where the
-- token says for which tenant it speaks (or by an API key of this tenant): nobody's token changes its meaning because of
-- what a stranger wrote.
alter table ai.members add column added_by_tenant boolean not null default false;
comment on column ai.members.added_by_tenant is 'Added by ai.add_member(), not by the operator: a JWT must name the tenant to be this member.';

create index members_role on ai.members (role, tenant_id);

alter table ai.settings add column private_providers boolean not null default false;
comment on column ai.settings.private_providers is
  'Whether providers that tenants set themselves may be reached by plain http and at private, link-local and loopback addresses.';

-- Collections answer for the whole tenant: those who keep them are developers. Whoever owns a table may vectorize it without.
update ai.roles set permissions = array_remove(permissions, 'document:write') where tenant_id is null and name = 'user';
