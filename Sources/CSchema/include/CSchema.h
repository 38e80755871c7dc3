#ifndef MARTLET_CSCHEMA_H
#define MARTLET_CSCHEMA_H

#include <stddef.h>

/// One file of migrations/, sql/ or catalog/, as it was when the binary was built.
typedef struct {
  /// The file's name without a folder; null ends a list.
  const char *name;
  const unsigned char *bytes;
  size_t length;
} martlet_sql_file;

/// The files of migrations/, sorted by name.
const martlet_sql_file *martlet_migrations(void);
/// The files of sql/, sorted by name.
const martlet_sql_file *martlet_sql(void);
/// The files of catalog/, sorted by name.
const martlet_sql_file *martlet_catalog(void);

#endif
