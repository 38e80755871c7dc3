-- migrate:up
-- Spans compare by months of 30 days, so that '-100000 years 36000001 days' was above 0 and below 10 years, and no time to which it can be added: no part of one points backwards.
update ai.cache_policies set ttl = default where least(extract(year from ttl), extract(month from ttl), extract(day from ttl), extract(hour from ttl), extract(minute from ttl), extract(second from ttl)) < 0;
update ai.cache_policies set stale_for = default
 where least(extract(year from stale_for), extract(month from stale_for), extract(day from stale_for), extract(hour from stale_for), extract(minute from stale_for), extract(second from stale_for)) < 0;
alter table ai.cache_policies
  drop constraint cache_policies_ttl,
  add constraint cache_policies_ttl check (
    ttl > interval '0' and ttl <= interval '10 years'
    and least(extract(year from ttl), extract(month from ttl), extract(day from ttl), extract(hour from ttl), extract(minute from ttl), extract(second from ttl)) >= 0),
  drop constraint cache_policies_stale_for,
  add constraint cache_policies_stale_for check (
    stale_for >= interval '0' and stale_for <= interval '10 years'
    and least(extract(year from stale_for), extract(month from stale_for), extract(day from stale_for), extract(hour from stale_for), extract(minute from stale_for), extract(second from stale_for)) >= 0);
