-- What a failure means: every rule of the retry matrix, and the decision that follows from it.
begin;
\ir setup/world.sql
select no_plan();

-- Each rule of the table is reachable: a failure that says exactly what the rule says is classified by it.
create function t.example(p_pattern text) returns text language sql immutable as $$ select replace(replace(p_pattern, '\_', '_'), '%', 'some') $$;
select is((c.class, c.action, c.billed)::text, (r.class, r.action, r.billed)::text,
          format('%s %s %s %s retry-after %s visible %s: %s', coalesce(r.dialect, 'any'), r.signal, r.http_status, r.code, r.retry_after, r.visible, r.class))
  from ai.retry_rules r
 cross join lateral ai.classify_failure(coalesce(r.dialect, 'openai'), r.signal, r.http_status, null, t.example(r.code), coalesce(r.retry_after, true),
                                        coalesce(r.visible, false)) c
 order by r.id;
-- The same with the code in the type, where providers also put it.
select is(c.class, r.class, format('the code as type: %s %s', r.signal, r.code))
  from ai.retry_rules r
 cross join lateral ai.classify_failure(coalesce(r.dialect, 'openai'), r.signal, r.http_status, t.example(r.code), 'other', coalesce(r.retry_after, true),
                                        coalesce(r.visible, false)) c
 where r.code is not null order by r.id;
select is_empty($$ select r.signal from unnest(array['connect', 'http', 'embedded_error', 'truncated', 'malformed', 'empty', 'timeout', 'reset', 'too_large', 'unsendable', 'abandoned', 'slow']) r (signal)
                    cross join (values (true), (false)) v (visible)
                    where (ai.classify_failure('openai', r.signal, null, null, null, false, v.visible)).action is null $$,
                'no signal is without a rule, whether text was visible or not');

-- The matrix by cases: dialect, status, type, code, Retry-After, what follows
select is((ai.classify_failure(dialect, 'http', status, type, code, retry_after, false)).class, class,
          format('%s %s %s %s %s: %s', dialect, status, type, code, case when retry_after then 'with retry-after' end, class))
  from (values
    ('openai', 400, 'invalid_request_error', 'context_length_exceeded', false, 'context'), ('openai', 400, 'exceed_context_size_error', null, false, 'context'), ('openai', 400, 'invalid_request_error', null, false, 'permanent'), ('openai', 401, 'invalid_request_error', 'invalid_api_key', false, 'credentials'),
    ('openai', 403, null, null, false, 'credentials'), ('openai', 404, null, 'model_not_found', false, 'permanent'), ('openai', 402, null, null, false, 'money_out'),
    ('openai', 408, null, null, false, 'transient'), ('openai', 409, null, null, false, 'transient'), ('openai', 413, null, null, false, 'context'),
    ('openai', 422, null, null, false, 'permanent'), ('openai', 429, 'requests', 'rate_limit_exceeded', true, 'rate'), ('openai', 429, 'tokens', 'rate_limit_exceeded', false, 'rate'),
    ('openai', 429, 'insufficient_quota', 'insufficient_quota', false, 'money_out'), ('openai', 429, 'insufficient_quota', 'insufficient_quota', true, 'money_out'),
    ('openai', 429, null, 'credit_balance_exhausted', false, 'money_out'), ('openai', 429, 'rate_limit_error', 'slow_down', false, 'ramp'),
    ('openai', 500, 'server_error', null, false, 'transient'), ('openai', 502, null, null, false, 'transient'), ('openai', 503, null, 'server_is_overloaded', true, 'transient'),
    ('openai', 504, null, null, false, 'transient'), ('openai', 529, null, null, false, 'transient'), ('openai', 498, null, null, false, 'rate'),
    ('openai', 418, null, null, false, 'permanent'), ('openai', 451, null, null, false, 'permanent'), ('openai', 520, null, null, false, 'transient'),
    ('openai', 599, null, null, true, 'transient'), ('openai', 302, null, null, false, 'permanent'), ('openai', 204, null, null, false, 'permanent'),
    ('openai', 999, null, null, false, 'permanent'), ('openai', null, null, null, false, 'permanent'),
    ('anthropic', 429, 'rate_limit_error', null, true, 'rate'), ('anthropic', 429, 'rate_limit_error', null, false, 'money_out'),
    ('anthropic', 429, 'org_spend_limit_reached', null, true, 'money_out'), ('anthropic', 429, 'rate_limit_error', 'ramp_limit_exceeded', false, 'ramp'),
    ('anthropic', 429, 'rate_limit_error', 'ramp_limit_exceeded', true, 'ramp'), ('anthropic', 529, 'overloaded_error', null, false, 'transient'),
    ('anthropic', 500, 'api_error', null, false, 'transient'), ('anthropic', 401, 'authentication_error', null, false, 'credentials'),
    ('gemini', 429, 'RESOURCE_EXHAUSTED', '429', true, 'rate'), ('gemini', 429, 'RESOURCE_EXHAUSTED', 'GenerateRequestsPerDayPerProjectPerModel-FreeTier', true, 'money_out'),
    ('gemini', 429, 'RESOURCE_EXHAUSTED', 'GenerateRequestsPerMinutePerProjectPerModel', true, 'rate'), ('gemini', 400, 'INVALID_ARGUMENT', 'API_KEY_INVALID', false, 'credentials'),
    ('gemini', 400, 'INVALID_ARGUMENT', '400', false, 'permanent'), ('gemini', 400, 'INVALID_ARGUMENT', 'context_length_exceeded', false, 'context'),
    ('gemini', 403, 'PERMISSION_DENIED', '403', false, 'credentials'), ('gemini', 503, 'UNAVAILABLE', '503', false, 'transient'), ('gemini', 504, 'DEADLINE_EXCEEDED', '504', false, 'transient'),
    ('tgi', 424, 'generation', null, false, 'transient'), ('tei', 424, 'backend', null, false, 'transient'), ('huggingface', 424, null, null, false, 'transient'),
    ('openai', 424, null, null, false, 'permanent'), ('huggingface', 503, null, null, true, 'transient'), ('huggingface', 402, null, null, false, 'money_out'),
    ('ollama', 404, null, null, false, 'permanent'), ('ollama', 503, null, null, false, 'transient'), ('tei', 413, 'validation', null, false, 'context'),
    ('something-new', 429, null, null, false, 'rate')) v (dialect, status, type, code, retry_after, class);
-- Errors of servers of open models inside of a stream.
select is((ai.classify_failure('tgi', 'embedded_error', 200, type, null, false, visible)).class, class, format('an error of type %s, text visible %s', type, visible))
  from (values ('validation', false, 'permanent'), ('validation', true, 'permanent'), ('overloaded', false, 'rate'), ('overloaded', true, 'partial'),
               ('generation', false, 'transient'), ('generation', true, 'partial')) v (type, visible, class);
select is((ai.classify_failure('openai', 'sunspots', 500, null, null, false, false)).class, null, 'a signal that is none has no rule');
-- A provider's text is what is looked at, never a pattern.
select is((ai.classify_failure('openai', 'http', 429, '%', '%', false, false)).class, 'rate', 'a percent sign in a code matches nothing');
-- A rule for one dialect leaves the others as they were.
insert into ai.retry_rules (dialect, signal, http_status, class, action, billed, why) values ('anthropic', 'http', 420, 'calm', 'retry', 'no', 'test');
select is((ai.classify_failure('anthropic', 'http', 420, null, null, false, false)).class, 'calm', 'a rule of one dialect counts there');
select is((ai.classify_failure('openai', 'http', 420, null, null, false, false)).class, 'permanent', 'and the others fall back to the x00 of their class');

-- Backoff: equal jitter, doubled by attempt, capped; many draws each
select ok(low between half and half * 1.1 + 1 and high between whole * 0.9 - 1 and whole, format('attempt %s waits from %s to %s ms (%s…%s)', a, half, whole, low, high))
  from (select a, least(30000, 500 * 2 ^ (a - 1)) / 2 as half, least(30000, 500 * 2 ^ (a - 1)) as whole, min(ai.backoff_ms(a, 500, 30000)) as low, max(ai.backoff_ms(a, 500, 30000)) as high
          from unnest(array[1, 2, 3, 6, 7, 8, 31, 32, 100]) a cross join generate_series(1, 400) group by a) d order by a;
select ok((ai.backoff_ms(100, 600000, 3600000)) between 1800000 and 3600000, 'the largest settings do not overflow');
select ok((ai.backoff_ms(32767, 1, 1)) between 0 and 1, 'nor the smallest, at any attempt');

-- The decision. A world of one: attempt 1 of 5, target 1 of 2, no deadline near. The route is given, or (null) as before
-- routes were kept.
select t.ask(p_profile => 'mtap-route') as routed, t.ask() as named \gset
create function t.decide(p_outcome text, p_action text, p_should_retry boolean default null, p_after bigint default null, p_attempt integer default 1, p_target integer default 1,
                         p_id uuid default null, p_cancelled boolean default false, p_left interval default '1 hour', p_unsent boolean default false,
                         p_route bigint[] default null, p_replay boolean default false, p_class text default null, p_code text default null)
returns text language sql as $$
  select coalesce(d.status, 'target ' || d.next_target || case when d.delay_ms = 0 then ' at once' when d.delay_ms between 250 and 500 then ' after the backoff'
                                                               else ' after ' || d.delay_ms end)
    from ai.after_attempt(p_outcome, p_unsent, p_action, p_should_retry, p_after, p_attempt, p_target, t.alpha(), p_id, p_cancelled, now() + p_left, now(), 5, 500, 30000, 120000,
                          p_route, p_replay, p_class, p_code) d
$$;
select is(t.decide('succeeded', null, p_id => :'routed'), 'succeeded', 'a success is the end');
select is(t.decide('succeeded', null, p_id => :'routed', p_cancelled => true), 'succeeded', 'even where it was to be cancelled: the answer was there first');
select is(t.decide('cancelled', null, p_id => :'routed'), 'cancelled', 'a cancelled one is the end');
select is(t.decide('failed', 'retry', p_id => :'routed', p_cancelled => true), 'cancelled', 'what fails while it is to be cancelled is cancelled');
select is(t.decide('released', null, p_id => :'routed', p_cancelled => true), 'cancelled', 'what is handed back while it is to be cancelled, too');
select is(t.decide('failed', 'retry', p_id => :'routed'), 'target 1 after the backoff', 'retry: the same target, later');
select is(t.decide('failed', 'next', p_id => :'routed'), 'target 2 at once', 'next: the next target, at once');
select is(t.decide('failed', 'next', p_id => :'routed', p_target => 2), 'failed', 'next, and there is none: failed');
select is(t.decide('failed', 'next', p_id => :'named'), 'failed', 'a named model has no next');
select is(t.decide('failed', 'fail', p_id => :'routed'), 'failed', 'fail: failed');
select is(t.decide('failed', null, p_id => :'routed'), 'failed', 'without a rule: failed');
select is(t.decide('failed', 'retry', p_after => 700, p_id => :'routed'), 'target 1 after 700', 'Retry-After is honoured');
select is(t.decide('failed', 'retry', p_after => 120000, p_id => :'routed'), 'target 1 after 120000', 'up to its cap, and beyond that of the backoff');
select is(t.decide('failed', 'retry', p_after => 120001, p_id => :'routed'), 'target 2 at once', 'over the cap: the next target');
select is(t.decide('failed', 'retry', p_after => 120001, p_id => :'named'), 'failed', 'over the cap and no next target: failed');
select is(t.decide('failed', 'retry', p_after => 9223372036854775807, p_id => :'routed'), 'target 2 at once', 'as long as a number can say');
select is(t.decide('failed', 'retry', p_after => 0, p_id => :'routed'), 'target 1 after the backoff', 'a Retry-After of nothing would burn all attempts at once: the backoff');
select is(t.decide('failed', 'retry', p_after => -5, p_id => :'routed'), 'target 1 after the backoff', 'so would one in the past');
select is(t.decide('failed', 'next', p_after => 700, p_id => :'routed'), 'target 2 at once', 'the next target does not wait for the first one''s Retry-After');
select is(t.decide('failed', 'retry', false, p_id => :'routed'), 'target 2 at once', 'x-should-retry: false turns retry into next');
select is(t.decide('failed', 'next', true, p_id => :'routed'), 'target 1 after the backoff', 'x-should-retry: true turns next into retry');
select is(t.decide('failed', 'fail', true, p_id => :'routed'), 'failed', 'but never fail into retry');
select is(t.decide('failed', 'fail', false, p_id => :'routed'), 'failed', 'nor into next');
select is(t.decide('failed', 'retry', p_attempt => 4, p_id => :'routed') <> 'failed', true, 'the fourth of five attempts may be retried');
select is(t.decide('failed', 'retry', p_attempt => 5, p_id => :'routed'), 'failed', 'the fifth is the last');
select is(t.decide('failed', 'next', p_attempt => 5, p_id => :'routed'), 'failed', 'over all targets');
select is(t.decide('failed', 'retry', p_after => 5000, p_left => '5 s', p_id => :'routed'), 'target 2 at once', 'a wait to the deadline is not waited: the next target');
select is(t.decide('failed', 'retry', p_after => 5000, p_left => '5 s', p_id => :'named'), 'failed', 'or failed where there is none');
select is(t.decide('failed', 'retry', p_after => 4999, p_left => '5 s', p_id => :'routed'), 'target 1 after 4999', 'one before it is');
select is(t.decide('failed', 'next', p_left => '0 s', p_id => :'routed'), 'failed', 'after the deadline nothing is tried');
select is(t.decide('released', null, p_id => :'routed', p_unsent => true), 'target 1 at once', 'what was handed back unsent goes back at once');
select is(t.decide('released', null, p_id => :'routed', p_attempt => 5, p_unsent => true), 'target 1 at once', 'and was no attempt');
select is(t.decide('released', 'fail', p_id => :'routed'), 'target 1 at once', 'what was handed back half sent begins again, as after a crash');
select is(t.decide('released', 'fail', p_id => :'routed', p_attempt => 5), 'failed', 'if it has an attempt left');

select * from finish();
rollback;
