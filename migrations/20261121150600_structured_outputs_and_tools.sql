-- migrate:up
-- Generations of several calls: an answer that does not fit its schema is asked for again, and the results of tools go back to the model.

alter table ai.generations
  add column steps   smallint not null default 0,
  add column repairs smallint not null default 0;
comment on column ai.generations.steps is 'How many times results of tools went back to the model.';
comment on column ai.generations.repairs is 'How many times an answer was asked for again because it did not fit params.response_format.';

alter table ai.leases add column step smallint;
comment on column ai.leases.step is 'How many times it has gone on after an answer; null: it ends with its answer.';

alter table ai.settings
  add column max_repairs smallint not null default 2 constraint settings_max_repairs check (max_repairs between 0 and 10),
  add column max_steps   smallint not null default 8 constraint settings_max_steps check (max_steps between 1 and 100);
comment on column ai.settings.max_repairs is 'How often an answer that does not fit its schema is asked for again.';
comment on column ai.settings.max_steps is 'How often results of tools go back to the model, where the generation names no other bound.';
