-- migrate:up
-- Forgetting: who wrote what is still searched is known, and a mark is of one person.

alter table ai.documents add column live_user_id text;
comment on column ai.documents.live_user_id is 'Who added the revision that is searched, where another one is to replace it; null: user_id.';

-- A document may be two people's.
alter table ai.forgotten_left
  drop constraint forgotten_left_pkey,
  add constraint forgotten_left_pkey primary key (tenant_id, what, id, user_id);

-- From here on a name is free again only once all is erased. Where it was given away before, the mark says which rows are the new person's; it has to end first.
do $$
begin
  if exists (select from ai.forgotten f where f.anew_id is not null and f.finished_at is null) then
    raise exception 'somebody who is still being forgotten was added again'
      using hint = 'Let the workers finish first: select user_id, finished_at from ai.forgotten;';
  end if;
end
$$;
alter table ai.forgotten drop column anew_id, drop column anew_at;
