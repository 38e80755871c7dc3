-- migrate:up
-- Who asks: tenants, their members, and how a database session is known to be one of them.

create table ai.tenants (
  id         uuid        not null default ai.uuid_v7() constraint tenants_pkey primary key,
  name       text        not null constraint tenants_name_key unique
                         constraint tenants_name check (length(name) between 1 and 200),
  enabled    boolean     not null default true,
  created_at timestamptz not null default now()
);
comment on table ai.tenants is 'The unit of isolation.';
comment on column ai.tenants.enabled is 'false: its members are nobody; what they have queued ends as rejected.';

create table ai.members (
  tenant_id  uuid        not null constraint members_tenant_fkey references ai.tenants (id),
  user_id    text        not null constraint members_user_id check (length(user_id) between 1 and 200),
  role       text        not null default 'user' constraint members_role check (role in ('user', 'developer', 'admin')),
  enabled    boolean     not null default true,
  created_at timestamptz not null default now(),
  constraint members_pkey primary key (tenant_id, user_id)
);
create index members_user_id on ai.members (user_id);
comment on table ai.members is
  'A person or service in a tenant. user_id is the subject of a JWT, or any name. user: sees what is its own; developer, admin: what is the tenant''s.';

create table ai.role_bindings (
  role_name  name        not null constraint role_bindings_pkey primary key,
  tenant_id  uuid        not null,
  user_id    text        not null,
  created_at timestamptz not null default now(),
  constraint role_bindings_member_fkey foreign key (tenant_id, user_id) references ai.members (tenant_id, user_id)
);
create index role_bindings_member on ai.role_bindings (tenant_id, user_id);
comment on table ai.role_bindings is
  'A database login role that is a member. The role a session logged in with counts (session_user), never one that it set.';

create table ai.authenticators (
  role_name  name        not null constraint authenticators_pkey primary key,
  created_at timestamptz not null default now()
);
comment on table ai.authenticators is
  'Login roles of gateways that verify JWTs (PostgREST''s authenticator). Only in their sessions request.jwt.claims is believed.';

alter table ai.tenants        enable row level security;
alter table ai.members        enable row level security;
alter table ai.role_bindings  enable row level security;
alter table ai.authenticators enable row level security;
