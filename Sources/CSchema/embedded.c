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

static const unsigned char sql_0[] = {
#embed "../../sql/00_drops.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_1[] = {
#embed "../../sql/10_clock.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_2[] = {
#embed "../../sql/15_identity.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_3[] = {
#embed "../../sql/20_catalogue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_4[] = {
#embed "../../sql/30_admission.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_5[] = {
#embed "../../sql/35_enqueue.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_6[] = {
#embed "../../sql/40_workers.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_7[] = {
#embed "../../sql/45_claim.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_8[] = {
#embed "../../sql/50_realtime.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_9[] = {
#embed "../../sql/60_failures.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_10[] = {
#embed "../../sql/65_settle.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_11[] = {
#embed "../../sql/70_cancel.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_12[] = {
#embed "../../sql/75_asking.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_13[] = {
#embed "../../sql/80_usage.sql" suffix(, 0) if_empty(0)
};

static const unsigned char sql_14[] = {
#embed "../../sql/85_maintenance.sql" suffix(, 0) if_empty(0)
};

static const martlet_sql_file migrations_list[] = {
  FILE_ENTRY(migrations_0, "20261121000100_schema_roles_settings.sql"),
  FILE_ENTRY(migrations_1, "20261121000200_identity.sql"),
  FILE_ENTRY(migrations_2, "20261121000300_catalogue.sql"),
  FILE_ENTRY(migrations_3, "20261121000400_generations.sql"),
  FILE_ENTRY(migrations_4, "20261121000500_queue.sql"),
  {0, 0, 0},
};

static const martlet_sql_file sql_list[] = {
  FILE_ENTRY(sql_0, "00_drops.sql"),
  FILE_ENTRY(sql_1, "10_clock.sql"),
  FILE_ENTRY(sql_2, "15_identity.sql"),
  FILE_ENTRY(sql_3, "20_catalogue.sql"),
  FILE_ENTRY(sql_4, "30_admission.sql"),
  FILE_ENTRY(sql_5, "35_enqueue.sql"),
  FILE_ENTRY(sql_6, "40_workers.sql"),
  FILE_ENTRY(sql_7, "45_claim.sql"),
  FILE_ENTRY(sql_8, "50_realtime.sql"),
  FILE_ENTRY(sql_9, "60_failures.sql"),
  FILE_ENTRY(sql_10, "65_settle.sql"),
  FILE_ENTRY(sql_11, "70_cancel.sql"),
  FILE_ENTRY(sql_12, "75_asking.sql"),
  FILE_ENTRY(sql_13, "80_usage.sql"),
  FILE_ENTRY(sql_14, "85_maintenance.sql"),
  {0, 0, 0},
};

const martlet_sql_file *martlet_migrations(void) { return migrations_list; }
const martlet_sql_file *martlet_sql(void) { return sql_list; }
