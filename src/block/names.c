/* SPDX-License-Identifier: Apache-2.0 */
/* Names of backing files: which are relative, and to what. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/percent.h"
#include "block/internal.h"

bool block_is_relative(const char *name)
{
    return name[0] != '/' && !block_driver_of_filename(name) && strncmp(name, "json:", 5) != 0;
}

/* URI of the file `name` on the same server, with the same parameters. */
static char *resolve_in_uri(const char *base, const char *name)
{
    size_t size = strcspn(base, "?");
    AUTO_FREE char *part = percent_encode(name, "?");
    char *joined;

    while (size > 0 && base[size - 1] != '/') {
        size--;
    }
    return !part || asprintf(&joined, "%.*s%s%s", (int)size, base, part,
                             base + strcspn(base, "?")) < 0
               ? NULL
               : joined;
}

char *block_resolve_relative(const char *base_filename, const char *name)
{
    const struct block_driver *driver = block_driver_of_filename(base_filename);
    const char *slash = strrchr(base_filename, '/');
    char *joined;

    if (!slash || !block_is_relative(name) || (driver && !driver->has_directories)) {
        return strdup(name);
    }
    if (driver) {
        return resolve_in_uri(base_filename, name);
    }
    if (asprintf(&joined, "%.*s%s", (int)(slash - base_filename + 1), base_filename, name) < 0) {
        return NULL;
    }
    return joined;
}

char *block_absolute_name(const char *name)
{
    AUTO_FREE char *here = *name && block_is_relative(name) ? getcwd(NULL, 0) : NULL;
    char *joined;

    if (!here) {
        return strdup(name);
    }
    return asprintf(&joined, "%s/%s", here, name) < 0 ? NULL : joined;
}

bool block_relative_needs_directory(const char *base_filename, const char *name)
{
    const struct block_driver *driver = block_driver_of_filename(base_filename);

    return driver && !driver->has_directories && block_is_relative(name) &&
           strncmp(strchr(base_filename, ':'), "://", 3) == 0;
}
