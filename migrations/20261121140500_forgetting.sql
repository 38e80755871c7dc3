-- migrate:up
-- People whose content is erased: ai.forget_user() marks them, and goes with ai.worker_maintain() through the tenant's tables.

create table ai.forgotten (
  tenant_id      uuid        not null constraint forgotten_tenant_fkey references ai.tenants (id),
  user_id        text        not null,
  pseudonym      text,
  keep_documents boolean     not null,
  asked_at       timestamptz not null,
  anew_id        uuid,
  anew_at        timestamptz,
  open           text[],
  stage          smallint    not null default 0,
  place          text        collate "C" not null default '',
  goal_stage     smallint,
  goal_place     text        collate "C",
  around         boolean     not null default false,
  worked_at      timestamptz not null,
  erased         jsonb       not null default '{}',
  finished_at    timestamptz,
  constraint forgotten_pkey primary key (tenant_id, user_id),
  constraint forgotten_anew check ((anew_id is null) = (anew_at is null)),
  constraint forgotten_goal check ((goal_stage is null) = (goal_place is null)),
  constraint forgotten_finished check ((finished_at is null) = (pseudonym is not null))
) with (fillfactor = 50);
create index forgotten_unfinished on ai.forgotten (tenant_id) where finished_at is null;
create index forgotten_finished on ai.forgotten (finished_at) where finished_at is not null;
comment on table ai.forgotten is 'Who was forgotten, or is being forgotten: ai.forget_user(). Thirty days after the end the row goes, too.';
comment on column ai.forgotten.pseudonym is 'What stands for the person in the books. Null once all is erased, so that nothing says any more who it was.';
comment on column ai.forgotten.keep_documents is 'Whether what the person added to collections stays, as the tenant''s.';
comment on column ai.forgotten.anew_id is 'Where the user was added as a member again before the end: ids from here on are of another person.';
comment on column ai.forgotten.open is 'Transactions that were open when the mark was seen first; as long as one of them is, it may bring something that nobody can see yet.';
comment on column ai.forgotten.stage is 'Which table is being gone through; the last: all of them were.';
comment on column ai.forgotten.place is 'How far, by the table''s key.';
comment on column ai.forgotten.goal_stage is 'Where it was when the last of the open transactions had ended: it goes through all tables once more, up to here.';
comment on column ai.forgotten.around is 'Whether it has begun with the first table again.';
comment on column ai.forgotten.erased is 'How many of what were erased.';

create table ai.forgotten_left (
  tenant_id uuid not null,
  what      text not null constraint forgotten_left_what check (what in ('generation', 'document', 'batch', 'cached answer')),
  id        text not null,
  user_id   text not null,
  constraint forgotten_left_pkey primary key (tenant_id, what, id)
);
create index forgotten_left_user on ai.forgotten_left (tenant_id, user_id);
comment on table ai.forgotten_left is 'What could not be erased when it was come by, because it runs or somebody holds it: it is come back to until it is.';

alter table ai.forgotten      enable row level security;
alter table ai.forgotten_left enable row level security;
