/* SPDX-License-Identifier: Apache-2.0 */
/* Which kind of source the options name. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/source.h"

static int check_named_once(const struct source_options *options, struct error *err)
{
    for (size_t i = 0; i < options->node_count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(options->nodes[i], options->nodes[k]) == 0) {
                return error_set(err, EINVAL, "Disk '%s' is named twice", options->nodes[i]);
            }
        }
    }
    return 0;
}

static int co_add_image(const struct source_options *options, struct source_list *list,
                        struct error *err)
{
    struct source *source = NULL;
    int r = source_image_new(options, &source, err);

    if (r == 0 && source_list_add(list, source) < 0) {
        source_co_close(source);
        r = error_out_of_memory(err);
    }
    return r;
}

int source_co_open(const struct source_options *options, struct source ***ret_list,
                   size_t *ret_count, struct error *err)
{
    struct source_list list = {0};
    int r = check_named_once(options, err);

    if (r == 0) {
        r = options->libvirt_uri ? source_libvirt_open(options, &list, err)
            : options->image     ? co_add_image(options, &list, err)
                                 : source_daemon_co_open(options, &list, err);
    }
    if (r < 0) {
        for (size_t i = 0; i < list.count; i++) {
            source_co_close(list.list[i]);
        }
        free(list.list);
        return r;
    }
    *ret_list = list.list;
    *ret_count = list.count;
    return 0;
}
