-- migrate:up
-- Parameters that a model cannot take. The bound of an answer's length is not among them: budgets reserve by it.

alter table ai.models add constraint models_unsupported_params
  check (not capabilities ? 'unsupported_params'
         or jsonb_typeof(capabilities -> 'unsupported_params') = 'array'
            and not jsonb_path_exists(capabilities, '$.unsupported_params[*] ? (@.type() != "string" || @ == "max_tokens" || @ == "max_completion_tokens")'));
comment on column ai.models.capabilities is
  'What it can: {"tools": true, "vision": false, "unsupported_params": ["seed"], …}; docs/parameters.md has the names. What is not named is taken for possible.';
