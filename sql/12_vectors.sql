-- pgvector's operators under names of their own: a function with a fixed search_path cannot name an operator of an
-- extension whose schema it does not know. Bodies are bound where they are made, without a SET clause, so that they are
-- inlined and an index on the operator is used.

create or replace function ai.cosine_distance(a vector, b vector) returns double precision
language sql immutable parallel safe security invoker
return a <=> b;
comment on function ai.cosine_distance(vector, vector) is 'From 0 (same direction) to 2; similarity is 1 minus this. Inlined: uses indexes on <=>.';

create or replace function ai.cosine_distance(a halfvec, b halfvec) returns double precision
language sql immutable parallel safe security invoker
return a <=> b;
comment on function ai.cosine_distance(halfvec, halfvec) is 'The same for halves.';

revoke execute on function ai.cosine_distance(vector, vector), ai.cosine_distance(halfvec, halfvec) from public;
