/* SPDX-License-Identifier: Apache-2.0 */
/* Making images of qcow, version 1. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "blockmap/create.h"
#include "qcow1/image.h"
#include "schema/define.h"

const struct block_option_desc qcow1_create_options[] = {
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Format of the backing image"},
    {NULL, NULL, NULL},
};

const struct schema_type qcow1_create_type =
    OBJECT_INIT("BlockdevCreateOptionsQcow", REQ("file", block_ref_type),
                REQ("size", schema_size, .unit = "bytes"),
                OPT("backing-file", schema_str, .help = "what the image records"));

struct qcow1_create {
    struct qcow1_header header;
    /* Owned; NULL: none. */
    char *backing_file;
    struct options *file_options;
};

static void qcow1_create_release(struct qcow1_create *c)
{
    free(c->backing_file);
    options_free(c->file_options);
}

static int take_qcow1_create(struct qcow1_create *c, uint64_t size, struct options *opts,
                             struct error *err)
{
    AUTO_FREE char *format = NULL;
    size_t length;
    int r;

    if ((r = options_take_str(opts, "backing_file", &c->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &format, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'qcow'", err)) < 0) {
        return r;
    }
    if (size == 0) {
        return error_set(err, EINVAL, "Image size is too small, cannot be zero length");
    }
    length = c->backing_file ? strlen(c->backing_file) : 0;
    if (length > QCOW1_NAME_MAX) {
        return error_set(err, EINVAL, "Backing file name too long");
    }
    /* As in QEMU: over a backing file no byte has to be copied up that a guest has not written. */
    c->header = (struct qcow1_header){
        .disk_size = round_up(size, QCOW1_SECTOR),
        .cluster_bits = length > 0 ? 9 : 12,
        .l2_bits = length > 0 ? 12 : 9,
        .name_offset = length > 0 ? QCOW1_HEADER_SIZE : 0,
        .name_length = (uint32_t)length,
        .l1_offset = round_up(QCOW1_HEADER_SIZE + length, 8),
    };
    return size > INT64_MAX || qcow1_l1_entries(&c->header) > QCOW1_L1_MAX
               ? error_set(err, EFBIG, "Image too large")
               : 0;
}

static int co_write_qcow1(struct block_edge *file, const void *arg, struct error *err)
{
    const struct qcow1_create *c = arg;
    const struct qcow1_header *h = &c->header;
    uint8_t bytes[QCOW1_HEADER_SIZE + QCOW1_NAME_MAX] = {0};
    /* Whole sectors, as with QEMU. */
    uint64_t length = round_up(qcow1_l1_entries(h) * QCOW1_ENTRY_SIZE, QCOW1_SECTOR);
    int r = blockmap_co_clear_file(file, h->l1_offset + length, err);

    if (r < 0) {
        return r;
    }
    qcow1_fill_header(h, bytes);
    if (h->name_length > 0) {
        memcpy(bytes + QCOW1_HEADER_SIZE, c->backing_file, h->name_length);
    }
    r = block_co_pwrite(file, 0, bytes, QCOW1_HEADER_SIZE + (size_t)h->name_length, 0);
    return r < 0 ? error_set_errno(err, -r, "Could not write the header of the image") : 0;
}

int qcow1_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    CLEANUP(qcow1_create_release) struct qcow1_create c = {0};
    int r = blockmap_take_file_options(opts, &c.file_options, err);

    UNLESS_FAILED(r, take_qcow1_create(&c, size, opts, err));
    return r < 0 ? r
                 : blockmap_co_create_file(filename, TAKE_PTR(c.file_options), co_write_qcow1, &c,
                                           err);
}

int qcow1_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                    struct options *opts, struct error *err)
{
    CLEANUP(qcow1_create_release) struct qcow1_create c = {0};
    int r = take_qcow1_create(&c, size, opts, err);

    return r < 0 ? r : blockmap_co_format(file, co_write_qcow1, &c, err);
}
