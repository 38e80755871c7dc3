-- migrate:up
-- Nothing that claims and settlements write refers by a foreign key to what a tenant's admin may update: who may update a row may also
-- lock it, and a key waits for that lock in the one statement that serves all tenants. ai.forget_state() does what the keys did on delete.
alter table ai.counters           drop constraint counters_limit_fkey;
alter table ai.model_stats        drop constraint model_stats_model_fkey;
alter table ai.breakers           drop constraint breakers_provider_fkey, drop constraint breakers_model_fkey;
alter table ai.exhausted_accounts drop constraint exhausted_accounts_provider_fkey;
