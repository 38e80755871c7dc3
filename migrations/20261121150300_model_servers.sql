-- migrate:up
-- What failures of servers of open models mean, where they say it in words of their own.

insert into ai.retry_rules (dialect, signal, http_status, code, retry_after, visible, class, action, billed, why) values
  ('tgi',         'http',           424, null,          null, null,  'transient', 'retry', 'input', 'the model failed while it generated'),
  ('tei',         'http',           424, null,          null, null,  'transient', 'retry', 'input', 'the model failed'),
  ('huggingface', 'http',           424, null,          null, null,  'transient', 'retry', 'input', 'the model failed behind the router'),
  ('tgi',         'embedded_error', null, 'validation', null, null,  'permanent', 'next',  'no',    'the server refuses the request'),
  ('huggingface', 'embedded_error', null, 'validation', null, null,  'permanent', 'next',  'no',    'the server refuses the request'),
  ('tgi',         'embedded_error', null, 'overloaded', null, false, 'rate',      'retry', 'no',    'the server has too many requests'),
  ('huggingface', 'embedded_error', null, 'overloaded', null, false, 'rate',      'retry', 'no',    'the server has too many requests');

comment on column ai.providers.dialect is
  'Wire protocol, such as openai (any compatible host), anthropic, gemini, ollama or huggingface; local is answered by the worker itself.';
