/* SPDX-License-Identifier: Apache-2.0 */
/* What all kinds of sources share. */
#include "backup/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/files.h"
#include "base/cleanup.h"

void source_co_close(struct source *source)
{
    if (source) {
        source->ops->co_close(source);
    }
}

const struct source_bitmap *source_bitmap(const struct source *source, const char *name)
{
    for (size_t i = 0; i < source->disk.bitmap_count; i++) {
        if (strcmp(source->disk.bitmaps[i].name, name) == 0) {
            return &source->disk.bitmaps[i];
        }
    }
    return NULL;
}

char *source_new_bitmap_name(const char *repository, const char *id)
{
    char random[9], *name;

    if (files_random_name(random, sizeof(random), NULL) < 0) {
        return NULL;
    }
    return asprintf(&name, SOURCE_PREFIX "%s-%s-%s", repository, id, random) < 0 ? NULL : name;
}

int source_list_add(struct source_list *list, struct source *source)
{
    struct source **grown = realloc(list->list, (list->count + 1) * sizeof(struct source *));

    if (!grown) {
        return -ENOMEM;
    }
    list->list = grown;
    grown[list->count++] = source;
    return 0;
}
