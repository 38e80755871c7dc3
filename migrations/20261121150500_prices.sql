-- migrate:up
-- Prices of more than tokens of text, and where a price and a model come from.

-- Whether the rates are those of tokens of text alone, as most are: what is asked of every call is then worked out at once.
alter table ai.prices add column plain boolean not null
  generated always as (rates - array['input', 'cache_read', 'cache_write', 'cache_write_1h', 'output', 'reasoning'] = '{}'::jsonb) stored;
comment on column ai.prices.plain is 'The rates know no units, no parts by medium, no tiers and no service tiers.';
comment on column ai.prices.rates is
  'Money by class, docs/prices.md: per million tokens {"input": 0.15, "cache_read": 0.075, "output": 0.6}, for one of everything else {"images": 0.04}; "tiers", "service", "most".';

alter table ai.providers add column price_map text
  constraint providers_price_map check (price_map ~ '^[a-z0-9][a-z0-9._-]{0,62}$');
comment on column ai.providers.price_map is 'What LiteLLM''s price map calls it (litellm_provider); null: the same name.';
alter table ai.models add column price_entry text
  constraint models_price_entry check (length(price_entry) between 1 and 500);
comment on column ai.models.price_entry is 'The key of its entry in LiteLLM''s price map; null: found by the name.';
