-- migrate:up
-- By EXPLAIN (ANALYZE) an index tells how many rows of other tenants row-level security took away. So what leads with something that a
-- person or an app chose has the tenant in it, or is an expression, which is not evaluated before the policy.

drop index ai.members_user_id;
create index members_user on ai.members (user_id, tenant_id);

drop index ai.vectorized_rows_key;
create index vectorized_rows_row on ai.vectorized_rows (row_key, version, ref, tenant_id);

drop index ai.profiles_fastest;
create index profiles_fastest on ai.profiles (tenant_id, name) where strategy = 'fastest';

create unique index tenants_name on ai.tenants (md5(name));
alter table ai.tenants drop constraint tenants_name_key;
