/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "cli/json.h"
#include "cli/snapshot.h"

static const struct cli_usage usage = {
    .command = "info",
    .synopsis = "FILENAME",
    .about = "Shows the format of an image, its size as a disk and the space that its file takes, "
             "its backing\n"
             "file, and details of its format (bitmaps, compression, whether it is marked "
             "corrupt).",
    .examples = "@disk.qcow2\n"
                "@--backing-chain --output=json overlay.qcow2",
};

/* Images in one chain; a longer chain is taken for a loop. */
#define CHAIN_MAX 1024

static struct json_object *co_info_json(struct block_node *node, bool limits);

static void add_text(struct json_object *to, const char *key, const char *value)
{
    if (value) {
        json_object_object_add(to, key, json_object_new_string(value));
    }
}

static void add_backing(struct json_object *to, struct block_node *node,
                        const struct block_info *info)
{
    AUTO_FREE char *full = NULL;

    if (!info->backing_filename) {
        return;
    }
    full = block_node_resolve_backing(node, info->backing_filename);
    add_text(to, "backing-filename", info->backing_filename);
    add_text(to, "full-backing-filename", full);
    add_text(to, "backing-filename-format", info->backing_format);
}

static struct json_object *co_children_json(struct block_node *node, bool limits)
{
    struct json_object *children = json_object_new_array();
    struct block_edge *edge = NULL;

    while ((edge = block_node_next_child(node, edge))) {
        if (strcmp(block_edge_name(edge), "backing") != 0) {
            struct json_object *child = json_object_new_object();

            add_text(child, "name", block_edge_name(edge));
            json_object_object_add(child, "info", co_info_json(block_edge_node(edge), limits));
            json_object_array_add(children, child);
        }
    }
    return children;
}

static void add_limit(struct json_object *to, const char *key, uint64_t value, uint64_t none)
{
    if (value != none) {
        json_object_object_add(to, key, json_object_new_uint64(value));
    }
}

/* Limits by the names of QEMU's BlockLimitsInfo, without those that have no limit. */
static struct json_object *limits_json(const struct block_node *node)
{
    const struct block_limits *l = block_node_limits(node);
    struct json_object *o = json_object_new_object();
    uint32_t memory = MAX(l->memory_alignment, 1u);

    add_limit(o, "request-alignment", MAX(l->request_alignment, 1u), 0);
    add_limit(o, "max-discard", l->max_discard, 0);
    add_limit(o, "discard-alignment", l->discard_alignment, 0);
    add_limit(o, "max-write-zeroes", l->max_zeroes, 0);
    add_limit(o, "write-zeroes-alignment", l->zeroes_alignment, 0);
    add_limit(o, "opt-transfer", l->opt_transfer, 0);
    add_limit(o, "max-transfer", l->max_transfer, 0);
    add_limit(o, "max-iov", IOV_MAX, 0);
    add_limit(o, "min-mem-alignment", memory, 0);
    add_limit(o, "opt-mem-alignment", MAX(memory, CLI_BUFFER_ALIGNMENT), 0);
    return o;
}

static bool is_named(struct json_object *o, const char *name)
{
    const char *text = json_object_get_string(json_object_object_get(o, "name"));

    return text && strcmp(text, name) == 0;
}

/* Bits are read to count them if they have no more bytes than this. */
#define COUNTED_BYTES_MAX (64 * MiB)

/* What is in excess is no more than what is dirty. */
static void co_get_bitmap_state(struct block_bitmap *b, struct block_bitmap_state *ret_state)
{
    uint64_t count, bits = block_node_size(block_bitmap_node(b)) / block_bitmap_granularity(b);

    block_bitmap_get_state(b, ret_state);
    if (ret_state->trust == BLOCK_BITMAP_SUPERSET && bits / 8 <= COUNTED_BYTES_MAX &&
        block_co_bitmap_count(b, &count, NULL) == 0) {
        block_bitmap_get_shown_state(b, ret_state);
    }
}

/* Say of each stored bitmap how far it is to be trusted; not under the name of QEMU's tool. */
static void co_add_bitmap_states(struct json_object *specific, struct block_node *node)
{
    static const char *const kinds[] = {[BLOCK_BITMAP_EXACT] = "exact",
                                        [BLOCK_BITMAP_SUPERSET] = "superset",
                                        [BLOCK_BITMAP_LOST] = "lost"};
    struct json_object *bitmaps =
        json_object_object_get(json_object_object_get(specific, "data"), "bitmaps");

    struct block_bitmap *next = block_bitmap_next(node, NULL);

    /* The node has them in the same order, without those that it does not know. */
    for (size_t i = 0; bitmaps && !cli_is_compat() && i < json_object_array_length(bitmaps); i++) {
        struct json_object *o = json_object_array_get_idx(bitmaps, i);
        struct block_bitmap *b = next && is_named(o, block_bitmap_name(next)) ? next : NULL;
        struct json_object *shown = json_object_new_object();
        struct block_bitmap_state state = {.trust = BLOCK_BITMAP_LOST,
                                           .why = "its type or flags are unknown"};

        if (b) {
            co_get_bitmap_state(b, &state);
            next = block_bitmap_next(node, next);
        }
        add_text(shown, "kind", kinds[state.trust]);
        add_text(shown, "reason", state.why);
        if (state.trust == BLOCK_BITMAP_SUPERSET) {
            json_object_object_add(shown, "excess", json_object_new_uint64(state.excess));
        }
        json_object_object_add(o, "x-tidemark-state", shown);
    }
}

/* All about a node and the nodes below it, without backing files; a new reference. */
static struct json_object *co_info_json(struct block_node *node, bool limits)
{
    struct json_object *o = json_object_new_object();
    struct json_object *specific = block_co_specific_info(node);
    struct json_object *snapshots = cli_co_snapshots(node);
    AUTO_FREE char *filename = block_node_full_filename(node);
    struct block_info info;
    uint64_t allocated;
    bool has_info = block_co_get_info(node, &info) == 0;

    json_object_object_add(o, "children", co_children_json(node, limits));
    json_object_object_add(o, "virtual-size", json_object_new_uint64(block_node_size(node)));
    add_text(o, "filename", filename);
    add_text(o, "format", block_node_format(node));
    if (block_co_allocated_size(node, &allocated) == 0) {
        json_object_object_add(o, "actual-size", json_object_new_uint64(allocated));
    }
    if (has_info && info.cluster_size) {
        json_object_object_add(o, "cluster-size", json_object_new_uint64(info.cluster_size));
    }
    if (has_info) {
        add_backing(o, node, &info);
    }
    if (snapshots) {
        json_object_object_add(o, "snapshots", snapshots);
    }
    if (limits) {
        json_object_object_add(o, "limits", limits_json(node));
    }
    if (specific) {
        co_add_bitmap_states(specific, node);
        json_object_object_add(o, "format-specific", specific);
    }
    if (has_info && info.encrypted) {
        json_object_object_add(o, "encrypted", json_object_new_boolean(true));
    }
    /* What cannot be dirty has no such member: a disk of a server, for example. */
    if (has_info || block_node_is_plain_file(node)) {
        json_object_object_add(
            o, "dirty-flag",
            json_object_new_boolean(has_info && info.has_dirty_flag && info.dirty_flag));
    }
    return o;
}

/* --- for people ------------------------------------------------------------------------------- */

static const char *member(struct json_object *o, const char *key)
{
    struct json_object *value;

    return json_object_object_get_ex(o, key, &value) ? json_object_get_string(value) : NULL;
}

/* The same for a member that is always there. */
static const char *text_of(struct json_object *o, const char *key)
{
    return member(o, key) ?: "";
}

static void print_indented(int level)
{
    printf("%*s", level * 4, "");
}

static void print_size(const char *what, uint64_t bytes, int level)
{
    char text[24];

    print_indented(level);
    printf("%s: %s (%" PRIu64 " bytes)\n", what, size_format(bytes, text, sizeof(text)), bytes);
}

static void print_disk_size(struct json_object *o, int level)
{
    struct json_object *value;
    char text[24] = "unavailable";

    if (json_object_object_get_ex(o, "actual-size", &value)) {
        size_format(json_object_get_uint64(value), text, sizeof(text));
    }
    print_indented(level);
    printf("disk size: %s\n", text);
}

static void print_backing(struct json_object *o, int level)
{
    const char *name = member(o, "backing-filename");
    const char *full = member(o, "full-backing-filename");
    const char *format = member(o, "backing-filename-format");

    if (!name) {
        return;
    }
    print_indented(level);
    printf("backing file: %s", name);
    if (!full) {
        printf(" (cannot determine actual path)");
    } else if (strcmp(full, name) != 0) {
        printf(" (actual path: %s)", full);
    }
    printf("\n");
    if (format) {
        print_indented(level);
        printf("backing file format: %s\n", format);
    }
}

static void print_specific(struct json_object *o, int level)
{
    struct json_object *specific, *data;

    if (json_object_object_get_ex(o, "format-specific", &specific) &&
        json_object_object_get_ex(specific, "data", &data) && json_object_object_length(data) > 0) {
        print_indented(level);
        printf("Format specific information:\n");
        cli_print_tree(data, level + 1);
    }
}

static void print_info_limits(struct json_object *o, int level)
{
    struct json_object *limits;

    if (json_object_object_get_ex(o, "limits", &limits)) {
        print_indented(level);
        printf("Block limits:\n");
        cli_print_tree(limits, level + 1);
    }
}

static void print_info_text(struct json_object *o, int level, const char *path)
{
    struct json_object *children = json_object_object_get(o, "children");
    size_t n_children = json_object_array_length(children);
    bool is_leaf = n_children == 0 && level > 0;
    uint64_t size = json_object_get_uint64(json_object_object_get(o, "virtual-size"));
    const char *cluster_size = member(o, "cluster-size");
    struct json_object *snapshots;

    print_indented(level);
    printf("%s: %s\n", is_leaf ? "filename" : "image", text_of(o, "filename"));
    print_indented(level);
    printf("%s: %s\n", is_leaf ? "protocol type" : "file format", text_of(o, "format"));
    print_size(is_leaf ? "file length" : "virtual size", size, level);
    print_disk_size(o, level);
    if (json_object_get_boolean(json_object_object_get(o, "encrypted"))) {
        print_indented(level);
        printf("encrypted: yes\n");
    }
    if (cluster_size) {
        print_indented(level);
        printf("cluster_size: %s\n", cluster_size);
    }
    if (json_object_get_boolean(json_object_object_get(o, "dirty-flag"))) {
        print_indented(level);
        printf("cleanly shut down: no\n");
    }
    print_backing(o, level);
    print_info_limits(o, level);
    if (json_object_object_get_ex(o, "snapshots", &snapshots)) {
        cli_print_snapshots(snapshots);
    }
    print_specific(o, level);
    for (size_t i = 0; i < n_children; i++) {
        struct json_object *child = json_object_array_get_idx(children, i);
        AUTO_FREE char *below = NULL;

        if (asprintf(&below, "%s%s/", path, text_of(child, "name")) < 0) {
            below = NULL;
            return;
        }
        print_indented(level);
        printf("Child node '%s%s':\n", path, text_of(child, "name"));
        print_info_text(json_object_object_get(child, "info"), level + 1, below);
    }
}

/* --- the chain -------------------------------------------------------------------------------- */

static bool is_in_chain(struct json_object *chain, const char *filename)
{
    for (size_t i = 0; i < json_object_array_length(chain); i++) {
        if (strcmp(text_of(json_object_array_get_idx(chain, i), "filename"), filename) == 0) {
            return true;
        }
    }
    return false;
}

/* Append the image and, if wanted, the images below it to `chain`. */
static int co_collect_chain(struct cli_image image, bool whole_chain, bool limits,
                            struct json_object *chain, struct error *err)
{
    AUTO_FREE char *next_name = NULL;
    AUTO_FREE char *next_format = NULL;

    for (size_t depth = 0; depth < CHAIN_MAX; depth++) {
        CLI_DISK_AUTO(disk);
        struct json_object *o;
        const char *name;
        int r;

        if (!image.image_opts && is_in_chain(chain, image.name)) {
            return error_set(err, ELOOP, "Backing file '%s' creates an infinite loop.", image.name);
        }
        r = cli_co_open_disk(&image, BLOCK_OPEN_NO_BACKING | BLOCK_OPEN_NO_IO, &disk, err);
        if (r < 0) {
            return r;
        }
        o = co_info_json(disk.node, limits);
        json_object_array_add(chain, o);
        name = member(o, "full-backing-filename");
        if (!whole_chain || !name) {
            return 0;
        }
        free(next_name);
        free(next_format);
        next_name = strdup(name);
        name = member(o, "backing-filename-format");
        next_format = name ? strdup(name) : NULL;
        image.name = next_name;
        image.format = next_format;
        image.image_opts = false;
        if (!next_name) {
            return error_out_of_memory(err);
        }
    }
    return error_set(err, ELOOP, "The backing chain of '%s' has more than %d images", image.name,
                     CHAIN_MAX);
}

int img_co_info(int argc, char **argv, struct error *err)
{
    struct cli_image image = {0};
    struct json_object *chain;
    const char *output = NULL;
    bool whole_chain = false, limits = false, json;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        CLI_ARG_FORMAT(image.format),
        CLI_ARG_OUTPUT(output),
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE",
         "cache mode of the image (default writeback); limits depend on it"},
        {"limits", 0, CLI_FLAG, &limits, NULL, "also alignment and sizes of requests"},
        {"backing-chain", 'b', CLI_FLAG, &whole_chain, NULL, "also the images below it"},
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };
    int r;

    r = img_parse(args, &usage, argc, argv, &image, err);
    UNLESS_FAILED(r, img_parse_output(&usage, output, &json, err));
    UNLESS_FAILED(r, img_prepare(&image, "cache", &objects, err));
    if (r < 0) {
        return r;
    }
    chain = json_object_new_array();
    r = co_collect_chain(image, whole_chain, limits, chain, err);
    if (r == 0 && json) {
        cli_print_json(whole_chain ? chain : json_object_array_get_idx(chain, 0));
    }
    for (size_t i = 0; r == 0 && !json && i < json_object_array_length(chain); i++) {
        printf("%s", i > 0 ? "\n" : "");
        print_info_text(json_object_array_get_idx(chain, i), 0, "/");
    }
    json_object_put(chain);
    return r;
}
