/* SPDX-License-Identifier: Apache-2.0 */
/* query-named-block-nodes and query-block. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/time_units.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "block/control_busy.h"
#include "block/control_lock.h"
#include "block/hand_over.h"
#include "block/threshold.h"
#include "loop/loop.h"
#include "qmp/commands.h"

/* Limit of images in a chain; a longer one is taken for a loop. */
#define CHAIN_MAX 256

/* How long a query waits for commands that work on nodes. */
#define WORK_PATIENCE_NS NS_PER_SECOND

/* Read what lies in the image only. The log has a bitmap that can't be counted once. */
static void co_count_node_bitmaps(struct block_node *node)
{
    struct block_bitmap *b = NULL;
    uint64_t count;

    while ((b = block_bitmap_next(node, b))) {
        ERROR_AUTO(err);

        if (!block_bitmap_is_counted(b) && block_co_bitmap_count(b, &count, &err) < 0 &&
            block_bitmap_warns(b)) {
            log_warning("%s", error_message(&err));
        }
    }
}

static bool has_uncounted_bitmaps(struct block_node *node)
{
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_next(node, b))) {
        if (!block_bitmap_is_counted(b)) {
            return true;
        }
    }
    return false;
}

/* Bitmaps are counted by another coroutine, which goes on when the disk hangs. */
struct counting {
    struct block_node *node; /* referenced */
    struct loop_answer done;
    bool abandoned;
};

static void co_count_apart(void *arg)
{
    struct block_control_scope scope = {.keeps_graph = true};
    struct counting *c = arg;
    struct block_control_work work;

    block_control_begin_scope(&scope);
    block_co_control_lock();
    if (!block_control_is_worked_on(c->node)) {
        block_control_begin_work(&work, &c->node, 1, false);
        co_count_node_bitmaps(c->node);
        block_co_control_end_work(&work);
    }
    block_control_unlock();
    block_control_end_scope(&scope);
    block_co_unref(c->node);
    if (c->abandoned) {
        free(c);
    } else {
        loop_answer_give(&c->done);
    }
}

/* Wait for *patience_ns at most, and for nothing else after that. The control lock is released. */
static void co_count_soon(struct block_node *node, int64_t *patience_ns)
{
    struct counting *c = calloc(1, sizeof(*c));
    bool done;

    if (!c) {
        return;
    }
    c->node = block_node_ref(node);
    loop_answer_init(&c->done);
    if (reactor_spawn(reactor_main(), co_count_apart, c) < 0) {
        c->node = NULL;
        free(c);
        block_control_unlock();
        block_co_unref(node);
        block_co_control_lock();
        return;
    }
    block_control_unlock();
    done = loop_co_answer_wait(&c->done, *patience_ns);
    c->abandoned = !done;
    if (done) {
        free(c);
    } else {
        *patience_ns = 0;
    }
    block_co_control_lock();
}

static bool shows_own_members;

void qmp_show_own_members(bool show)
{
    shows_own_members = show;
}

/* How far the bitmap is to be trusted. */
static struct json_object *bitmap_state_json(const struct block_bitmap *b)
{
    static const char *const kinds[] = {[BLOCK_BITMAP_EXACT] = "exact",
                                        [BLOCK_BITMAP_SUPERSET] = "superset",
                                        [BLOCK_BITMAP_LOST] = "lost"};
    struct json_object *o = json_object_new_object();
    struct block_bitmap_state state;

    block_bitmap_get_shown_state(b, &state);
    qmp_put_str(o, "kind", kinds[state.trust]);
    qmp_put_str(o, "reason", state.why);
    if (state.trust == BLOCK_BITMAP_SUPERSET) {
        qmp_put_uint(o, "excess", state.excess);
    }
    if (state.since) {
        qmp_put_uint(o, "since", (uint64_t)state.since);
    }
    return o;
}

/* As qmp_put_str() and its like, for literals that the object has not: see qmp_put_new(). */
static void put_str(struct json_object *to, const char *name, const char *value)
{
    if (value) {
        qmp_put_new(to, name, json_object_new_string(value));
    }
}

static void put_uint(struct json_object *to, const char *name, uint64_t value)
{
    qmp_put_new(to, name, json_object_new_uint64(value));
}

static void put_bool(struct json_object *to, const char *name, bool value)
{
    qmp_put_new(to, name, json_object_new_boolean(value));
}

/* The newest first, as in QEMU. */
static struct json_object *bitmaps_json(struct block_node *node)
{
    struct json_object *list = NULL;
    struct block_bitmap *b = NULL;

    while ((b = block_bitmap_previous(node, b))) {
        struct json_object *o = json_object_new_object();
        uint64_t count = block_bitmap_inconsistent(b) ? 0 : block_bitmap_known_count(b);

        put_str(o, "name", block_bitmap_name(b)[0] ? block_bitmap_name(b) : NULL);
        put_bool(o, "recording", block_bitmap_enabled(b) && !block_bitmap_inconsistent(b));
        put_bool(o, "persistent", block_bitmap_persistent(b));
        if (block_bitmap_inconsistent(b)) {
            put_bool(o, "inconsistent", true);
        }
        put_bool(o, "busy", block_bitmap_busy(b));
        put_uint(o, "granularity", block_bitmap_granularity(b));
        put_uint(o, "count", count);
        if (shows_own_members) {
            qmp_put_new(o, "x-tidemark-state", bitmap_state_json(b));
        }
        if (!list) {
            list = json_object_new_array();
        }
        json_object_array_add(list, o);
    }
    return list;
}

static void add_backing_names(struct json_object *o, struct block_node *node,
                              const struct block_info *info)
{
    AUTO_FREE char *full = NULL;

    if (info->backing_filename && !block_node_is_filter(node)) {
        full = block_node_resolve_backing(node, info->backing_filename);
        put_str(o, "full-backing-filename", full);
        put_str(o, "backing-filename", info->backing_filename);
        put_str(o, "backing-filename-format", info->backing_format);
    }
}

/* How nodes are described. */
enum describe {
    DESCRIBE_FLAT = 1 << 0,     /* without the images below */
    DESCRIBE_MAY_WAIT = 1 << 1, /* the file system may be asked */
    DESCRIBE_AS_DISK = 1 << 2,  /* without the filters below that no user has named */
};

/* The next node down the chain, or the backing node alone; NULL: there is none. */
static struct block_node *next_below(struct block_node *node, unsigned how, bool backing_only)
{
    struct block_node *next =
        backing_only ? block_node_child(node, "backing") : block_node_filter_or_backing(node);

    return next && how & DESCRIBE_AS_DISK ? block_node_skip_implicit(next) : next;
}

static struct json_object *co_snapshots_json(struct block_node *node)
{
    AUTO_FREE struct block_snapshot_info *list = NULL;
    struct json_object *array;
    size_t count = 0;

    if (block_co_own_snapshots(node, &list, &count) < 0 || count == 0) {
        return NULL;
    }
    array = json_object_new_array();
    for (size_t i = 0; i < count; i++) {
        json_object_array_add(array, qmp_snapshot_json(&list[i]));
    }
    return array;
}

/* `filename`: block_node_full_filename(node); depth: of backing images to include. */
static struct json_object *co_image_json(struct block_node *node, const char *filename, int depth,
                                         unsigned how)
{
    struct json_object *snapshots = co_snapshots_json(node);
    struct json_object *o = json_object_new_object();
    struct json_object *specific = block_co_specific_info(node);
    struct block_node *backing = next_below(node, how, false);
    struct block_info info;
    uint64_t allocated;
    bool has_allocated = how & DESCRIBE_MAY_WAIT && block_co_allocated_size(node, &allocated) == 0;
    bool has_info = block_co_get_info(node, &info) == 0;

    put_uint(o, "virtual-size", block_node_size(node));
    put_str(o, "filename", filename);
    if (has_info && info.cluster_size) {
        put_uint(o, "cluster-size", info.cluster_size);
    }
    put_str(o, "format", block_node_format(node));
    if (has_allocated) {
        put_uint(o, "actual-size", allocated);
    }
    if (snapshots) {
        qmp_put_new(o, "snapshots", snapshots);
    }
    if (specific) {
        qmp_put_new(o, "format-specific", specific);
    }
    if (has_info) {
        add_backing_names(o, node, &info);
        if (info.encrypted) {
            put_bool(o, "encrypted", true);
        }
    }
    if (has_info || block_node_is_plain_file(node)) {
        put_bool(o, "dirty-flag", has_info && info.has_dirty_flag && info.dirty_flag);
    }
    if (backing && depth > 0) {
        AUTO_FREE char *name = block_node_full_filename(backing);

        qmp_put_new(o, "backing-image", co_image_json(backing, name, depth - 1, how));
    }
    return o;
}

static int backing_depth(struct block_node *node, unsigned how)
{
    int depth = 0;

    while ((node = next_below(node, how, false))) {
        depth++;
    }
    return depth;
}

/* There is no throttling; QEMU's answer has these members, so this one has them too. */
static void add_zero_limits(struct json_object *o)
{
    static const char *const names[] = {"iops", "iops_rd", "iops_wr", "bps", "bps_rd", "bps_wr"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        put_uint(o, names[i], 0);
    }
}

static struct json_object *co_describe_node(struct block_node *node, unsigned how)
{
    static const char *const detect_zeroes[] = {"off", "on", "unmap"};
    struct json_object *o = json_object_new_object(), *cache = json_object_new_object();
    struct json_object *bitmaps = bitmaps_json(node);
    AUTO_FREE char *filename = block_node_full_filename(node);
    struct block_node_settings settings = block_node_settings(node);
    struct block_node *below = next_below(node, how, true);
    struct block_info info;
    bool has_info = block_co_get_info(node, &info) == 0;

    put_str(o, "node-name", block_node_name(node));
    put_str(o, "drv", block_node_format(node));
    /* In the order of the schema, which the order of the answer depends on (json_write.c). */
    if (below) {
        AUTO_FREE char *backing = block_node_full_filename(below);

        put_str(o, "backing_file", backing);
    }
    put_uint(o, "write_threshold", block_node_write_threshold(node));
    put_bool(o, "ro", block_node_is_read_only(node));
    put_bool(o, "active", !block_node_is_handed_over(node));
    put_str(o, "file", filename);
    put_str(o, "detect_zeroes", detect_zeroes[settings.detect_zeroes]);
    put_bool(o, "encrypted", has_info && info.encrypted);
    add_zero_limits(o);
    put_uint(o, "backing_file_depth", (uint64_t)backing_depth(node, how));
    put_bool(cache, "no-flush", settings.cache_no_flush);
    put_bool(cache, "direct", settings.cache_direct);
    put_bool(cache, "writeback", true);
    qmp_put_new(o, "cache", cache);
    if (bitmaps) {
        qmp_put_new(o, "dirty-bitmaps", bitmaps);
    }
    qmp_put_new(o, "image",
                co_image_json(node, filename, how & DESCRIBE_FLAT ? 0 : CHAIN_MAX, how));
    return o;
}

struct json_object *qmp_co_disk_json(struct block_node *node)
{
    co_count_node_bitmaps(node);
    return co_describe_node(node, DESCRIBE_MAY_WAIT | DESCRIBE_AS_DISK);
}

/*
 * The disk of the node is waited for apart. Without what only the disk knows, if another command
 * works on the node.
 */
static struct json_object *co_describe_apart(struct block_node *node, bool flat,
                                             int64_t *patience_ns)
{
    struct block_control_work work;
    unsigned how = flat ? DESCRIBE_FLAT : 0;
    struct json_object *o;

    if (!block_control_is_worked_on(node) && has_uncounted_bitmaps(node)) {
        co_count_soon(node, patience_ns);
    }
    if (block_control_is_worked_on(node)) {
        return co_describe_node(node, how);
    }
    block_control_begin_work(&work, &node, 1, false);
    o = co_describe_node(node, how | DESCRIBE_MAY_WAIT);
    block_co_control_end_work(&work);
    return o;
}

/*
 * The node, when no other command works on it, or else after *patience_ns. NULL: it is gone. There
 * is no reference meanwhile, so that a command that removes nodes finds them unused.
 */
static struct block_node *co_wait_for_node(const char *name, int64_t *patience_ns)
{
    struct block_node *node = block_node_find(name);
    int64_t until;

    if (!node || !block_control_is_worked_on(node)) {
        return node;
    }
    until = loop_now_ns() + *patience_ns;
    while (node && block_control_is_worked_on(node) && loop_now_ns() < until) {
        block_control_unlock();
        loop_co_sleep(NS_PER_MS);
        block_co_control_lock();
        node = block_node_find(name);
    }
    if (node && block_control_is_worked_on(node)) {
        *patience_ns = 0;
    }
    return node;
}

/* It may have lost all other users: to close it needs no lock. */
static void co_give_node_back(struct block_node *node)
{
    block_control_unlock();
    block_co_unref(node);
    block_co_control_lock();
}

static void free_node_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(names[i]);
    }
    free(names);
}

/* The names of all nodes. NULL: out of memory. */
static char **list_names(size_t *ret_count)
{
    struct block_node *node = NULL;
    size_t count = 0, done = 0;
    char **names;

    while ((node = block_node_next(node))) {
        count++;
    }
    names = calloc(count ? count : 1, sizeof(*names));
    while (names && (node = block_node_next(node))) {
        names[done] = strdup(block_node_name(node));
        if (!names[done]) {
            free_node_names(names, done);
            return NULL;
        }
        done++;
    }
    *ret_count = count;
    return names;
}

/*
 * A question to a driver may yield, and meanwhile other commands may add and remove nodes. So the
 * names are listed first.
 */
int qmp_co_query_named_block_nodes(struct qmp_call *call, struct json_object *args,
                                   struct json_object **ret_value, struct error *err)
{
    bool flat = qmp_get_bool(args, "flat", false);
    int64_t patience_ns = WORK_PATIENCE_NS;
    struct qmp_list list;
    size_t count;
    char **names = list_names(&count);

    if (!names) {
        return error_out_of_memory(err);
    }
    qmp_list_begin(&list, call);
    /* Newest first, as QEMU lists them. */
    for (size_t i = count; i > 0; i--) {
        struct block_node *node = co_wait_for_node(names[i - 1], &patience_ns);

        if (node) {
            block_node_ref(node);
            qmp_list_add(&list, co_describe_apart(node, flat, &patience_ns));
            co_give_node_back(node);
        }
    }
    free_node_names(names, count);
    *ret_value = qmp_list_end(&list);
    return *ret_value ? 0 : error_out_of_memory(err);
}

/* Disks of guests. The daemon has none: its users of nodes are exports and jobs. */
int qmp_co_query_block(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_array();
    return 0;
}
