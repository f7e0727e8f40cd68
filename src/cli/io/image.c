/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands about the image as a whole: open, close, reopen, flush, truncate, length, info, alloc,
 * map.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/io/command.h"
#include "cli/io/util.h"
#include "cli/json.h"

/* --- opening ---------------------------------------------------------------------------------- */

/* A copy that the caller frees; NULL if `text` is NULL. */
static char *copy_option_text(const char *text)
{
    return text ? strdup(text) : NULL;
}

/*
 * Take apart an options text that comes with a filename: its `driver` is the format of the image.
 */
static int split_driver(struct io_opening *o, const char *text, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *rest;
    int r = options_parse(text, NULL, &opts, err);

    UNLESS_FAILED(r, options_take_str(opts, "driver", &o->format, err));
    if (r < 0) {
        return r;
    }
    rest = options_to_json(opts);
    o->options =
        copy_option_text(json_object_to_json_string_ext(rest, JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(rest);
    return 0;
}

static int check_open_arguments(const struct io *io, const struct io_command *command,
                                const struct io_args *a, struct error *err)
{
    int r;

    if (io->disk.node) {
        return error_set(err, EBUSY, "file open already, try 'help close'");
    }
    r = cli_check_cache_mode(a->value['t'], "cache", err);
    UNLESS_FAILED(r, cli_check_aio_mode(a->value['i'], err));
    if (r < 0) {
        return r;
    }
    if (!cli_is_discard_mode(a->value['d'])) {
        return error_set(err, EINVAL, "Invalid discard option: %s", a->value['d']);
    }
    if (io->image_opts && a->set['o']) {
        return error_set(err, EINVAL, "--image-opts and 'open -o' are mutually exclusive");
    }
    if (a->argc > 1 || (a->argc == 0 && !a->set['o'])) {
        return io_usage(command);
    }
    return 0;
}

static int co_run_open(struct io *io, const struct io_command *command, struct io_args *a,
                       struct error *err)
{
    struct io_opening o = {0};
    const char *options = a->value['o'];
    int r = check_open_arguments(io, command, a, err);

    if (r < 0) {
        return r;
    }
    o.name = a->argc == 1 ? copy_option_text(a->argv[0]) : NULL;
    if (o.name && options && strncmp(o.name, "json:", 5) != 0) {
        r = split_driver(&o, options, err);
    } else {
        /* With json:, options replace what the name says. */
        o.options = copy_option_text(options);
    }
    o.cache = copy_option_text(a->set['n'] > a->set['t'] ? "none"
                                                         : a->value['t'] ?: IO_CACHE_DEFAULT);
    o.discard = copy_option_text(a->value['d']);
    o.read_only = a->set['r'];
    o.force_share = a->set['U'];
    o.overlay = a->set['s'];
    o.copy_on_read = a->set['C'];
    o.image_opts = io->image_opts;
    o.native_aio = a->set['k'] || (a->set['i'] && strcmp(a->value['i'], "native") == 0);
    io_opening_clear(&io->opening);
    io->opening = o;
    return r < 0 ? r : io_co_open(io, err);
}

static int co_run_close(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    return io_co_close(io, err);
}

/* --- reopening -------------------------------------------------------------------------------- */

/* Remove options of a qcow2 image that `changes` makes obsolete. */
static void drop_outdated(struct json_object *options, struct json_object *changes)
{
    struct json_object *check;

    if (json_object_object_get_ex(changes, "cache-size", NULL)) {
        json_object_object_del(options, "l2-cache-size");
        json_object_object_del(options, "refcount-cache-size");
    }
    if (json_object_object_get_ex(changes, "l2-cache-size", NULL) ||
        json_object_object_get_ex(changes, "refcount-cache-size", NULL)) {
        json_object_object_del(options, "cache-size");
    }
    if (json_object_object_get_ex(changes, "overlap-check", &check) &&
        (!json_object_is_type(check, json_type_object) ||
         json_object_object_get_ex(check, "template", NULL))) {
        json_object_object_del(options, "overlap-check");
    }
}

static void apply_changes(struct json_object *options, struct json_object *changes)
{
    json_object_object_foreach(changes, key, value)
    {
        struct json_object *old;

        if (json_object_is_type(value, json_type_object) &&
            json_object_object_get_ex(options, key, &old) &&
            json_object_is_type(old, json_type_object)) {
            apply_changes(old, value);
        } else {
            json_object_object_add(options, key, json_object_get(value));
        }
    }
}

static struct block_node *child_of(const struct block_node *node, const char *name)
{
    return strcmp(name, "file") == 0 || strcmp(name, "backing") == 0 ? block_node_child(node, name)
                                                                     : NULL;
}

/* Whether an option of a node cannot change. */
static bool is_fixed_option(const char *name)
{
    return strcmp(name, "driver") == 0 || strcmp(name, "node-name") == 0 ||
           strcmp(name, "filename") == 0;
}

/*
 * Remove given options that a reopen cannot change, and children that have no other options.
 * -EINVAL if such an option differs from the one that the node has.
 */
static int drop_fixed(const struct block_node *node, struct json_object *given, struct error *err)
{
    struct json_object_iterator it = json_object_iter_begin(given);
    struct json_object_iterator end = json_object_iter_end(given);

    while (!json_object_iter_equal(&it, &end)) {
        AUTO_FREE char *name = copy_option_text(json_object_iter_peek_name(&it));
        struct json_object *value = json_object_iter_peek_value(&it);
        const struct block_node *child = name ? child_of(node, name) : NULL;

        json_object_iter_next(&it);
        if (!name) {
            return error_out_of_memory(err);
        }
        if (is_fixed_option(name)) {
            const char *is = name[0] == 'd'   ? block_node_format(node)
                             : name[0] == 'n' ? block_node_name(node)
                                              : block_node_filename(node);
            const char *wanted = json_object_get_string(value);

            if (!wanted || !is || strcmp(wanted, is) != 0) {
                return error_set(err, EINVAL, "Cannot change the option '%s'", name);
            }
            json_object_object_del(given, name);
        } else if (child && json_object_is_type(value, json_type_object)) {
            int r = drop_fixed(child, value, err);

            if (r < 0) {
                return r;
            }
            if (json_object_object_length(value) == 0) {
                json_object_object_del(given, name);
            }
        }
    }
    return 0;
}

/* Change the options that `changes` names; the others keep their values. */
static int change_options(struct io_opening *o, const struct block_node *node, const char *changes,
                          struct error *err)
{
    AUTO_OPTIONS struct options *old = NULL;
    AUTO_OPTIONS struct options *new = NULL;
    struct json_object *merged, *given;
    int r = options_parse(o->options ?: "", NULL, &old, err);

    UNLESS_FAILED(r, options_parse(changes, NULL, &new, err));
    if (r < 0) {
        return r;
    }
    merged = options_to_json(old);
    given = options_to_json(new);
    r = merged && given ? drop_fixed(node, given, err) : error_out_of_memory(err);
    if (r == 0) {
        drop_outdated(merged, given);
        apply_changes(merged, given);
        free(o->options);
        o->options = copy_option_text(
            json_object_to_json_string_ext(merged, JSON_C_TO_STRING_NOSLASHESCAPE));
        r = o->options ? 0 : error_out_of_memory(err);
    }
    json_object_put(merged);
    json_object_put(given);
    return r;
}

/* Change in `o` what the arguments of reopen say. */
static int change_opening(struct io_opening *o, const struct block_node *node,
                          const struct io_args *a, struct error *err)
{
    int r;

    if (a->set['r'] && a->set['w']) {
        return error_set(err, EINVAL, "Only one -r/-c/-w option may be given");
    }
    if (a->set['o'] && (a->set['r'] || a->set['w']) && strstr(a->value['o'], "read-only")) {
        return error_set(err, EINVAL, "Cannot set both -r/-w and 'read-only'");
    }
    if (a->set['o'] && a->set['c'] && strstr(a->value['o'], "cache.")) {
        return error_set(err, EINVAL, "Cannot set both -c and the cache options");
    }
    r = cli_check_cache_mode(a->value['c'], "cache", err);
    if (r < 0) {
        return r;
    }
    if (a->set['c']) {
        free(o->cache);
        o->cache = copy_option_text(a->value['c']);
    }
    r = a->set['o'] ? change_options(o, node, a->value['o'], err) : 0;
    if (r == 0) {
        o->read_only = a->set['r'] || (o->read_only && !a->set['w']);
    }
    return r;
}

static int co_run_reopen(struct io *io, const struct io_command *command, struct io_args *a,
                         struct error *err)
{
    struct io_opening before = {
        .name = copy_option_text(io->opening.name),
        .format = copy_option_text(block_driver_name(block_node_driver(io->disk.node))),
        .cache = copy_option_text(io->opening.cache),
        .discard = copy_option_text(io->opening.discard),
        .options = copy_option_text(io->opening.options),
        .image_opts = io->opening.image_opts,
        .read_only = io->opening.read_only,
        .force_share = io->opening.force_share,
        .overlay = io->opening.overlay,
        .copy_on_read = io->opening.copy_on_read,
    };
    int r;

    if (a->argc > 0) {
        io_opening_clear(&before);
        return io_usage(command);
    }
    if (io->co_reopen) {
        io_opening_clear(&before);
        return io->co_reopen(io,
                             &(struct io_reopen){.cache = a->value['c'],
                                                 .options = a->value['o'],
                                                 .read_only = a->set['r']   ? 1
                                                              : a->set['w'] ? 0
                                                                            : -1},
                             err);
    }
    r = change_opening(&io->opening, io->disk.node, a, err);
    UNLESS_FAILED(r, io_co_close(io, err));
    if (r == 0) {
        r = io_co_open_again(io, err);
        if (r < 0) {
            /* Open the image as it was. The first error is the one that is reported. */
            io_opening_clear(&io->opening);
            io->opening = before;
            io_co_open(io, NULL);
            return r;
        }
    }
    io_opening_clear(&before);
    return r;
}

/* --- about the image -------------------------------------------------------------------------- */

static int co_run_flush(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    return block_co_flush(io->disk.edge);
}

static int co_run_truncate(struct io *io, const struct io_command *command, struct io_args *a,
                           struct error *err)
{
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    unsigned writer = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE;
    unsigned shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    uint64_t size;
    int r = a->set['m'] ? cli_parse_prealloc(a->value['m'], &prealloc, err) : 0;

    if (r < 0) {
        return r;
    }
    if (a->argc != 1) {
        return io_usage(command);
    }
    r = io_parse_size(a->argv[0], &size);
    UNLESS_FAILED(r,
                  block_co_root_set_perm(io->disk.root, writer | BLOCK_PERM_RESIZE, shared, err));
    if (r == 0) {
        r = block_co_truncate(io->disk.edge, size, prealloc, err);
        block_co_root_set_perm(io->disk.root, writer, shared, NULL);
    }
    return r;
}

static int co_run_length(struct io *io, const struct io_command *command, struct io_args *a,
                         struct error *err)
{
    char text[32];

    printf("%s\n", io_size_text((double)cli_disk_size(&io->disk), text, sizeof(text)));
    return 0;
}

/*
 * The offset of the machine state, which qcow2 stores after the area of the disk's last L2 table.
 * `data`: what is specific to the format, NULL if nothing is.
 */
static uint64_t vm_state_offset(const struct block_node *node, uint32_t cluster_size,
                                const struct json_object *data)
{
    struct json_object *extended;
    bool wide = json_object_object_get_ex(data, "extended-l2", &extended) &&
                json_object_get_boolean(extended);
    uint64_t per_table = (uint64_t)cluster_size * (cluster_size / (wide ? 16 : 8));

    if (strcmp(block_node_format(node), "qcow2") != 0 || cluster_size == 0) {
        return 0;
    }
    return div_round_up(block_node_size(node), per_table) * per_table;
}

/* Whether more is known about the node: it is a format with clusters, or stored in a file. */
static bool co_has_info(struct block_node *node)
{
    struct block_info info;
    const char *format;

    while (block_co_get_info(node, &info) == -ENOTSUP && block_node_child(node, "file")) {
        node = block_node_child(node, "file");
    }
    format = block_node_format(node);
    return block_co_get_info(node, &info) == 0 || strcmp(format, "file") == 0 ||
           strcmp(format, "host_device") == 0;
}

static int co_run_info(struct io *io, const struct io_command *command, struct io_args *a,
                       struct error *err)
{
    struct block_node *node = block_node_skip_implicit(io->disk.node);
    struct block_info info;
    struct json_object *specific, *data = NULL;
    char cluster[32], state[32];

    (void)block_co_get_info(node, &info);
    printf("format name: %s\n", block_node_format(node));
    if (block_node_traits(node) & BLOCK_DRIVER_PROTOCOL) {
        printf("format name: %s\n", block_node_format(node)); /* as qemu-io, of its protocol name */
    }
    if (!co_has_info(node)) {
        return 0;
    }
    specific = block_co_specific_info(node);
    json_object_object_get_ex(specific, "data", &data);
    printf(
        "cluster size: %s\nvm state offset: %s\n",
        io_size_text(info.cluster_size, cluster, sizeof(cluster)),
        io_size_text((double)vm_state_offset(node, info.cluster_size, data), state, sizeof(state)));
    if (data && json_object_object_length(data) > 0) {
        printf("Format specific information:\n");
        cli_print_tree(data, 1);
    }
    json_object_put(specific);
    return 0;
}

/* --- allocation of the top layer -------------------------------------------------------------- */

/* Also asks a server that has the data: if it cannot answer, that is an error, not "allocated". */
static int co_is_allocated(struct io *io, uint64_t offset, uint64_t length, bool *ret_allocated,
                           uint64_t *ret_length)
{
    struct block_status status;
    int r = block_co_status(io->disk.edge, offset, length, &status);

    if (r == 0) {
        *ret_allocated = status.flags & BLOCK_STATUS_ALLOCATED;
        *ret_length = status.length;
    }
    return r;
}

static int co_run_alloc(struct io *io, const struct io_command *command, struct io_args *a,
                        struct error *err)
{
    uint64_t offset, length = 512, sum = 0;
    uint64_t size = cli_disk_size(&io->disk);
    char text[32];

    if (io_parse_size(a->argv[0], &offset) < 0 ||
        (a->argc == 2 && io_parse_length(a->argv[1], INT64_MAX, &length) < 0)) {
        return -EINVAL;
    }
    length = offset < size ? MIN(length, size - offset) : 0;
    for (uint64_t at = offset, left = length; left > 0;) {
        bool allocated = false;
        uint64_t n = 0;
        int r = co_is_allocated(io, at, left, &allocated, &n);

        if (r < 0) {
            printf("is_allocated failed: %s\n", strerror(-r));
            return r;
        }
        if (n == 0) {
            break;
        }
        sum += allocated ? n : 0;
        at += n;
        left -= n;
    }
    printf("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, length,
           io_size_text((double)offset, text, sizeof(text)));
    return 0;
}

static void print_area(uint64_t offset, uint64_t length, bool allocated)
{
    char length_text[32], offset_text[32];

    printf("%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n",
           io_size_text((double)length, length_text, sizeof(length_text)), length,
           allocated ? "    allocated" : "not allocated",
           io_size_text((double)offset, offset_text, sizeof(offset_text)), offset);
}

static int co_run_map(struct io *io, const struct io_command *command, struct io_args *a,
                      struct error *err)
{
    uint64_t size = cli_disk_size(&io->disk);
    uint64_t begin = 0;
    bool current = false;

    if (size == 0) {
        printf("size is 0\n");
        return 0;
    }
    for (uint64_t at = 0; at < size;) {
        bool allocated = false;
        uint64_t n = 0;
        int r = co_is_allocated(io, at, size - at, &allocated, &n);

        if (r < 0 || n == 0) {
            return error_set_errno(err, r < 0 ? -r : EIO, "Failed to get allocation status");
        }
        if (at > begin && allocated != current) {
            print_area(begin, at - begin, current);
            begin = at;
        }
        current = allocated;
        at += n;
    }
    print_area(begin, size - begin, current);
    return 0;
}

const struct io_command io_image_commands[] = {
    {"alloc", "a", NULL, 1, 2, IO_NEEDS_IMAGE, "offset [count]",
     "checks if offset is allocated in the file", NULL, co_run_alloc},
    {"close", "c", NULL, 0, 0, IO_NEEDS_IMAGE, "", "close the current open file", NULL,
     co_run_close},
    {"flush", "f", NULL, 0, 0, IO_NEEDS_IMAGE, "", "flush all in-core file state to disk", NULL,
     co_run_flush},
    {"info", "i", NULL, 0, 0, IO_NEEDS_IMAGE, "", "prints information about the current file", NULL,
     co_run_info},
    {"length", "l", NULL, 0, 0, IO_NEEDS_IMAGE, "", "gets the length of the current file", NULL,
     co_run_length},
    {"map", NULL, NULL, 0, 0, IO_NEEDS_IMAGE, "", "prints the allocated areas of a file", NULL,
     co_run_map},
    {"open", "o", "Cd:i:kno:rst:U", 1, -1, 0,
     "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path",
     "\n Example:\n 'open -n -o driver=raw /tmp/data' - opens a raw image, uncached\n"
     "\n -C, -- copy from backing files what is read\n"
     " -d, -- discard mode: unmap or ignore\n"
     " -i, -k, -- accepted without effect\n"
     " -n, -- as -t none\n"
     " -o, -- options of the node; driver=... is the format\n"
     " -r, -- read-only\n"
     " -s, -- write to a temporary overlay\n"
     " -t, -- cache mode\n"
     " -U, -- share with other users (with -r)\n",
     co_run_open},
    {"reopen", NULL, "c:o:rw", 0, -1, IO_NEEDS_IMAGE, "[(-r|-w)] [-c cache] [-o options]",
     "reopens an image with new options",
     "\n Example:\n 'reopen -o lazy-refcounts=on'\n"
     "\n -c, -- cache mode\n"
     " -o, -- options of the node\n"
     " -r, -- read-only\n"
     " -w, -- writable\n",
     co_run_reopen},
    {"truncate", "t", "m:", 1, 3, IO_NEEDS_IMAGE | IO_NEEDS_WRITE, "[-m prealloc_mode] off",
     "truncates the current file at the given offset", NULL, co_run_truncate},
    {0},
};
