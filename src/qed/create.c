/* SPDX-License-Identifier: Apache-2.0 */
/* Making QED images. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/option_types.h"
#include "blockmap/create.h"
#include "qed/image.h"
#include "schema/define.h"

const struct block_option_desc qed_create_options[] = {
    {"backing_file", "str", "File name of a base image"},
    {"backing_fmt", "str", "Image format of the base image"},
    {"cluster_size", "size", "Cluster size (in bytes)"},
    {"table_size", "size", "L1/L2 table size (in clusters)"},
    {NULL, NULL, NULL},
};

const struct schema_type qed_create_type = OBJECT_INIT(
    "BlockdevCreateOptionsQed", REQ("file", block_ref_type),
    REQ("size", schema_size, .unit = "bytes"),
    OPT("backing-file", schema_str, .help = "what the image records"),
    OPT("backing-fmt", block_driver_names_type, .help = "raw is recorded, and no other"),
    OPT("cluster-size", schema_size, .unit = "bytes", .dflt = "65536"),
    OPT("table-size", schema_int, .unit = "clusters", .dflt = "4"));

struct qed_create {
    struct qed_header header;
    /* Owned; NULL: none. */
    char *backing_file, *backing_fmt;
    struct options *file_options;
};

static void qed_create_release(struct qed_create *c)
{
    free(c->backing_file);
    free(c->backing_fmt);
    options_free(c->file_options);
}

static int check_qed_create(const struct qed_create *c, uint64_t cluster_size,
                            uint64_t table_clusters, uint64_t size, struct error *err)
{
    uint64_t most;

    if (!is_power_of_2(cluster_size) || cluster_size < QED_CLUSTER_MIN ||
        cluster_size > QED_CLUSTER_MAX) {
        return error_set(err, EINVAL,
                         "QED cluster size must be within range [%u, %u] and power of 2",
                         QED_CLUSTER_MIN, QED_CLUSTER_MAX);
    }
    if (!is_power_of_2(table_clusters) || table_clusters > QED_TABLE_MAX) {
        return error_set(err, EINVAL, "QED table size must be within range [1, %u] and power of 2",
                         QED_TABLE_MAX);
    }
    if (qed_sizes_overflow((uint32_t)cluster_size, (uint32_t)table_clusters)) {
        return error_set(err, EINVAL,
                         "QED clusters and tables are too large: QEMU does not open such images");
    }
    most = qed_disk_max((uint32_t)cluster_size, (uint32_t)table_clusters);
    if (size > most) {
        return error_set(err, EINVAL,
                         "QED image size must be a non-zero multiple of cluster size and less than "
                         "%" PRIu64 " bytes",
                         most);
    }
    if (c->backing_file && strlen(c->backing_file) > QED_NAME_MAX) {
        return error_set(err, EINVAL, "The backing file name has %zu bytes; at most %d are allowed",
                         strlen(c->backing_file), QED_NAME_MAX);
    }
    return 0;
}

static int take_qed_create(struct qed_create *c, uint64_t size, struct options *opts,
                           struct error *err)
{
    uint64_t cluster_size, table_clusters;
    int r;

    if ((r = options_take_str(opts, "backing_file", &c->backing_file, err)) < 0 ||
        (r = options_take_str(opts, "backing_fmt", &c->backing_fmt, err)) < 0 ||
        (r = options_take_size(opts, "cluster_size", QED_CLUSTER_DEFAULT, &cluster_size, err)) <
            0 ||
        (r = options_take_size(opts, "table_size", QED_TABLE_DEFAULT, &table_clusters, err)) < 0 ||
        (r = options_check_empty(opts, "Format 'qed'", err)) < 0 ||
        (r = check_qed_create(c, cluster_size, table_clusters, size, err)) < 0) {
        return r;
    }
    c->header = (struct qed_header){
        .cluster_size = (uint32_t)cluster_size,
        .table_clusters = (uint32_t)table_clusters,
        .header_clusters = 1,
        .l1_offset = cluster_size,
        .disk_size = round_up(size, QED_SECTOR),
    };
    if (c->backing_file && *c->backing_file) {
        c->header.features = QED_F_BACKING_FILE;
        c->header.features |=
            c->backing_fmt && strcmp(c->backing_fmt, "raw") == 0 ? QED_F_BACKING_IS_RAW : 0;
        c->header.name_offset = QED_HEADER_SIZE;
        c->header.name_length = (uint32_t)strlen(c->backing_file);
    }
    return 0;
}

static int co_write_qed(struct block_edge *file, const void *arg, struct error *err)
{
    const struct qed_create *c = arg;
    const struct qed_header *h = &c->header;
    uint8_t bytes[QED_HEADER_SIZE + QED_NAME_MAX] = {0};
    int r = blockmap_co_clear_file(
        file, h->l1_offset + (uint64_t)h->table_clusters * h->cluster_size, err);

    if (r < 0) {
        return r;
    }
    qed_fill_header(h, bytes);
    if (h->name_length > 0) {
        memcpy(bytes + QED_HEADER_SIZE, c->backing_file, h->name_length);
    }
    r = block_co_pwrite(file, 0, bytes, sizeof(bytes), 0);
    return r < 0 ? error_set_errno(err, -r, "Could not write the header of the image") : 0;
}

int qed_co_create(const char *filename, uint64_t size, struct options *opts, struct error *err)
{
    CLEANUP(qed_create_release) struct qed_create c = {0};
    int r = blockmap_take_file_options(opts, &c.file_options, err);

    UNLESS_FAILED(r, take_qed_create(&c, size, opts, err));
    return r < 0
               ? r
               : blockmap_co_create_file(filename, TAKE_PTR(c.file_options), co_write_qed, &c, err);
}

int qed_co_format(struct block_node *file, struct block_node *data_file, uint64_t size,
                  struct options *opts, struct error *err)
{
    CLEANUP(qed_create_release) struct qed_create c = {0};
    int r = take_qed_create(&c, size, opts, err);

    return r < 0 ? r : blockmap_co_format(file, co_write_qed, &c, err);
}
