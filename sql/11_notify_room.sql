-- Room for notifications. PostgreSQL keeps them in one queue of the whole server until every session that listens, in any
-- database, has read them. One that never reads, or listens and leaves a transaction open, lets the queue fill; then each
-- commit that notifies fails with 54000. No insert and no answer may depend on that: above half of the queue, where PostgreSQL itself
-- begins to warn, Martlet notifies no more. Nothing is lost by it: workers look by themselves, and ai.read_stream() has
-- every event. What may still be on its way by then has the other half.

-- Whether to notify. Every pg_notify() in these files asks first, once a statement. Without a SET clause, so that it is inlined; not a
-- body that is bound where it is made, because tests put another queue in its place. Locks nothing.
create or replace function ai.may_notify() returns boolean
language sql volatile parallel restricted security invoker
as $$ select pg_catalog.pg_notification_queue_usage() operator(pg_catalog.<) 0.5 $$;
comment on function ai.may_notify() is 'Whether the NOTIFY queue has room; while it has not, nothing is notified and nothing fails.';
revoke execute on function ai.may_notify() from public;
