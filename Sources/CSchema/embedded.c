// Written by scripts/embed-list. A test compares it with the folders.
#include "CSchema.h"

#pragma clang diagnostic ignored "-Wc23-extensions"

// A file's bytes with a NUL behind them, which `length` does not count.
#define FILE_ENTRY(array, file) {file, array, sizeof(array) - 1}

static const unsigned char migrations_0[] = {
#embed "../../migrations/20261121000100_schema_roles_settings.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_1[] = {
#embed "../../migrations/20261121000200_identity.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_2[] = {
#embed "../../migrations/20261121000300_catalogue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_3[] = {
#embed "../../migrations/20261121000400_generations.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_4[] = {
#embed "../../migrations/20261121000500_queue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_5[] = {
#embed "../../migrations/20261121120000_pipeline.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_6[] = {
#embed "../../migrations/20261121130100_guardrails.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_7[] = {
#embed "../../migrations/20261121130200_limits.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_8[] = {
#embed "../../migrations/20261121130300_caches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_9[] = {
#embed "../../migrations/20261121130400_documents.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_10[] = {
#embed "../../migrations/20261121130500_vectorize.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_11[] = {
#embed "../../migrations/20261121130600_prompts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_12[] = {
#embed "../../migrations/20261121130700_routing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_13[] = {
#embed "../../migrations/20261121130800_batches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_14[] = {
#embed "../../migrations/20261121140000_tenancy.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_15[] = {
#embed "../../migrations/20261121140100_identity.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_16[] = {
#embed "../../migrations/20261121140200_members_and_providers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_17[] = {
#embed "../../migrations/20261121140300_audit.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_18[] = {
#embed "../../migrations/20261121140400_secrets.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_19[] = {
#embed "../../migrations/20261121140500_forgetting.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_20[] = {
#embed "../../migrations/20261121140600_user_indexes.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_21[] = {
#embed "../../migrations/20261121140700_state_without_keys.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_22[] = {
#embed "../../migrations/20261121140800_gateway_roles.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_23[] = {
#embed "../../migrations/20261121150000_kinds.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_24[] = {
#embed "../../migrations/20261121150100_jobs.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_25[] = {
#embed "../../migrations/20261121150200_gemini.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_26[] = {
#embed "../../migrations/20261121150300_model_servers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_27[] = {
#embed "../../migrations/20261121150400_parameters.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_28[] = {
#embed "../../migrations/20261121150500_prices.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_29[] = {
#embed "../../migrations/20261121150600_structured_outputs_and_tools.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_30[] = {
#embed "../../migrations/20261121150700_artifacts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_31[] = {
#embed "../../migrations/20261121150800_provider_batches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_32[] = {
#embed "../../migrations/20261121150900_admission.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_33[] = {
#embed "../../migrations/20261121160300_storage.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_34[] = {
#embed "../../migrations/20261122080000_cheaper_inserts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_35[] = {
#embed "../../migrations/20261122120000_known_ways.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_36[] = {
#embed "../../migrations/20261122150000_row_changes.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_37[] = {
#embed "../../migrations/20261122200000_spans.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_38[] = {
#embed "../../migrations/20261123090000_repairs.sql" suffix(, 0) if_empty(0)
};

static const unsigned char migrations_39[] = {
#embed "../../migrations/20261123100000_live_authors.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_0[] = {
#embed "../../sql/00_drops.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_1[] = {
#embed "../../sql/10_clock.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_2[] = {
#embed "../../sql/11_notify_room.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_3[] = {
#embed "../../sql/12_settings.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_4[] = {
#embed "../../sql/12_vectors.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_5[] = {
#embed "../../sql/13_audit.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_6[] = {
#embed "../../sql/14_acting.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_7[] = {
#embed "../../sql/14_audit_verify.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_8[] = {
#embed "../../sql/15_claims.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_9[] = {
#embed "../../sql/15_identity.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_10[] = {
#embed "../../sql/16_api_keys.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_11[] = {
#embed "../../sql/17_bindings.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_12[] = {
#embed "../../sql/17_sessions.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_13[] = {
#embed "../../sql/18_policies.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_14[] = {
#embed "../../sql/18_stages.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_15[] = {
#embed "../../sql/19_members.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_16[] = {
#embed "../../sql/19_permissions.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_17[] = {
#embed "../../sql/19_roles.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_18[] = {
#embed "../../sql/20_catalogue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_19[] = {
#embed "../../sql/20_custom_providers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_20[] = {
#embed "../../sql/20_own_providers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_21[] = {
#embed "../../sql/20_price_map.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_22[] = {
#embed "../../sql/20_prices.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_23[] = {
#embed "../../sql/20_prices_bounds.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_24[] = {
#embed "../../sql/20_prices_import.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_25[] = {
#embed "../../sql/21_sealing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_26[] = {
#embed "../../sql/21_secrets.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_27[] = {
#embed "../../sql/21_secrets_keeping.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_28[] = {
#embed "../../sql/22_routing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_29[] = {
#embed "../../sql/23_json_formats.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_30[] = {
#embed "../../sql/23_json_patterns.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_31[] = {
#embed "../../sql/23_json_schema.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_32[] = {
#embed "../../sql/23_json_schema_check.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_33[] = {
#embed "../../sql/23_json_schema_index.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_34[] = {
#embed "../../sql/24_detectors.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_35[] = {
#embed "../../sql/24_injection.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_36[] = {
#embed "../../sql/24_patterns.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_37[] = {
#embed "../../sql/24_redaction.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_38[] = {
#embed "../../sql/25_guardrail_rules.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_39[] = {
#embed "../../sql/25_guardrails.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_40[] = {
#embed "../../sql/25_guardrails_output.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_41[] = {
#embed "../../sql/25_moderation.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_42[] = {
#embed "../../sql/26_known_ways.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_43[] = {
#embed "../../sql/26_limits.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_44[] = {
#embed "../../sql/27_caches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_45[] = {
#embed "../../sql/27_caches_semantic.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_46[] = {
#embed "../../sql/27_caches_using.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_47[] = {
#embed "../../sql/27_caches_writing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_48[] = {
#embed "../../sql/27_coalescing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_49[] = {
#embed "../../sql/27_prompt_caching.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_50[] = {
#embed "../../sql/28_collections.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_51[] = {
#embed "../../sql/28_documents.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_52[] = {
#embed "../../sql/28_limits_status.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_53[] = {
#embed "../../sql/28_parking.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_54[] = {
#embed "../../sql/28_reservations.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_55[] = {
#embed "../../sql/28_settlements.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_56[] = {
#embed "../../sql/28_splitting.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_57[] = {
#embed "../../sql/28_vectors.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_58[] = {
#embed "../../sql/29_match.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_59[] = {
#embed "../../sql/29_search.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_60[] = {
#embed "../../sql/29_search_indexes.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_61[] = {
#embed "../../sql/30_admission.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_62[] = {
#embed "../../sql/30_idempotency.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_63[] = {
#embed "../../sql/31_embedding_jobs.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_64[] = {
#embed "../../sql/32_vectorize.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_65[] = {
#embed "../../sql/32_vectorize_changes.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_66[] = {
#embed "../../sql/32_vectorized_rows.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_67[] = {
#embed "../../sql/32_vectorized_search.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_68[] = {
#embed "../../sql/33_prompts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_69[] = {
#embed "../../sql/34_context.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_70[] = {
#embed "../../sql/35_enqueue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_71[] = {
#embed "../../sql/36_artifacts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_72[] = {
#embed "../../sql/36_tools.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_73[] = {
#embed "../../sql/37_artifact_stores.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_74[] = {
#embed "../../sql/38_artifact_inputs.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_75[] = {
#embed "../../sql/40_workers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_76[] = {
#embed "../../sql/44_parameters.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_77[] = {
#embed "../../sql/44_picking.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_78[] = {
#embed "../../sql/44_response_format.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_79[] = {
#embed "../../sql/45_claim.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_80[] = {
#embed "../../sql/45_claim_one.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_81[] = {
#embed "../../sql/46_prepare.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_82[] = {
#embed "../../sql/46_requests.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_83[] = {
#embed "../../sql/47_lease.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_84[] = {
#embed "../../sql/48_held_back.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_85[] = {
#embed "../../sql/49_batch_gathering.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_86[] = {
#embed "../../sql/50_realtime.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_87[] = {
#embed "../../sql/60_failures.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_88[] = {
#embed "../../sql/61_next_step.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_89[] = {
#embed "../../sql/62_breakers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_90[] = {
#embed "../../sql/63_explain_route.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_91[] = {
#embed "../../sql/65_settle.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_92[] = {
#embed "../../sql/65_settle_answers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_93[] = {
#embed "../../sql/65_settle_attempts.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_94[] = {
#embed "../../sql/66_afterwards.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_95[] = {
#embed "../../sql/67_batch_reports.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_96[] = {
#embed "../../sql/67_batch_results.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_97[] = {
#embed "../../sql/67_batch_steps.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_98[] = {
#embed "../../sql/67_tool_steps.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_99[] = {
#embed "../../sql/68_provider_batches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_100[] = {
#embed "../../sql/68_tool_runs.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_101[] = {
#embed "../../sql/70_cancel.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_102[] = {
#embed "../../sql/75_asking.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_103[] = {
#embed "../../sql/76_conversations.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_104[] = {
#embed "../../sql/78_batches.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_105[] = {
#embed "../../sql/79_progress.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_106[] = {
#embed "../../sql/80_usage.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_107[] = {
#embed "../../sql/83_erasing.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_108[] = {
#embed "../../sql/83_erasing_rest.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_109[] = {
#embed "../../sql/83_forgetting.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_110[] = {
#embed "../../sql/83_forgetting_steps.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_111[] = {
#embed "../../sql/84_clock_steps.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_112[] = {
#embed "../../sql/84_statistics.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_113[] = {
#embed "../../sql/85_maintenance.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_114[] = {
#embed "../../sql/85_partitions.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_115[] = {
#embed "../../sql/86_state.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_116[] = {
#embed "../../sql/87_audited.sql" suffix(, 0) if_empty(0)
};

static const unsigned char catalog_0[] = {
#embed "../../catalog/catalog.json" suffix(, 0) if_empty(0)
};

static const martlet_sql_file migrations_list[] = {
  FILE_ENTRY(migrations_0, "20261121000100_schema_roles_settings.sql"),
  FILE_ENTRY(migrations_1, "20261121000200_identity.sql"),
  FILE_ENTRY(migrations_2, "20261121000300_catalogue.sql"),
  FILE_ENTRY(migrations_3, "20261121000400_generations.sql"),
  FILE_ENTRY(migrations_4, "20261121000500_queue.sql"),
  FILE_ENTRY(migrations_5, "20261121120000_pipeline.sql"),
  FILE_ENTRY(migrations_6, "20261121130100_guardrails.sql"),
  FILE_ENTRY(migrations_7, "20261121130200_limits.sql"),
  FILE_ENTRY(migrations_8, "20261121130300_caches.sql"),
  FILE_ENTRY(migrations_9, "20261121130400_documents.sql"),
  FILE_ENTRY(migrations_10, "20261121130500_vectorize.sql"),
  FILE_ENTRY(migrations_11, "20261121130600_prompts.sql"),
  FILE_ENTRY(migrations_12, "20261121130700_routing.sql"),
  FILE_ENTRY(migrations_13, "20261121130800_batches.sql"),
  FILE_ENTRY(migrations_14, "20261121140000_tenancy.sql"),
  FILE_ENTRY(migrations_15, "20261121140100_identity.sql"),
  FILE_ENTRY(migrations_16, "20261121140200_members_and_providers.sql"),
  FILE_ENTRY(migrations_17, "20261121140300_audit.sql"),
  FILE_ENTRY(migrations_18, "20261121140400_secrets.sql"),
  FILE_ENTRY(migrations_19, "20261121140500_forgetting.sql"),
  FILE_ENTRY(migrations_20, "20261121140600_user_indexes.sql"),
  FILE_ENTRY(migrations_21, "20261121140700_state_without_keys.sql"),
  FILE_ENTRY(migrations_22, "20261121140800_gateway_roles.sql"),
  FILE_ENTRY(migrations_23, "20261121150000_kinds.sql"),
  FILE_ENTRY(migrations_24, "20261121150100_jobs.sql"),
  FILE_ENTRY(migrations_25, "20261121150200_gemini.sql"),
  FILE_ENTRY(migrations_26, "20261121150300_model_servers.sql"),
  FILE_ENTRY(migrations_27, "20261121150400_parameters.sql"),
  FILE_ENTRY(migrations_28, "20261121150500_prices.sql"),
  FILE_ENTRY(migrations_29, "20261121150600_structured_outputs_and_tools.sql"),
  FILE_ENTRY(migrations_30, "20261121150700_artifacts.sql"),
  FILE_ENTRY(migrations_31, "20261121150800_provider_batches.sql"),
  FILE_ENTRY(migrations_32, "20261121150900_admission.sql"),
  FILE_ENTRY(migrations_33, "20261121160300_storage.sql"),
  FILE_ENTRY(migrations_34, "20261122080000_cheaper_inserts.sql"),
  FILE_ENTRY(migrations_35, "20261122120000_known_ways.sql"),
  FILE_ENTRY(migrations_36, "20261122150000_row_changes.sql"),
  FILE_ENTRY(migrations_37, "20261122200000_spans.sql"),
  FILE_ENTRY(migrations_38, "20261123090000_repairs.sql"),
  FILE_ENTRY(migrations_39, "20261123100000_live_authors.sql"),
  {0, 0, 0},
};

static const martlet_sql_file sql_list[] = {
  FILE_ENTRY(sql_0, "00_drops.sql"),
  FILE_ENTRY(sql_1, "10_clock.sql"),
  FILE_ENTRY(sql_2, "11_notify_room.sql"),
  FILE_ENTRY(sql_3, "12_settings.sql"),
  FILE_ENTRY(sql_4, "12_vectors.sql"),
  FILE_ENTRY(sql_5, "13_audit.sql"),
  FILE_ENTRY(sql_6, "14_acting.sql"),
  FILE_ENTRY(sql_7, "14_audit_verify.sql"),
  FILE_ENTRY(sql_8, "15_claims.sql"),
  FILE_ENTRY(sql_9, "15_identity.sql"),
  FILE_ENTRY(sql_10, "16_api_keys.sql"),
  FILE_ENTRY(sql_11, "17_bindings.sql"),
  FILE_ENTRY(sql_12, "17_sessions.sql"),
  FILE_ENTRY(sql_13, "18_policies.sql"),
  FILE_ENTRY(sql_14, "18_stages.sql"),
  FILE_ENTRY(sql_15, "19_members.sql"),
  FILE_ENTRY(sql_16, "19_permissions.sql"),
  FILE_ENTRY(sql_17, "19_roles.sql"),
  FILE_ENTRY(sql_18, "20_catalogue.sql"),
  FILE_ENTRY(sql_19, "20_custom_providers.sql"),
  FILE_ENTRY(sql_20, "20_own_providers.sql"),
  FILE_ENTRY(sql_21, "20_price_map.sql"),
  FILE_ENTRY(sql_22, "20_prices.sql"),
  FILE_ENTRY(sql_23, "20_prices_bounds.sql"),
  FILE_ENTRY(sql_24, "20_prices_import.sql"),
  FILE_ENTRY(sql_25, "21_sealing.sql"),
  FILE_ENTRY(sql_26, "21_secrets.sql"),
  FILE_ENTRY(sql_27, "21_secrets_keeping.sql"),
  FILE_ENTRY(sql_28, "22_routing.sql"),
  FILE_ENTRY(sql_29, "23_json_formats.sql"),
  FILE_ENTRY(sql_30, "23_json_patterns.sql"),
  FILE_ENTRY(sql_31, "23_json_schema.sql"),
  FILE_ENTRY(sql_32, "23_json_schema_check.sql"),
  FILE_ENTRY(sql_33, "23_json_schema_index.sql"),
  FILE_ENTRY(sql_34, "24_detectors.sql"),
  FILE_ENTRY(sql_35, "24_injection.sql"),
  FILE_ENTRY(sql_36, "24_patterns.sql"),
  FILE_ENTRY(sql_37, "24_redaction.sql"),
  FILE_ENTRY(sql_38, "25_guardrail_rules.sql"),
  FILE_ENTRY(sql_39, "25_guardrails.sql"),
  FILE_ENTRY(sql_40, "25_guardrails_output.sql"),
  FILE_ENTRY(sql_41, "25_moderation.sql"),
  FILE_ENTRY(sql_42, "26_known_ways.sql"),
  FILE_ENTRY(sql_43, "26_limits.sql"),
  FILE_ENTRY(sql_44, "27_caches.sql"),
  FILE_ENTRY(sql_45, "27_caches_semantic.sql"),
  FILE_ENTRY(sql_46, "27_caches_using.sql"),
  FILE_ENTRY(sql_47, "27_caches_writing.sql"),
  FILE_ENTRY(sql_48, "27_coalescing.sql"),
  FILE_ENTRY(sql_49, "27_prompt_caching.sql"),
  FILE_ENTRY(sql_50, "28_collections.sql"),
  FILE_ENTRY(sql_51, "28_documents.sql"),
  FILE_ENTRY(sql_52, "28_limits_status.sql"),
  FILE_ENTRY(sql_53, "28_parking.sql"),
  FILE_ENTRY(sql_54, "28_reservations.sql"),
  FILE_ENTRY(sql_55, "28_settlements.sql"),
  FILE_ENTRY(sql_56, "28_splitting.sql"),
  FILE_ENTRY(sql_57, "28_vectors.sql"),
  FILE_ENTRY(sql_58, "29_match.sql"),
  FILE_ENTRY(sql_59, "29_search.sql"),
  FILE_ENTRY(sql_60, "29_search_indexes.sql"),
  FILE_ENTRY(sql_61, "30_admission.sql"),
  FILE_ENTRY(sql_62, "30_idempotency.sql"),
  FILE_ENTRY(sql_63, "31_embedding_jobs.sql"),
  FILE_ENTRY(sql_64, "32_vectorize.sql"),
  FILE_ENTRY(sql_65, "32_vectorize_changes.sql"),
  FILE_ENTRY(sql_66, "32_vectorized_rows.sql"),
  FILE_ENTRY(sql_67, "32_vectorized_search.sql"),
  FILE_ENTRY(sql_68, "33_prompts.sql"),
  FILE_ENTRY(sql_69, "34_context.sql"),
  FILE_ENTRY(sql_70, "35_enqueue.sql"),
  FILE_ENTRY(sql_71, "36_artifacts.sql"),
  FILE_ENTRY(sql_72, "36_tools.sql"),
  FILE_ENTRY(sql_73, "37_artifact_stores.sql"),
  FILE_ENTRY(sql_74, "38_artifact_inputs.sql"),
  FILE_ENTRY(sql_75, "40_workers.sql"),
  FILE_ENTRY(sql_76, "44_parameters.sql"),
  FILE_ENTRY(sql_77, "44_picking.sql"),
  FILE_ENTRY(sql_78, "44_response_format.sql"),
  FILE_ENTRY(sql_79, "45_claim.sql"),
  FILE_ENTRY(sql_80, "45_claim_one.sql"),
  FILE_ENTRY(sql_81, "46_prepare.sql"),
  FILE_ENTRY(sql_82, "46_requests.sql"),
  FILE_ENTRY(sql_83, "47_lease.sql"),
  FILE_ENTRY(sql_84, "48_held_back.sql"),
  FILE_ENTRY(sql_85, "49_batch_gathering.sql"),
  FILE_ENTRY(sql_86, "50_realtime.sql"),
  FILE_ENTRY(sql_87, "60_failures.sql"),
  FILE_ENTRY(sql_88, "61_next_step.sql"),
  FILE_ENTRY(sql_89, "62_breakers.sql"),
  FILE_ENTRY(sql_90, "63_explain_route.sql"),
  FILE_ENTRY(sql_91, "65_settle.sql"),
  FILE_ENTRY(sql_92, "65_settle_answers.sql"),
  FILE_ENTRY(sql_93, "65_settle_attempts.sql"),
  FILE_ENTRY(sql_94, "66_afterwards.sql"),
  FILE_ENTRY(sql_95, "67_batch_reports.sql"),
  FILE_ENTRY(sql_96, "67_batch_results.sql"),
  FILE_ENTRY(sql_97, "67_batch_steps.sql"),
  FILE_ENTRY(sql_98, "67_tool_steps.sql"),
  FILE_ENTRY(sql_99, "68_provider_batches.sql"),
  FILE_ENTRY(sql_100, "68_tool_runs.sql"),
  FILE_ENTRY(sql_101, "70_cancel.sql"),
  FILE_ENTRY(sql_102, "75_asking.sql"),
  FILE_ENTRY(sql_103, "76_conversations.sql"),
  FILE_ENTRY(sql_104, "78_batches.sql"),
  FILE_ENTRY(sql_105, "79_progress.sql"),
  FILE_ENTRY(sql_106, "80_usage.sql"),
  FILE_ENTRY(sql_107, "83_erasing.sql"),
  FILE_ENTRY(sql_108, "83_erasing_rest.sql"),
  FILE_ENTRY(sql_109, "83_forgetting.sql"),
  FILE_ENTRY(sql_110, "83_forgetting_steps.sql"),
  FILE_ENTRY(sql_111, "84_clock_steps.sql"),
  FILE_ENTRY(sql_112, "84_statistics.sql"),
  FILE_ENTRY(sql_113, "85_maintenance.sql"),
  FILE_ENTRY(sql_114, "85_partitions.sql"),
  FILE_ENTRY(sql_115, "86_state.sql"),
  FILE_ENTRY(sql_116, "87_audited.sql"),
  {0, 0, 0},
};

static const martlet_sql_file catalog_list[] = {
  FILE_ENTRY(catalog_0, "catalog.json"),
  {0, 0, 0},
};

const martlet_sql_file *martlet_migrations(void) { return migrations_list; }
const martlet_sql_file *martlet_sql(void) { return sql_list; }
const martlet_sql_file *martlet_catalog(void) { return catalog_list; }
