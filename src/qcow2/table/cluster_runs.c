/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/table/cluster_runs.h"

#include <errno.h>
#include <stdlib.h>

#define CAPACITY_MIN 16

int cluster_runs_add(struct cluster_runs *list, struct cluster_run run)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : CAPACITY_MIN;
        struct cluster_run *runs = realloc(list->runs, capacity * sizeof(*runs));

        if (!runs) {
            return -ENOMEM;
        }
        list->runs = runs;
        list->capacity = capacity;
    }
    list->runs[list->count++] = run;
    return 0;
}

void cluster_runs_clear(struct cluster_runs *list)
{
    free(list->runs);
    *list = (struct cluster_runs){0};
}
