-- The world of the pgTAP files, made inside their transaction by `\ir setup/world.sql` and rolled back with it:
-- two tenants, a login role for each kind of person, models with prices, and functions to ask, claim and settle.
--
-- Every login role is named mtap_…; a test becomes one by `set local session authorization`, because identity hangs on
-- the role that logged in.
\set ON_ERROR_STOP on
\set QUIET on

-- However busy the machine is: what stops by the clock is tested with no time at all.
create or replace function ai.judging_time() returns interval language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ select interval '1 hour' $$;

create schema t;
grant usage on schema t to public;

create role mtap_ann login;       -- user of alpha
create role mtap_abe login;       -- another user of alpha
create role mtap_dev login;       -- developer of alpha
create role mtap_adm login;       -- admin of alpha
create role mtap_bob login;       -- user of beta
create role mtap_stray login;     -- has the grants of a user, but is bound to nobody
create role mtap_worker login;
create role mtap_monitor login;
create role mtap_public login;    -- in no group at all
create role mtap_gateway login noinherit;  -- PostgREST's authenticator
create role mtap_web nologin;     -- what the gateway becomes for a request
grant ai_user to mtap_ann, mtap_abe, mtap_bob, mtap_stray, mtap_web;
grant ai_developer to mtap_dev;
grant ai_admin to mtap_adm;
grant ai_worker to mtap_worker;
grant ai_monitor to mtap_monitor;
grant mtap_web to mtap_gateway;

insert into ai.tenants (id, name) values
  ('0a000000-0000-7000-8000-000000000001', 'mtap alpha'),
  ('0b000000-0000-7000-8000-000000000001', 'mtap beta');
create function t.alpha() returns uuid language sql immutable as $$ select uuid '0a000000-0000-7000-8000-000000000001' $$;
create function t.beta() returns uuid language sql immutable as $$ select uuid '0b000000-0000-7000-8000-000000000001' $$;

insert into ai.members (tenant_id, user_id, role) values
  (t.alpha(), 'ann', 'user'), (t.alpha(), 'abe', 'user'), (t.alpha(), 'dev', 'developer'), (t.alpha(), 'adm', 'admin'),
  (t.alpha(), 'shared', 'user'), (t.beta(), 'bob', 'user'), (t.beta(), 'shared', 'developer');
insert into ai.role_bindings (role_name, tenant_id, user_id) values
  ('mtap_ann', t.alpha(), 'ann'), ('mtap_abe', t.alpha(), 'abe'), ('mtap_dev', t.alpha(), 'dev'), ('mtap_adm', t.alpha(), 'adm'),
  ('mtap_bob', t.beta(), 'bob');
insert into ai.authenticators (role_name) values ('mtap_gateway');

-- Two priced models of one route, and one without a price.
insert into ai.providers (name, dialect, base_url, secret) values
  ('mtap-first', 'openai', 'http://first.test/v1', 'FIRST_API_KEY'), ('mtap-second', 'anthropic', 'http://second.test', 'SECOND_API_KEY');
insert into ai.models (provider_id, name, wire_name, kind)
select p.id, v.name, v.wire_name, v.kind
  from (values ('mtap-first', 'mtap/one', 'one-wire', 'chat'), ('mtap-second', 'mtap/two', 'two-wire', 'chat'),
               ('mtap-first', 'mtap/unpriced', 'unpriced', 'chat'), ('mtap-first', 'mtap/embed', 'embed', 'embedding')) v (provider, name, wire_name, kind)
  join ai.providers p on p.name = v.provider;
insert into ai.prices (model_id, rates)
select id, '{"input": 3, "cache_read": 0.3, "cache_write": 3.75, "cache_write_1h": 6, "output": 15, "reasoning": 20}'
  from ai.models where name in ('mtap/one', 'mtap/two');
insert into ai.prices (model_id, rates) select id, '{"input": 0.02}' from ai.models where name = 'mtap/embed';
insert into ai.routes (profile, kind, position, model_id)
select 'mtap-route', 'chat', v.position, m.id
  from (values (1, 'mtap/one'), (2, 'mtap/two')) v (position, name) join ai.models m on m.name = v.name;

create function t.model(p_name text) returns bigint language sql stable as $$ select id from ai.models where name = p_name and tenant_id is null $$;

-- Time moves by `set local ai.clock_offset`.
create role ai_tester;
create function t.pass(p_time interval) returns void language sql as $$
  select set_config('ai.clock_offset', (coalesce(nullif(current_setting('ai.clock_offset', true), ''), '0')::interval + p_time)::text, true)
$$;

-- Asks as the owner for a member, and gives the generation's id. run_after counts by the clock that tests move, created_at
-- does not.
create function t.ask(p_prompt text default 'Why?', p_model text default 'mtap/one', p_profile text default null, p_stream boolean default false,
                      p_tenant uuid default t.alpha(), p_user text default 'ann', p_priority text default 'normal',
                      p_deadline_ms integer default null, p_run_after timestamptz default ai.now(), p_kind text default 'chat')
returns uuid language sql as $$
  insert into ai.generations (tenant_id, user_id, prompt, model, profile, stream, priority, deadline_ms, run_after, kind)
  values (p_tenant, p_user, p_prompt, case when p_profile is null then p_model end, p_profile, p_stream, p_priority, p_deadline_ms, p_run_after, p_kind)
  returning id
$$;

create function t.worker(p_name text default 'mtap') returns uuid language sql as $$
  select worker_id from ai.worker_register(p_name, '0', 4)
$$;

-- The calls of a claim, without its header.
create function t.claim(p_worker uuid, p_limit integer default 64, p_cursor text default null)
returns table (id uuid, attempt integer, model text, request jsonb, timeout_ms integer, stream boolean) language sql as $$
  select c.generation_id, c.attempt, c.model, c.request, c.timeout_ms, c.stream
    from ai.worker_claim(p_worker, p_limit, p_cursor) c where c.generation_id is not null
$$;

-- Settles one attempt: the fence and the outcome, with whatever else the result holds.
create function t.settle(p_worker uuid, p_id uuid, p_attempt integer, p_outcome text, p_more jsonb default '{}') returns text language sql as $$
  select s.result from ai.worker_settle(p_worker,
    jsonb_build_array(jsonb_build_object('id', p_id, 'attempt', p_attempt, 'outcome', p_outcome, 'sent', true) || p_more)) s
$$;

create function t.generation(p_id uuid) returns ai.generations language sql stable as $$ select g from ai.generations g where g.id = p_id $$;
create function t.status(p_id uuid) returns text language sql stable as $$ select g.status from ai.generations g where g.id = p_id $$;
create function t.call(p_id uuid, p_attempt integer) returns ai.llm_calls language sql stable as $$
  select c from ai.llm_calls c where c.generation_id = p_id and c.attempt = p_attempt
$$;
-- Where a generation waits or runs: queue, delayed, lease, or nothing.
create function t.place(p_id uuid) returns text language sql stable as $$
  select string_agg(place, '+' order by place) from (
    select 'queue' as place from ai.queue where generation_id = p_id
    union all select 'delayed' from ai.delayed where generation_id = p_id
    union all select 'lease' from ai.leases where generation_id = p_id) p
$$;

-- Runs a statement as a login role and gives the SQLSTATE of what it raised, or ok with the count of rows.
create function t.as_role(p_role text, p_sql text) returns text language plpgsql as $$
declare
  v_rows bigint;
  v_as   text;
begin
  execute format('set local session authorization %I', p_role);
  begin
    execute p_sql;
    get diagnostics v_rows = row_count;
    v_as := 'ok ' || v_rows;
  exception when others then
    v_as := sqlstate;
  end;
  execute 'reset session authorization';
  return v_as;
end
$$;
