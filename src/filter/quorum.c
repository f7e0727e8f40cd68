/* SPDX-License-Identifier: Apache-2.0 */
/* The driver "quorum": its options and children, open and close. quorum_io.c has its requests. */
#include "filter/quorum.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "filter/filter.h"
#include "schema/define.h"

/* --- open and close --------------------------------------------------------------------------- */

static int check_quorum_options(const struct quorum *q, size_t count, struct error *err)
{
    if (count == 0) {
        return error_set(err, EINVAL, "Number of provided children must be 1 or more");
    }
    if (count > QUORUM_CHILDREN_MAX) {
        return error_set(err, EINVAL, "quorum has %zu children; at most %d are supported", count,
                         QUORUM_CHILDREN_MAX);
    }
    if (q->threshold < 1) {
        return error_set(err, EINVAL, "Parameter 'vote-threshold' expects a value >= 1");
    }
    if ((size_t)q->threshold > count) {
        return error_set(err, EINVAL, "threshold may not exceed children count");
    }
    if (q->verify && (count != 2 || q->threshold != 2)) {
        return error_set(err, EINVAL,
                         "blkverify=on can only be set if there are exactly two files and "
                         "vote-threshold is 2");
    }
    if (q->verify && q->rewrite) {
        return error_set(err, EINVAL, "rewrite-corrupted=on cannot be used with blkverify=on");
    }
    return 0;
}

ENUM(read_pattern_type, "QuorumReadPattern", "quorum", "fifo");
OBJECT(quorum_options, "BlockdevOptionsQuorum",
       OPT("blkverify", schema_bool, .dflt = "false",
           .help = "end the program if two children differ; for tests"),
       REQ("children", block_refs_type, .help = "nodes of one size with the same contents"),
       REQ("vote-threshold", schema_int, .min = 1, .max = INT32_MAX,
           .help = "how many children have to agree"),
       OPT("rewrite-corrupted", schema_bool, .dflt = "false",
           .help = "write what the majority has to the others"),
       OPT("read-pattern", read_pattern_type, .dflt = "quorum",
           .help = "fifo: read the first child that can be read"));

static int take_settings(struct quorum *q, struct options *opts, struct error *err)
{
    static const char *const patterns[] = {"quorum", "fifo", NULL};
    uint64_t threshold = 0;

    if (!options_has(opts, "vote-threshold")) {
        return options_missing(opts, "vote-threshold", err);
    }
    if (options_take_uint(opts, "vote-threshold", 0, INT32_MAX, &threshold, err) < 0 ||
        options_take_bool(opts, "blkverify", false, &q->verify, err) < 0 ||
        options_take_bool(opts, "rewrite-corrupted", false, &q->rewrite, err) < 0 ||
        options_take_enum(opts, "read-pattern", patterns, QUORUM_READ_VOTE, &q->pattern, err) < 0) {
        return -EINVAL;
    }
    q->threshold = (int)threshold;
    return 0;
}

/* Open or look up one element of the list: options or a node name. */
static int co_open_one(struct block_node *node, struct options *opts, struct json_object *item,
                       struct error *err)
{
    struct quorum *q = node->opaque;
    struct options *child = NULL;
    char name[24];
    int r = 0;

    snprintf(name, sizeof(name), "children.%d", q->count);
    if (json_object_is_type(item, json_type_string)) {
        options_set_str(opts, name, json_object_get_string(item));
    } else {
        r = options_from_element(opts, "children", (size_t)q->count, item, &child, err);
        if (r >= 0) {
            options_set_child(opts, name, child);
        }
    }
    if (r >= 0) {
        r = block_co_open_child(node, opts, name, BLOCK_ROLE_DATA, false, &q->children[q->count],
                                err);
    }
    q->count += r >= 0;
    q->next_index = q->count;
    return r;
}

/* --- children of a quorum in use -------------------------------------------------------------- */

static int quorum_co_add_child(struct block_node *node, struct block_node *child, struct error *err)
{
    struct quorum *q = node->opaque;
    char name[24];
    int r;

    if (q->verify) {
        return error_set(err, EINVAL, "Cannot add a child to a quorum in blkverify mode");
    }
    if (q->count == QUORUM_CHILDREN_MAX) {
        return error_set(err, EINVAL, "Too many children");
    }
    if (block_node_size(child) != block_node_size(node)) {
        return error_set(err, EINVAL,
                         "The children of a quorum have to be of one size: '%s' has %llu bytes, "
                         "'%s' has %llu",
                         node->name, (unsigned long long)block_node_size(node), child->name,
                         (unsigned long long)block_node_size(child));
    }
    snprintf(name, sizeof(name), "children.%d", q->next_index);
    q->children[q->count] = NULL;
    r = block_co_attach_child(node, child, name, BLOCK_ROLE_DATA, &q->children[q->count], err);
    if (r == 0) {
        q->count++;
        q->next_index++;
    }
    return r;
}

static int quorum_co_del_child(struct block_node *node, struct block_edge *edge, struct error *err)
{
    struct quorum *q = node->opaque;
    char latest[24];
    int i = 0;

    if (q->count <= q->threshold) {
        return error_set(err, EINVAL,
                         "The number of children cannot be lower than the vote threshold %d",
                         q->threshold);
    }
    while (q->children[i] != edge) {
        i++;
    }
    snprintf(latest, sizeof(latest), "children.%d", q->next_index - 1);
    q->next_index -= strcmp(edge->name, latest) == 0;
    q->count--;
    for (; i < q->count; i++) {
        q->children[i] = q->children[i + 1];
    }
    block_co_detach_child(edge);
    return 0;
}

static int check_quorum_sizes(const struct quorum *q, struct error *err)
{
    for (int i = 1; i < q->count; i++) {
        const struct block_edge *first = q->children[0], *edge = q->children[i];

        if (block_edge_size(edge) != block_edge_size(first)) {
            return error_set(
                err, EINVAL,
                "The children of a quorum have to be of one size: '%s' has %llu bytes, "
                "'%s' has %llu",
                block_node_display_name(block_edge_node(first)),
                (unsigned long long)block_edge_size(first),
                block_node_display_name(block_edge_node(edge)),
                (unsigned long long)block_edge_size(edge));
        }
    }
    return 0;
}

static int co_open_children(struct block_node *node, struct options *opts, struct json_object *list,
                            struct error *err)
{
    struct quorum *q = node->opaque;
    size_t count = list ? json_object_array_length(list) : 0;
    int r = check_quorum_options(q, count, err);

    for (size_t i = 0; i < count && r >= 0; i++) {
        r = co_open_one(node, opts, json_object_array_get_idx(list, i), err);
    }
    if (r < 0) {
        return r;
    }
    return check_quorum_sizes(q, err);
}

static int quorum_co_open(struct block_node *node, struct options *opts, struct error *err)
{
    struct quorum *q = node->opaque;
    struct json_object *list = NULL;
    int r = take_settings(q, opts, err);

    if (r >= 0) {
        r = options_take_list(opts, "children", &list, err);
    }
    if (r >= 0) {
        r = co_open_children(node, opts, list, err);
    }
    json_object_put(list);
    if (r < 0) {
        return r;
    }
    range_lock_init(&q->writes);
    node->beyond_filename = true;
    block_node_set_size(node, block_edge_size(q->children[0]));
    node->discard_unmap = true; /* the children decide */
    node->supported_write_flags = BLOCK_REQ_FUA;
    node->supported_zero_flags = BLOCK_REQ_FUA | BLOCK_REQ_MAY_UNMAP | BLOCK_REQ_NO_FALLBACK;
    return 0;
}

static void quorum_co_close(struct block_node *node)
{
    struct quorum *q = node->opaque;

    range_lock_destroy(&q->writes);
}

static int quorum_co_allocated_size(struct block_node *node, uint64_t *ret_value)
{
    struct quorum *q = node->opaque;

    *ret_value = 0;
    for (int i = 0; i < q->count; i++) {
        uint64_t size;
        int r = block_co_allocated_size(block_edge_node(q->children[i]), &size);

        if (r < 0) {
            return r;
        }
        *ret_value += size;
    }
    return 0;
}

/* Another writer of a child would make it differ from the others. */
static void quorum_child_perm(struct block_node *node, struct block_edge *edge,
                              unsigned parents_perm, unsigned parents_shared, unsigned *ret_perm,
                              unsigned *ret_shared)
{
    const struct quorum *q = node->opaque;

    *ret_perm = parents_perm | BLOCK_PERM_CONSISTENT_READ | (q->rewrite ? BLOCK_PERM_WRITE : 0);
    *ret_shared = parents_shared & (BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED);
}

const struct block_driver quorum_driver = {
    .name = "quorum",
    .help = "several nodes with the same contents, which vote",
    .options = &quorum_options,
    .instance_size = sizeof(struct quorum),
    .co_open = quorum_co_open,
    .co_close = quorum_co_close,
    .child_perm = quorum_child_perm,
    .co_add_child = quorum_co_add_child,
    .co_del_child = quorum_co_del_child,
    .co_allocated_size = quorum_co_allocated_size,
    .co_preadv = quorum_co_preadv,
    .co_pwritev = quorum_co_pwritev,
    .co_write_zeroes = quorum_co_write_zeroes,
    .co_flush = quorum_co_flush,
    .co_status = quorum_co_status,
};
