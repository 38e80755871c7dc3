-- ai.settings has one row, always. Nearly everything that claims, ends or keeps in order joins it: without it a claim would take
-- generations off the queue, and lease none and end none.

-- Trigger BEFORE DELETE OR TRUNCATE, each statement: raises PT409.
create or replace function ai.keep_settings() returns trigger
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'ai.settings keeps its row'
    using errcode = 'PT409', detail = 'Without it nothing would be claimed, and nothing would end.', hint = 'update ai.settings set … = default; where … is a column.';
end
$$;
comment on function ai.keep_settings() is 'Trigger: refuses to delete the row of ai.settings.';

revoke execute on function ai.keep_settings() from public;

-- objects

-- So named that it comes before `audited_whole`, whose advice is to delete.
create or replace trigger always_there before delete or truncate on ai.settings
  for each statement execute function ai.keep_settings();
