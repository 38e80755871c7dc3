-- migrate:up
-- What failures of Gemini's API mean, where they mean something of their own.

insert into ai.retry_rules (dialect, signal, http_status, code, retry_after, visible, class, action, billed, why) values
  ('gemini', 'http', 400, 'API\_KEY\_INVALID', null, null, 'credentials', 'next', 'no', 'the key is not accepted'),
  ('gemini', 'http', 429, '%PerDay%', null, null, 'money_out', 'next', 'no', 'a quota of the day, which waiting a moment does not mend'),
  ('gemini', 'embedded_error', null, 'prompt\_blocked', null, null, 'permanent', 'next', 'arrived', 'the provider refuses the prompt'),
  ('gemini', 'embedded_error', null, 'MISSING\_THOUGHT\_SIGNATURE', null, false, 'permanent', 'next', 'arrived', 'the calls of tools in the conversation are another model''s'),
  ('gemini', 'embedded_error', null, 'no\_answer', null, false, 'malformed', 'retry', 'arrived', 'the model wrote what is no answer, such as a broken call of a tool'),
  ('gemini', 'embedded_error', null, 'INVALID\_ARGUMENT', null, null, 'permanent', 'next', 'arrived', 'the provider refuses the request'),
  ('gemini', 'embedded_error', null, 'RESOURCE\_EXHAUSTED', null, false, 'rate', 'retry', 'arrived', 'too many requests');
