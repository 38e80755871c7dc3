-- migrate:up
-- When an API key was last used, in a table of its own: who logs in holds this row until its transaction ends, and must not
-- hold the key, which somebody may want to revoke.

create table ai.api_key_uses (
  api_key_id   uuid        not null constraint api_key_uses_pkey primary key
                           constraint api_key_uses_api_key_fkey references ai.api_keys (id) on delete cascade,
  last_used_at timestamptz
);
comment on table ai.api_key_uses is 'When each API key was last used.';
comment on column ai.api_key_uses.last_used_at is 'To the minute; null: never.';
alter table ai.api_key_uses enable row level security;
alter table ai.api_keys drop column last_used_at;

-- What a bound role's member is and may do, copied to where it is asked for several times a statement: one index probe in place of
-- five. Kept by triggers (sql/17_bindings.sql), which take turns by updating rows of ai.binding_turns.
alter table ai.role_bindings
  add column member_role        text,
  add column member_permissions text[],
  add column member_enabled     boolean not null default false;
comment on column ai.role_bindings.member_role is 'Copy of ai.members.role. Kept by triggers.';
comment on column ai.role_bindings.member_permissions is 'Copy of that role''s permissions. Kept by triggers.';
comment on column ai.role_bindings.member_enabled is 'Whether member and tenant are enabled. Kept by triggers.';

create table ai.binding_turns (
  scope text   not null constraint binding_turns_pkey primary key,
  turn  bigint not null default 0
);
insert into ai.binding_turns (scope) values ('roles'), ('logins');
comment on table ai.binding_turns is 'How often something changed of which ai.role_bindings has a copy: a row for each tenant, one for the roles that all share, one for names of logins.';
alter table ai.binding_turns enable row level security;
