-- The rights in schema ai: everything that anybody but the owner may do. One line an object; what has no line here must be
-- out of reach for everybody. Tests/SQL/matrix.sql compares this with the catalog, and tries it as each role.
--
--   table NAME: ROLE PRIVILEGE… ; ROLE PRIVILEGE…     privileges: select insert update delete, with columns: insert(a, b)
--   function NAME(TYPES): ROLE…                       types as format_type() writes them; no line for each default argument
--   function NAME(TYPES): ROLE… definer -- WHY        runs with its owner's rights: what keeps a caller to what is the caller's
--   (the same for: view, sequence, procedure, type, schema; and role ROLE: ROLE is the groups that a group is in)
--
-- ROLE is user, developer, admin, worker or monitor, for the group roles ai_user and so on. A developer has what a user
-- has, and an admin what a developer has, without being named. The order of lines means nothing; new ones go where they belong by
-- subject or alphabet. Lines end with the line: no comma, no semicolon. When a line is missing or wrong, the test prints the right one.
create table t.rights_lines (line text);
copy t.rights_lines from stdin;
-- the schema, its groups, its types
schema ai: user usage; worker usage; monitor usage
role developer: user
role admin: developer
type embedding: public usage

-- tables
table api_key_uses: user select
table api_keys: user select(id, tenant_id, user_id, name, prefix, permissions, created_by, created_at, expires_at, revoked_at, replaces)
table artifact_policies: user select
table artifacts: user select(tenant_id, id, user_id, name, media_type, bytes, sha256, shared, generation_id, position, created_at, expires_at)
table audit_heads: user select
table audit_log: user select
table batches: user select
table breaker_settings: user select
table breakers: user select(id, provider_id, model_id, state, failures, opened_at, probe_at, cooldown_ms, why); monitor select(id, provider_id, model_id, state, failures, opened_at, probe_at, cooldown_ms, why)
table cache_policies: user select; admin insert(tenant_id, position, kind, profile, model, exact, semantic, threshold, ttl, stale_for, scope, vector_model, enabled) update(position, kind, profile, model, exact, semantic, threshold, ttl, stale_for, scope, vector_model, enabled)
table capture_policies: user select; admin insert(tenant_id, mode, percent) update(mode, percent)
table chunk_vectors: user select
table chunks: user select
table collections: user select
table context_sources: user select
table conversations: user select
table credits: user select
table documents: user select
table forgotten: user select(tenant_id, user_id, keep_documents, asked_at, erased, finished_at)
table generations: user select insert(kind, priority, stream, prompt, messages, model, profile, params, run_after, deadline_ms, idempotency_key, metadata, collection, template, cache, cache_tags, conversation_id, batch_id, replay, tools, max_steps); admin insert(tenant_id, user_id)
table guardrails: user select; admin insert(tenant_id, name, scope, detector, action, restore, kinds, options, position, enabled) update(name, scope, detector, action, restore, kinds, options, position, enabled)
table limits: user select; admin insert(tenant_id, per, api_key_id, user_id, kind, profile, model, metric, period, amount, soft, on_limit, enabled) update(amount, soft, on_limit, enabled)
table llm_calls: user select
table members: user select
table messages: user select
table model_stats: monitor select
table models: user select; admin insert(tenant_id, provider_id, name, wire_name, kind, context_tokens, max_output_tokens, dimensions, capabilities, options, enabled) update(wire_name, context_tokens, max_output_tokens, capabilities, options, enabled)
table permissions: user select
table prices: user select; admin insert(model_id, valid_from, rates)
table profile_rules: user select; admin insert(tenant_id, position, kind, min_length, max_length, tier, metadata, profile, enabled) update(position, min_length, max_length, tier, metadata, profile, enabled)
table profiles: user select; admin insert(tenant_id, name, kind, strategy, degrade, first_token_ms, total_ms, database_ms, cache_ms) update(strategy, degrade, first_token_ms, total_ms, database_ms, cache_ms)
table prompt_cache_policies: user select; admin insert(tenant_id, position, profile, model, keep, min_input_tokens, enabled) update(position, profile, model, keep, min_input_tokens, enabled)
table prompt_templates: user select; developer insert(tenant_id, name, version, description, system, collection, match_threshold, match_count, search_mode, context_sources, history_messages, token_budget, enabled) update(enabled)
table provider_accounts: admin select(provider_id, position, secret, enabled) insert(provider_id, position, secret, enabled) update(enabled)
table provider_batches: user select(id, tenant_id, provider_id, model_id, kind, wire_name, state, action, due_at, tries, external_id, word, ending, error, created_at, closed_at, submitted_at, cancel_at, ended_at, requests, bytes, succeeded, failed, expired, cancelled, missing, repeated, strays, malformed)
table providers: user select(id, tenant_id, name, dialect, enabled, created_at); admin insert(tenant_id, name, dialect, base_url, secret, headers, options, enabled) update(base_url, secret, headers, options, enabled)
table retry_rules: user select
table roles: user select
table routes: user select; admin insert(tenant_id, profile, kind, position, model_id, enabled, weight, min_input_tokens, max_input_tokens, tier, metadata, stream) update(position, model_id, enabled, weight, min_input_tokens, max_input_tokens, tier, metadata, stream)
table tenants: user select
table tool_calls: user select(tenant_id, id, generation_id, user_id, step, position, call_id, tool_id, name, arguments, status, result, attempts, created_at, started_at, finished_at)
table tools: user select
table vectorized_rows: user select(ref, version, tenant_id, row_key, state, embedding)
table vectorizers: user select
table workers: monitor select
view api_key_list: user select

-- functions
function check_custom(jsonb): admin
function check_custom_counts(jsonb, text): admin
function check_custom_course(jsonb, text): admin
function check_members(jsonb, text[], text): admin
function check_paths(jsonb, text[], text): admin
function check_request_template(jsonb, text): admin
function is_status(text): user
function is_json_path(jsonb): admin
function list_secrets(): user definer -- names only; own tenant; secret:read
function prompt_cache_report(timestamp with time zone, timestamp with time zone): user
function remove_secret(text, uuid): user definer -- own tenant; secret:write
function destroy_data_keys(uuid): user definer -- own tenant; secret:write
function open_call(uuid, integer): user definer -- own tenant; call:open; books the opening
function opened_call(uuid): user definer -- own tenant; call:open; what the same login has opened by open_call(), still sealed
function acting_role(): user
function acts_as_owner(): user definer -- tells only of the caller's own roles
function add_artifact(bytea, text, text, boolean, interval): user definer -- own tenant; inference:execute
function add_document(text, text, text, text, jsonb): user definer -- own tenant; document:write
function add_member(text, text): user definer -- own tenant; member:write, no role with more than the caller has
function add_vectorizer(regclass, text[], text, text, text, integer, text, uuid, text): user definer -- the caller owns the table; own tenant
procedure ask(text, text, text, text, integer, text, text): user
function audit_chains(uuid): user
function audit_hash(bytea, uuid, bigint, timestamp with time zone, text, uuid, text, text, uuid, text, text, jsonb, jsonb, jsonb): user
function artifact_content(uuid, integer): user definer -- only a file that the caller may see
function audit_head(uuid): user
function audit_verify(uuid, bigint, bytea): user
function audited_tables(): user
function batch_progress(uuid): user definer -- only a batch that the caller may see
function cache_report(timestamp with time zone, timestamp with time zone): user
function cancel(uuid): user definer -- only a generation that the caller may see
function begin_tool(): user definer -- only the call whose ticket this transaction has
function cancel_batch(uuid): user definer -- only a batch that the caller may see
function cancel_provider_batch(uuid): user definer -- only one of the caller's tenant, by who sees all of it
function cancel_rebuild(text): user definer -- own tenant; document:write
function check_costs(timestamp with time zone, timestamp with time zone): user
function check_json_schema(jsonb): user definer -- reads nothing
function check_own_headers(jsonb): admin
function check_own_options(jsonb, text): admin
function check_rate_block(jsonb, text, numeric, integer): admin
function check_rates(jsonb, text, numeric, integer): admin
function check_tiers(jsonb, text, numeric, integer): admin
function chat(uuid, text, boolean, jsonb, text, text, text, text, text, integer, text, jsonb): user
function collection_status(text): user
function collection_to_search(text, vector): user
function cosine_distance(halfvec, halfvec): user
function cosine_distance(vector, vector): user
function create_api_key(text, text, text[], timestamp with time zone, uuid): user definer -- own tenant; key:write, and no more than the caller has
function create_batch(text, jsonb, boolean): user definer -- own tenant and user
function create_collection(text, text, integer, integer, integer, integer, text): user definer -- own tenant; document:write
function delete_collection(text): user definer -- own tenant; document:write
function delete_conversation(uuid): user definer -- only a conversation that the caller may see
function delete_artifact(uuid): user definer -- own files; with * those of the own tenant
function delete_document(uuid): user definer -- own tenant; document:write
function delete_profile(text, text): admin definer -- own tenant; model:write
function disable_member(text): user definer -- own tenant; member:write, no member with more than the caller has
function drop_role(text): user definer -- own tenant; member:write, no role with more than the caller has
function effective_rates(jsonb, numeric, text): user monitor
function embed(text, text, text, jsonb, text, jsonb): user
function enable_member(text): user definer -- own tenant; member:write, no member with more than the caller has
function estimate(text, jsonb, text, text, jsonb, text): user definer -- own tenant; writes nothing
function explain_route(uuid): user definer -- only a generation that the caller may see
function find_cached_response(vector, double precision, integer, text, text, text, text, text, text): user definer -- own tenant, within the scope of the cache policy
function find_vectorizer(text): user definer -- own tenant, or tables that the caller may read
function finish_tool(jsonb): user definer -- only the call whose ticket this transaction has
function forget_user(text, uuid, boolean): user definer -- own tenant; person:forget; the owner: any tenant
function fuse_chunks(uuid, bigint, bigint, integer, boolean, vector, bigint[], integer, double precision, double precision, integer, double precision, jsonb): user
function generate(text, jsonb, text, text, jsonb, boolean, text, timestamp with time zone, integer, text, jsonb, text, text, text, text, text[], uuid, boolean): user
function hybrid_search(text, vector, integer, double precision, double precision, integer, text, jsonb): user
function idempotent_generation(text): user definer -- own tenant and user
function identity(): user worker monitor definer -- tells only who asks
function is_token_class(text): user monitor
function is_unit_class(text): admin
function invalidate_cache(text, text, text, integer, interval, text, text, text, boolean): user definer -- own tenant; policy:write, prompt:write or document:write
function json_fits(jsonb, jsonb, boolean): user
function json_schema_errors(jsonb, jsonb, boolean, jsonb, integer): user definer -- reads nothing
function limits_status(): user definer -- own tenant, own user without billing:read
function login(text, boolean, interval): user definer -- only with an API key
function logout(text): user definer -- only the session of a token that the caller has
function managed_vectorizer(text): user definer -- the caller owns the table or the schema
function manages(bigint): user definer -- a yes or no
function match_documents(vector, double precision, integer, text, jsonb): user
function may(text): user worker monitor
function nearest_by_index(uuid, bigint, bigint, integer, vector, integer, jsonb): user
function nearest_chunks(uuid, bigint, bigint, integer, boolean, vector, integer, jsonb): user
function no_collection(text): user
function note_all_read(bigint, text[]): user definer -- the caller owns the table or the schema
function note_changes(): user definer -- a trigger: notes rows of the table it hangs on
function note_rows(bigint, text[], text[], uuid[]): user definer -- the caller owns the table or the schema
function only_user(): user worker monitor definer -- tells only who asks
function output_as(uuid, anyelement): user
function own_providers(): user definer -- own tenant; model:write
function parse_json(text): user definer -- reads nothing
function pause_batch(uuid): user definer -- only a batch that the caller may see
function places_query(bigint): user definer -- own tenant; only the text of a query, run with the caller's rights
function pre_request(): user definer -- only with an API key or token
function private_providers(): admin definer -- one setting
function read_rows(bigint, boolean): user
function read_stream(uuid, integer, integer): user definer -- only a generation that the caller may see
function rebuild_collection(text, text, integer): user definer -- own tenant; document:write
function recall_artifact(uuid): user definer -- only a file that the caller may see
function recall_check(text, integer, integer): user
function refresh_vectorizer(text): user
function remove_vectorizer(bigint): user definer -- the caller owns the table or the schema
function require(text[]): user
function resume_batch(uuid): user definer -- only a batch that the caller may see
function retry_document(uuid): user definer -- own tenant; document:write
function revectorize(text, text): user
function revoke_api_key(uuid): user definer -- own key, or own tenant and key:write
function rotate_api_key(uuid, interval): user definer -- own tenant; key:write, and no more than the caller has
function rows_query(bigint): user definer -- the caller owns the table; only the text of a query, run with the caller's rights
function run_tool(): user
function search_rows(text, vector, double precision, integer): user
function set_member_role(text, text): user definer -- own tenant; member:write, no role and no member with more than the caller has
function set_role(text, text[]): user definer -- own tenant; member:write, no role with more than the caller has
function start_building(bigint, text): user definer -- the caller owns the table or the schema
function start_conversation(text, text, text, text, text, jsonb): user definer -- own tenant and user
function stop_vectorizing(text): user
function subscribe(): user definer -- the caller's own channel
function subscribe(uuid): user definer -- only a generation that the caller may see
function template_error(jsonb): admin
function tenant_for(text[]): user
function provider_batch_totals(): monitor definer -- counts: no tenant, no content
function tenant_totals(timestamp with time zone, timestamp with time zone): monitor definer -- sums of each tenant: no member, no content
function tenant_id(): user worker monitor definer -- tells only who asks
function text_matches(text, text, integer, jsonb): user definer -- own tenant; document:read
function token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint): user monitor
function token_cost(jsonb, bigint, bigint, bigint, bigint, bigint, bigint, jsonb, text): user monitor
function unit_vector(vector): user
function usage_report(timestamp with time zone, timestamp with time zone, text): user
function use_session(text): user definer -- only with an API key or token
function user_id(): user worker monitor
function uuid_v7(): user
function vector_schema(): user
function vector_size(vector): user
function vectorize(regclass, text[], text, text, text, integer, text, uuid, text): user
function vectorize_progress(text): user definer -- own tables, or own tenant with inference:read
function vectorize_retry(text): user definer -- the caller owns the table or the schema; inference:execute
function visible_places(): user
function whoami(): user worker monitor definer -- tells only who asks
function worker_cancellations(uuid): worker definer -- a worker's own leases
function worker_claim(uuid, integer, text): worker definer -- the queue, as a worker
function worker_claim_one(uuid): worker definer -- the queue, as a worker; ends only what cannot be leased
function worker_artifact_done(uuid, text, uuid, uuid): worker definer -- a registered worker; jobs that it was given
function worker_artifact_jobs(uuid, integer): worker definer -- a registered worker; where objects lie, not what they hold
function worker_part(uuid, uuid, uuid, integer): worker definer -- a registered worker; it sends the files of all tenants
function worker_place_files(uuid, uuid, integer, jsonb, boolean): worker definer -- attempts that this worker has leased
function worker_put_part(uuid, uuid, uuid, integer, bytea): worker definer -- files of attempts that this worker has leased, and those that are fetched back
function worker_secret(uuid, bigint[]): worker definer -- what is sealed, to be opened by who has the master key; keys of a vault
function worker_data_keys(uuid, uuid[]): worker definer -- sealed with the master key
function worker_add_data_key(uuid, uuid, uuid, bytea, text): worker definer -- a tenant's first
function worker_heartbeat(uuid): worker definer -- a worker's own row
function worker_leases(uuid): worker definer -- a worker's own leases
function worker_maintain(uuid): worker definer -- keeps the tables in order, as a worker
function worker_publish(uuid, jsonb): worker definer -- a worker's own leases
function worker_register(text, text, integer): worker definer -- a row for a new worker
function worker_batch_report(uuid, uuid, integer, jsonb): worker definer -- a step that this worker has taken
function worker_batch_requests(uuid, uuid, integer, uuid, integer): worker definer -- a step that this worker has taken
function worker_batch_results(uuid, uuid, integer, jsonb): worker definer -- a step that this worker has taken
function worker_batch_steps(uuid, integer, jsonb): worker definer -- what a worker is to do
function worker_settle(uuid, jsonb): worker definer -- a worker's own leases
function worker_sleep(): worker definer -- a lock
function worker_stop(uuid): worker definer -- a worker's own row
function worker_tools(uuid, integer): worker definer -- calls that wait, for a registered worker
function worker_tools_done(uuid, jsonb): worker definer -- a worker's own runs
function worker_wake(): worker definer -- a lock
\.
