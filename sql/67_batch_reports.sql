-- What a worker reports of a step of a provider batch, and what follows: the state machine that sql/67_batch_steps.sql draws. The
-- functions that decide take the row as JSON and give what changes of it.

-- Which of the batches that a provider lists is this one: that with our name; where the provider keeps no names, one that is not known,
-- is as large and not older. p_found: [{"id", "name", "requests", "created": seconds}, …]. Null: none.
create or replace function ai.recognise_batch(p_batch jsonb, p_found jsonb) returns jsonb
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object('id', f.id, 'guessed', f.name is null)
    from jsonb_to_recordset(p_found) f (id text, name text, requests bigint, created numeric)
   where f.id is not null and not p_batch -> 'refused_ids' ? f.id
     and not exists (select from ai.provider_batches o
                      where o.provider_id = (p_batch ->> 'provider_id')::bigint and o.external_id = f.id and o.id <> (p_batch ->> 'id')::uuid)
     and (f.name = p_batch ->> 'id'
          -- Clocks differ.
          or f.name is null and f.requests = (p_batch ->> 'requests')::bigint
             and f.created >= extract(epoch from (p_batch ->> 'closed_at')::timestamptz) - 300)
   order by f.name is null, f.created, f.id
   limit 1
$$;
comment on function ai.recognise_batch(jsonb, jsonb) is 'Which of a provider''s batches is ours: {"id", "guessed"}; null: none.';

-- Takes the report of a step and decides what is next. p_report:
--   "outcome"    done or failed
--   of done:     "file_id" (upload, find_file); "external_id" (create); "found": [...], "complete" (find); of poll "status": running or
--                ended, "ending": completed, failed, expired or cancelled, "word", "output_id", "errors_id", "has_results", "error_code";
--                "dropped": {id: [parameter, …]} of what was sent
--   of failed:   "signal", "http_status", "error_type", "error_code", "retry_after_ms", as in ai.worker_settle()
-- Gives `taken`, or `stale`. Raises PT400 unless p_report is an object.
create or replace function ai.worker_batch_report(p_worker uuid, p_batch uuid, p_step integer, p_report jsonb) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $$
declare
  v_now      timestamptz := ai.now();
  v_settings ai.settings;
  v_batch    ai.provider_batches;
  v_row      jsonb;
begin
  if jsonb_typeof(p_report) is distinct from 'object' then
    raise exception 'ai.worker_batch_report() takes a JSON object' using errcode = 'PT400';
  end if;
  select * into v_batch from ai.provider_batches b where b.id = p_batch and b.worker_id = p_worker and b.step = p_step for update;
  if not found then
    return 'stale';
  end if;
  select * into v_settings from ai.settings;
  v_row := to_jsonb(v_batch);
  v_batch := jsonb_populate_record(v_batch, case
    when p_report ->> 'outcome' is distinct from 'done' then ai.failed_batch_step(v_row, p_report, v_settings.backoff_base_ms, v_now)
    else jsonb_build_object('tries', 0, 'error', null, 'due_at', v_now)
      || case v_batch.action
           when 'create' then ai.found_batch(v_row, p_report ->> 'external_id', false, v_settings.provider_batch_poll_ms, v_now)
           when 'find' then ai.searched_batch(v_row, p_report, v_settings.provider_batch_poll_ms, v_settings.provider_batch_settle_ms, v_now)
           when 'poll' then ai.polled_batch(v_row, p_report, v_settings.provider_batch_poll_ms, v_now)
           when 'cancel' then '{"cancel_sent": true, "action": "poll"}'
           when 'collect' then ai.collected_batch(v_row, v_now)
           else jsonb_build_object('file_id', p_report -> 'file_id', 'action', case when p_report ->> 'file_id' is null then 'upload' else 'create' end) end
    end);
  update ai.provider_batches b
     set state = v_batch.state, action = v_batch.action, due_at = v_batch.due_at, worker_id = null, tries = v_batch.tries, gone = v_batch.gone, file_id = v_batch.file_id,
         external_id = v_batch.external_id, guessed = v_batch.guessed, refused_ids = v_batch.refused_ids, output_id = v_batch.output_id, errors_id = v_batch.errors_id,
         word = v_batch.word, ending = v_batch.ending, rest = v_batch.rest, error = v_batch.error, submitted_at = v_batch.submitted_at, cancel_sent = v_batch.cancel_sent,
         give_up_at = v_batch.give_up_at, strays = v_batch.strays, malformed = v_batch.malformed,
         dropped = case when jsonb_typeof(p_report -> 'dropped') = 'object' then p_report -> 'dropped' else b.dropped end
   where b.id = p_batch;
  if v_batch.state = 'running' and not v_batch.guessed then
    -- The provider has them.
    delete from ai.batched_requests r where r.batch_id = p_batch;
  end if;
  return 'taken';
end
$$;
comment on function ai.worker_batch_report(uuid, uuid, integer, jsonb) is 'Takes the report of a step of a provider batch; gives taken or stale.';

-- The batch as it is when its end begins: what is left of its members goes back as p_rest says.
create or replace function ai.ending_batch(p_ending text, p_rest text, p_now timestamptz) returns jsonb
language sql immutable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$ select jsonb_build_object('state', 'ending', 'action', null, 'ending', p_ending, 'rest', p_rest, 'due_at', p_now) $$;
comment on function ai.ending_batch(text, text, timestamptz) is 'What changes of a provider batch when its end begins.';

-- The batch exists at the provider. Where it is to be cancelled, that is next; but only what certainly is ours is cancelled.
create or replace function ai.found_batch(p_batch jsonb, p_external_id text, p_guessed boolean, p_poll_ms integer, p_now timestamptz) returns jsonb
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_external_id is null then '{"action": "find"}'  -- created, but not told as what
              else jsonb_build_object(
                     'state', 'running', 'external_id', p_external_id, 'guessed', p_guessed, 'gone', 0, 'submitted_at', coalesce((p_batch ->> 'submitted_at')::timestamptz, p_now),
                     'give_up_at', least((p_batch ->> 'give_up_at')::timestamptz, p_now + interval '30 hours'), 'action', case when c.now then 'cancel' else 'poll' end,
                     'due_at', case when c.now then p_now else p_now + p_poll_ms * interval '1 ms' end) end
    from (select p_batch ->> 'cancel_at' is not null and not p_guessed as now) c
$$;
comment on function ai.found_batch(jsonb, text, boolean, integer, timestamptz) is 'What follows once a provider batch is known to exist.';

-- The provider's list was gone through. One that is not in it, long enough after its creation began, was not created.
create or replace function ai.searched_batch(p_batch jsonb, p_report jsonb, p_poll_ms integer, p_settle_ms integer, p_now timestamptz) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ours    jsonb := ai.recognise_batch(p_batch, coalesce(p_report -> 'found', '[]'));
  v_certain timestamptz := (p_batch ->> 'intent_at')::timestamptz + p_settle_ms * interval '1 ms';
begin
  if v_ours is not null then
    return ai.found_batch(p_batch, v_ours ->> 'id', (v_ours ->> 'guessed')::boolean, p_poll_ms, p_now);
  elsif (p_report -> 'complete' = 'true') is not true then
    return jsonb_build_object('due_at', p_now + p_poll_ms * interval '1 ms');
  elsif p_now < v_certain then
    return jsonb_build_object('due_at', least(p_now + greatest(p_settle_ms / 6, 10) * interval '1 ms', v_certain));
  elsif p_batch ->> 'cancel_at' is not null then
    return ai.ending_batch('cancelled', 'release', p_now);
  end if;
  return '{"action": "create"}';
end
$$;
comment on function ai.searched_batch(jsonb, jsonb, integer, integer, timestamptz) is 'What follows a search for a provider batch.';

-- What the provider says of a batch. One that was refused as a whole for want of room is made again later, where its file is
-- still there; else its members go back as never done.
create or replace function ai.polled_batch(p_batch jsonb, p_report jsonb, p_poll_ms integer, p_now timestamptz) returns jsonb
language plpgsql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
declare
  c_tries constant integer := 3;
  v_code  text := left(p_report ->> 'error_code', 200);
  v_said  jsonb := jsonb_build_object('word', left(p_report ->> 'word', 100), 'gone', 0);
  v_how   text := coalesce(p_report ->> 'ending', 'completed');
begin
  if p_report ->> 'status' is distinct from 'ended' then
    if p_batch ->> 'cancel_at' is not null and p_batch -> 'cancel_sent' = 'false' and p_batch -> 'guessed' = 'false' then
      return v_said || '{"action": "cancel"}';
    end if;
    return v_said || jsonb_build_object('due_at', p_now + ai.batch_poll_ms(p_now - (p_batch ->> 'submitted_at')::timestamptz, p_poll_ms) * interval '1 ms');
  end if;
  if v_code is not null then
    v_said := v_said || jsonb_build_object('error', jsonb_build_object('class', 'batch', 'code', v_code));
  end if;
  if v_how <> 'failed' or p_report -> 'has_results' = 'true' then
    return v_said || jsonb_build_object('ending', v_how, 'output_id', p_report -> 'output_id', 'errors_id', p_report -> 'errors_id', 'action', 'collect');
  end if;
  if v_code ~ '(limit|quota|rate|overload|capacity)' and p_batch ->> 'cancel_at' is null and p_batch ->> 'file_id' is not null
     and jsonb_array_length(p_batch -> 'refused_ids') < c_tries then
    return v_said || jsonb_build_object('refused_ids', p_batch -> 'refused_ids' || (p_batch -> 'external_id'), 'external_id', null, 'state', 'sending', 'action', 'create',
                                        'due_at', p_now + 10 * p_poll_ms * interval '1 ms');
  end if;
  return v_said || ai.ending_batch('failed', 'release', p_now);
end
$$;
comment on function ai.polled_batch(jsonb, jsonb, integer, timestamptz) is 'What follows from the provider''s word on a batch.';

-- All results were read. One that was taken for ours by its size, and brought nothing of ours, is somebody else's.
create or replace function ai.collected_batch(p_batch jsonb, p_now timestamptz) returns jsonb
language sql stable parallel safe security invoker
set search_path = pg_catalog, pg_temp
as $$
  select case when p_batch -> 'guessed' = 'true' and (p_batch ->> 'strays')::integer + (p_batch ->> 'malformed')::integer > 0
              then jsonb_build_object('refused_ids', p_batch -> 'refused_ids' || (p_batch -> 'external_id'), 'external_id', null, 'guessed', false, 'strays', 0, 'malformed', 0,
                                      'ending', null, 'state', 'sending', 'action', 'find')
              else ai.ending_batch(p_batch ->> 'ending', case p_batch ->> 'ending' when 'expired' then 'expired' when 'cancelled' then 'release' else 'lost' end, p_now) end
$$;
comment on function ai.collected_batch(jsonb, timestamptz) is 'What follows once the results of a provider batch were read.';

-- A step has failed. What is certain not to have had an effect is done again later; what may have had one is looked for first.
-- A batch that is not at the provider is dissolved when the provider refuses it for good, or ten times. A provider that does not
-- know a batch any more says so three times before it is believed.
create or replace function ai.failed_batch_step(p_batch jsonb, p_report jsonb, p_base_ms integer, p_now timestamptz) returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  c_patience constant integer := 10;
  c_gone     constant integer := 3;
  c_cap_ms   constant integer := 300000;
  v_action   text := p_batch ->> 'action';
  v_tries    integer := (p_batch ->> 'tries')::integer + 1;
  v_signal   text := coalesce(p_report ->> 'signal', 'reset');
  v_status   bigint := ai.token_count(p_report -> 'http_status');
  v_refused  boolean := coalesce(v_signal = 'http' and v_status between 400 and 499 and v_status not in (408, 409, 499), false);
  v_next     jsonb;
  v_rule     record;
begin
  select c.class, c.action into v_rule
    from ai.classify_failure((select v.dialect from ai.providers v where v.id = (p_batch ->> 'provider_id')::bigint), v_signal, v_status::integer, p_report ->> 'error_type',
                             p_report ->> 'error_code', p_report ->> 'retry_after_ms' is not null, false) c;
  v_next := jsonb_build_object(
    'tries', v_tries, 'due_at', p_now + interval '1 ms' * greatest(
      ai.backoff_ms(v_tries, p_base_ms, c_cap_ms), case when p_report ->> 'retry_after_ms' is not null then least(ai.token_count(p_report -> 'retry_after_ms'), 3600000) end),
    'error', jsonb_strip_nulls(jsonb_build_object('class', v_rule.class, 'signal', v_signal, 'http_status', v_status, 'type', left(p_report ->> 'error_type', 200),
                                                  'code', left(p_report ->> 'error_code', 200), 'action', v_action)));
  if v_action in ('upload', 'create') then
    if not (v_refused or v_signal in ('connect', 'unsendable')) then
      return v_next || jsonb_build_object('action', case v_action when 'upload' then 'find_file' else 'find' end);
    elsif v_signal = 'unsendable' or v_rule.action is distinct from 'retry' or v_tries >= c_patience then
      -- Each member meets the same for itself, or goes on at another target.
      return v_next || ai.ending_batch('refused', 'release', p_now);
    end if;
  elsif v_action = 'find_file' and v_tries >= c_patience then
    return v_next || '{"action": "upload", "tries": 0}';
  elsif v_action = 'cancel' and v_refused and v_status <> 429 then
    return v_next || '{"action": "poll", "cancel_sent": true}';  -- it has ended, or is being cancelled already
  elsif v_action in ('poll', 'collect') and v_refused and v_status in (404, 410) then
    v_next := v_next || jsonb_build_object('gone', (p_batch ->> 'gone')::integer + 1);
    if (v_next ->> 'gone')::integer >= c_gone then
      return v_next || ai.ending_batch('lost', 'lost', p_now);
    end if;
  end if;
  return v_next;
end
$$;
comment on function ai.failed_batch_step(jsonb, jsonb, integer, timestamptz) is 'What follows a failed step of a provider batch.';

revoke execute on function ai.recognise_batch(jsonb, jsonb), ai.worker_batch_report(uuid, uuid, integer, jsonb), ai.ending_batch(text, text, timestamptz),
  ai.found_batch(jsonb, text, boolean, integer, timestamptz), ai.searched_batch(jsonb, jsonb, integer, integer, timestamptz),
  ai.polled_batch(jsonb, jsonb, integer, timestamptz), ai.collected_batch(jsonb, timestamptz), ai.failed_batch_step(jsonb, jsonb, integer, timestamptz) from public;
grant execute on function ai.worker_batch_report(uuid, uuid, integer, jsonb) to ai_worker;
