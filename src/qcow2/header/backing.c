/* SPDX-License-Identifier: Apache-2.0 */
/* Recording another backing file. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "qcow2/header/header.h"

/* Exchange what the header is to name for the two strings. */
static void swap_names(struct qcow2 *q, char **filename, char **format)
{
    char *old_filename = q->header.backing_filename;
    char *old_format = q->header.backing_format;

    q->header.backing_filename = *filename;
    q->header.backing_format = *format;
    *filename = old_filename;
    *format = old_format;
}

int qcow2_co_change_backing(struct block_node *node, const char *filename, const char *format,
                            struct error *err)
{
    struct qcow2 *q = qcow2_state(node);
    AUTO_FREE char *new_filename = filename ? strdup(filename) : NULL;
    AUTO_FREE char *new_format = filename && format ? strdup(format) : NULL;
    int r;

    if ((filename && !new_filename) || (filename && format && !new_format)) {
        return error_out_of_memory(err);
    }
    if (filename && strlen(filename) > BACKING_NAME_MAX) {
        return error_set(err, EINVAL, "The backing file name has %zu bytes; at most %d are allowed",
                         strlen(filename), BACKING_NAME_MAX);
    }
    if (filename && q->data_file_raw) {
        return error_set(err, EINVAL,
                         "Backing file and data-file-raw cannot be used at the same time");
    }
    swap_names(q, &new_filename, &new_format);
    r = qcow2_co_write_header(q, err);
    if (r < 0) {
        swap_names(q, &new_filename, &new_format);
    }
    return r;
}
