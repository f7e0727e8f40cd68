/* SPDX-License-Identifier: Apache-2.0 */
/* Which kind of source the options name. */
#include <stdlib.h>

#include "backup/source.h"

int source_co_open(const struct source_options *options, struct source ***ret_list,
                   size_t *ret_count, struct error *err)
{
    struct source **list;
    int r;

    if (options->libvirt_uri) {
        return source_libvirt_co_open(options, ret_list, ret_count, err);
    }
    if (!options->image) {
        return source_daemon_co_open(options, ret_list, ret_count, err);
    }
    list = calloc(1, sizeof(struct source *));
    r = list ? source_image_new(options, &list[0], err) : error_out_of_memory(err);
    if (r < 0) {
        free(list);
        return r;
    }
    *ret_list = list;
    *ret_count = 1;
    return 0;
}
