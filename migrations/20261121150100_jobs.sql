-- migrate:up
-- What errors of answers mean that are jobs at the provider. Text that was shown decides before any code does.

insert into ai.retry_rules (dialect, signal, code, visible, class, action, billed, why) values
  ('openai_responses', 'embedded_error', 'rate\_limit\_exceeded', false, 'rate',        'retry', 'no',      'too many requests'),
  ('openai_responses', 'embedded_error', 'server\_%',             false, 'transient',   'retry', 'arrived', 'the provider failed, perhaps after the work was done'),
  ('openai_responses', 'embedded_error', '%image%',               false, 'permanent',   'next',  'no',      'the provider refuses an image'),
  ('openai_responses', 'embedded_error', '%policy%',              false, 'permanent',   'next',  'arrived', 'the provider refuses to answer'),
  ('openai_responses', 'embedded_error', 'cancelled',             false, 'transient',   'next',  'arrived', 'somebody cancelled it at the provider'),
  ('openai_responses', 'embedded_error', null,                    true,  'partial',     'fail',  'arrived', 'text was visible: a second answer would contradict it'),
  ('replicate',        'embedded_error', 'failed',                false, 'permanent',   'next',  'arrived', 'the model failed on this input, and its time is billed'),
  ('replicate',        'embedded_error', 'canceled',              false, 'transient',   'next',  'arrived', 'it ran out of time, or somebody cancelled it at the provider'),
  ('replicate',        'embedded_error', 'aborted',               false, 'transient',   'retry', 'no',      'it was not begun in time'),
  ('replicate',        'embedded_error', null,                    true,  'partial',     'fail',  'arrived', 'text was visible: a second answer would contradict it');
