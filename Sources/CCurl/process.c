#define _GNU_SOURCE
#include "CCurl.h"

#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

static int argument_count;
static char **arguments;

#ifdef __GLIBC__
// glibc hands the arguments of `main` to constructors; Swift works on a copy of them.
__attribute__((constructor)) static void remember_arguments(int count, char **values) {
  argument_count = count;
  arguments = values;
}
#endif

bool martlet_process_close(void) {
  struct rlimit none = {0, 0};
  int limited = setrlimit(RLIMIT_CORE, &none);
  return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 && limited == 0;
}

char *martlet_process_argument(int index) {
  return index >= 0 && index < argument_count ? arguments[index] : NULL;
}
