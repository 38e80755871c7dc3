-- migrate:up
-- Rules about what goes in and what comes out, and what was taken out of an input until its answer comes.

create table ai.guardrails (
  id        bigint generated always as identity constraint guardrails_pkey primary key,
  tenant_id uuid    constraint guardrails_tenant_fkey references ai.tenants (id),
  name      text    not null constraint guardrails_name check (length(name) between 1 and 100),
  scope     text    not null default 'input' constraint guardrails_scope check (scope in ('input', 'output', 'both')),
  detector  text    not null constraint guardrails_detector check (detector in
                    ('empty', 'length', 'injection', 'email', 'phone', 'card', 'iban', 'ip', 'ssn', 'secret', 'terms', 'pattern', 'moderation')),
  action    text    not null default 'reject' constraint guardrails_action check (action in ('reject', 'redact', 'flag')),
  restore   boolean not null default false,
  kinds     text[]  not null default '{chat}' constraint guardrails_kinds check (kinds <@ '{chat,embedding}' and cardinality(kinds) > 0),
  options   jsonb   not null default '{}',
  position  integer not null default 100,
  enabled   boolean not null default true,
  compiled  text,
  constraint guardrails_key unique nulls not distinct (tenant_id, name)
);
create index guardrails_applying on ai.guardrails (tenant_id, scope) where enabled;
comment on table ai.guardrails is 'Rules about inputs and outputs: what is looked for, and what is done about it. In order of position.';
comment on column ai.guardrails.tenant_id is 'Whose generations it applies to; null: every tenant''s.';
comment on column ai.guardrails.name is 'As it is shown to who is rejected.';
comment on column ai.guardrails.scope is 'input, output or both.';
comment on column ai.guardrails.detector is
  'empty, length, injection, email, phone, card, iban, ip, ssn, secret, terms, pattern, moderation.';
comment on column ai.guardrails.action is 'reject (nothing is sent, or shown), redact (a placeholder instead), flag (only noted in stages).';
comment on column ai.guardrails.restore is 'With redact on inputs: the answer gets back what stood where its placeholders are.';
comment on column ai.guardrails.kinds is 'Kinds of generations it applies to: chat, embedding.';
comment on column ai.guardrails.options is
  'length: {"max_characters"}; terms: {"terms": […]}; pattern: {"pattern", "ignore_case"}; moderation: {"model" or "profile", "instructions", "on_failure"}.';
comment on column ai.guardrails.position is 'Lower ones act first, and later ones see what they left.';
comment on column ai.guardrails.compiled is 'The regular expression of terms and patterns, made from options.';

create table ai.redactions (
  tenant_id     uuid not null,
  generation_id uuid not null,
  placeholder   text not null,
  original      text not null,
  constraint redactions_pkey primary key (tenant_id, generation_id, placeholder)
);
comment on table ai.redactions is 'What placeholders in a running generation''s input stand for; gone when it has ended. No app role reads it.';

alter table ai.guardrails enable row level security;
alter table ai.redactions enable row level security;
