/* SPDX-License-Identifier: Apache-2.0 */
/* Commands about the image as a whole: open, close, reopen, flush, truncate, length, info, alloc, map. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control.h"
#include "cli/io/io.h"
#include "filter/filter.h"

/* --- opening -------------------------------------------------------------------------------------- */

void io_opening_clear(struct io_opening *o)
{
    free(o->name);
    free(o->format);
    free(o->cache);
    free(o->discard);
    free(o->options);
    *o = (struct io_opening){0};
}

/* `name_it`: an error says what it was that could not be opened. */
static int co_open_disk(struct io *io, bool name_it)
{
    const struct io_opening *o = &io->opening;
    struct cli_image image = {
        .name = o->name ?: o->options,
        .format = o->format,
        .cache = o->cache,
        .discard = o->discard,
        .extra_options = o->name ? o->options : NULL,
        .image_opts = o->image_opts || !o->name,
        .force_share = o->force_share,
        .overlay = o->overlay,
        .copy_on_read = o->copy_on_read,
        .native_aio = o->native_aio,
    };
    ERROR_AUTO(err);
    int rc = cli_co_open_disk_plainly(&image, o->read_only ? 0 : BLOCK_OPEN_RDWR, &io->disk, &err);

    if (rc < 0) {
        if (!name_it) {
            /* as it is */
        } else if (image.image_opts) {
            error_prepend(&err, "can't open: ");
        } else {
            error_prepend(&err, "can't open device %s: ", image.name);
        }
        cli_report(&err);
    }
    return rc;
}

int io_co_open(struct io *io)
{
    return co_open_disk(io, true);
}

static bool is_of_flush(const struct error *err)
{
    static const char begin[] = "Could not flush ";

    return strncmp(error_message(err), begin, sizeof(begin) - 1) == 0;
}

int io_co_close(struct io *io)
{
    ERROR_AUTO(err);
    int rc;

    /* What nobody will resume any more would never end. */
    (void)fault_remove_break(io->disk.node, NULL);
    co_group_wait(&io->in_flight);
    rc = cli_co_finish_disk(&io->disk, &err);
    /*
     * As qemu-io, which says no more of the flush where a command has told what is wrong with the image; of what a format could not
     * store it does. The exit status is 1 anyway.
     */
    if (rc < 0 && !(cli_is_compat() && io->failed && is_of_flush(&err))) {
        cli_report(&err);
    }
    return rc;
}

static char *copy(const char *text)
{
    return text ? strdup(text) : NULL;
}

static bool is_discard_mode(const char *mode)
{
    return strcmp(mode, "unmap") == 0 || strcmp(mode, "on") == 0 || strcmp(mode, "ignore") == 0 ||
           strcmp(mode, "off") == 0;
}

/* The `driver` of an options text is the format when there is a filename, too. */
static int split_driver(struct io_opening *o, const char *text)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *rest;
    ERROR_AUTO(err);
    int rc = options_parse(text, NULL, &opts, &err);

    if (rc == 0) {
        rc = options_take_str(opts, "driver", &o->format, &err);
    }
    if (rc < 0) {
        cli_report(&err);
        return rc;
    }
    rest = options_to_json(opts);
    o->options = copy(json_object_to_json_string_ext(rest, JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(rest);
    return 0;
}

static int co_open(struct io *io, const struct io_command *command, struct io_args *a)
{
    struct io_opening o = {0};
    const char *cache = a->set['n'] ? "none" : a->value['t'] ?: IO_CACHE_DEFAULT;
    int rc = 0;

    if (io->disk.node) {
        cli_fail("file open already, try 'help close'");
        return -EBUSY;
    }
    if (cli_check_cache_mode(cache, "cache") < 0 || cli_check_aio_mode(a->value['i']) < 0) {
        return -EINVAL;
    }
    if (a->set['d'] && !is_discard_mode(a->value['d'])) {
        cli_fail("Invalid discard option: %s", a->value['d']);
        return -EINVAL;
    }
    if (a->argc > 1 || (a->argc == 0 && !a->set['o'])) {
        return io_usage(command);
    }
    if (a->argc == 1) {
        o.name = copy(a->argv[0]);
        if (a->set['o'] && strncmp(o.name ?: "", "json:", 5) == 0) {
            /* What is given here stands in place of what the name says. */
            o.options = copy(a->value['o']);
        } else if (a->set['o']) {
            rc = split_driver(&o, a->value['o']);
        }
    } else {
        o.options = copy(a->value['o']);
    }
    o.cache = copy(cache);
    o.discard = copy(a->value['d']);
    o.read_only = a->set['r'];
    o.force_share = a->set['U'];
    o.overlay = a->set['s'];
    o.copy_on_read = a->set['C'];
    o.native_aio = a->set['k'] || (a->set['i'] && strcmp(a->value['i'], "native") == 0);
    io_opening_clear(&io->opening);
    io->opening = o;
    return rc < 0 ? rc : io_co_open(io);
}

static int co_close(struct io *io, const struct io_command *command, struct io_args *a)
{
    return io_co_close(io);
}

/* --- reopening ------------------------------------------------------------------------------------ */

/* What no longer holds of the options of a qcow2 image when those of `changes` come. */
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

/* Whether a value is the one that a node has, where it can't get another one. */
static bool is_fixed_option(const char *name)
{
    return strcmp(name, "driver") == 0 || strcmp(name, "node-name") == 0 ||
           strcmp(name, "filename") == 0;
}

/*
 * What can't change by a reopen, and was given as it is, is taken out; -EINVAL (told) if it was given otherwise. So are children that
 * are left without any option.
 */
static int drop_fixed(const struct block_node *node, struct json_object *given)
{
    struct json_object_iterator it = json_object_iter_begin(given);
    struct json_object_iterator end = json_object_iter_end(given);

    while (!json_object_iter_equal(&it, &end)) {
        AUTO_FREE char *name = copy(json_object_iter_peek_name(&it));
        struct json_object *value = json_object_iter_peek_value(&it);
        const struct block_node *child = name ? child_of(node, name) : NULL;

        json_object_iter_next(&it);
        if (!name) {
            return -ENOMEM;
        }
        if (is_fixed_option(name)) {
            const char *is = name[0] == 'd'   ? block_node_format(node)
                             : name[0] == 'n' ? block_node_name(node)
                                              : block_node_filename(node);
            const char *wanted = json_object_get_string(value);

            if (!wanted || !is || strcmp(wanted, is) != 0) {
                cli_fail("Cannot change the option '%s'", name);
                return -EINVAL;
            }
            json_object_object_del(given, name);
        } else if (child && json_object_is_type(value, json_type_object)) {
            int rc = drop_fixed(child, value);

            if (rc < 0) {
                return rc;
            }
            if (json_object_object_length(value) == 0) {
                json_object_object_del(given, name);
            }
        }
    }
    return 0;
}

/* Options keep their values but for those of `changes`. */
static int change_options(struct io_opening *o, const struct block_node *node, const char *changes)
{
    AUTO_OPTIONS struct options *old = NULL;
    AUTO_OPTIONS struct options *new = NULL;
    struct json_object *merged, *given;
    ERROR_AUTO(err);
    int rc = options_parse(o->options ?: "", NULL, &old, &err);

    rc = rc < 0 ? rc : options_parse(changes, NULL, &new, &err);
    if (rc < 0) {
        cli_report(&err);
        return rc;
    }
    merged = options_to_json(old);
    given = options_to_json(new);
    rc = given ? drop_fixed(node, given) : -ENOMEM;
    if (rc == 0 && merged) {
        drop_outdated(merged, given);
        apply_changes(merged, given);
        free(o->options);
        o->options = copy(json_object_to_json_string_ext(merged, JSON_C_TO_STRING_NOSLASHESCAPE));
    }
    json_object_put(merged);
    json_object_put(given);
    if (rc < 0) {
        return rc;
    }
    return o->options ? 0 : -ENOMEM;
}

/* What reopen changes in `o`. */
static int change_opening(struct io_opening *o, const struct block_node *node,
                          const struct io_args *a)
{
    if (a->set['r'] && a->set['w']) {
        cli_fail("Only one -r/-c/-w option may be given");
        return -EINVAL;
    }
    if (a->set['o'] && (a->set['r'] || a->set['w']) && strstr(a->value['o'], "read-only")) {
        cli_fail("Cannot set both -r/-w and 'read-only'");
        return -EINVAL;
    }
    if (a->set['o'] && a->set['c'] && strstr(a->value['o'], "cache.")) {
        cli_fail("Cannot set both -c and the cache options");
        return -EINVAL;
    }
    if (cli_check_cache_mode(a->value['c'], "cache") < 0) {
        return -EINVAL;
    }
    if (a->set['c']) {
        free(o->cache);
        o->cache = copy(a->value['c']);
    }
    if (a->set['o'] && change_options(o, node, a->value['o']) < 0) {
        return -EINVAL;
    }
    o->read_only = a->set['r'] || (o->read_only && !a->set['w']);
    return 0;
}

static int co_reopen(struct io *io, const struct io_command *command, struct io_args *a)
{
    struct io_opening before = {
        .name = copy(io->opening.name),
        .format = copy(block_driver_name(block_node_driver(io->disk.node))),
        .cache = copy(io->opening.cache),
        .discard = copy(io->opening.discard),
        .options = copy(io->opening.options),
        .image_opts = io->opening.image_opts,
        .read_only = io->opening.read_only,
        .force_share = io->opening.force_share,
        .overlay = io->opening.overlay,
        .copy_on_read = io->opening.copy_on_read,
    };
    int rc;

    if (a->argc > 0) {
        io_opening_clear(&before);
        return io_usage(command);
    }
    rc = change_opening(&io->opening, io->disk.node, a);
    if (rc == 0) {
        rc = io_co_close(io);
    }
    if (rc == 0) {
        rc = co_open_disk(io, false);
        if (rc < 0) {
            /* As it was. */
            io_opening_clear(&io->opening);
            io->opening = before;
            io_co_open(io);
            return rc;
        }
    }
    io_opening_clear(&before);
    return rc;
}

/* --- about the image ---------------------------------------------------------------------------------- */

static int co_flush(struct io *io, const struct io_command *command, struct io_args *a)
{
    return block_co_flush(io->disk.edge);
}

static int co_truncate(struct io *io, const struct io_command *command, struct io_args *a)
{
    static const char *const modes[] = {"off", "metadata", "falloc", "full"};
    enum block_prealloc prealloc = BLOCK_PREALLOC_OFF;
    unsigned writer = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE;
    unsigned shared = BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE_UNCHANGED;
    uint64_t size;
    ERROR_AUTO(err);
    int rc;

    if (a->set['m']) {
        size_t i = 0;

        while (i < ARRAY_SIZE(modes) && strcmp(modes[i], a->value['m']) != 0) {
            i++;
        }
        if (i == ARRAY_SIZE(modes)) {
            cli_fail("Invalid preallocation mode '%s'", a->value['m']);
            return -EINVAL;
        }
        prealloc = (enum block_prealloc)i;
    }
    if (a->argc != 1) {
        return io_usage(command);
    }
    rc = io_parse_size(a->argv[0], &size);
    if (rc < 0) {
        return rc;
    }
    rc = block_co_root_set_perm(io->disk.root, writer | BLOCK_PERM_RESIZE, shared, &err);
    if (rc == 0) {
        rc = block_co_truncate(io->disk.edge, size, prealloc, &err);
        block_co_root_set_perm(io->disk.root, writer, shared, NULL);
    }
    if (rc < 0) {
        cli_report(&err);
    }
    return rc;
}

static int co_length(struct io *io, const struct io_command *command, struct io_args *a)
{
    char text[32];

    printf("%s\n", io_size_text((double)cli_disk_size(&io->disk), text, sizeof(text)));
    return 0;
}

/* Where qcow2 keeps the state of a machine: behind the last L2 table's area of the disk. */
static uint64_t vm_state_offset(const struct block_node *node, uint32_t cluster_size)
{
    uint64_t per_table = (uint64_t)cluster_size * (cluster_size / 8);

    if (strcmp(block_node_format(node), "qcow2") != 0 || cluster_size == 0) {
        return 0;
    }
    return div_round_up(block_node_size(node), per_table) * per_table;
}

/* Whether it is a format with clusters, or lies in a file: of others nothing is known. */
static bool co_has_info(struct block_node *node, struct block_info *ret_info)
{
    const char *format;

    while (block_co_get_info(node, ret_info) == -ENOTSUP && block_node_child(node, "file")) {
        node = block_node_child(node, "file");
    }
    format = block_node_format(node);
    return block_co_get_info(node, ret_info) == 0 || strcmp(format, "file") == 0 ||
           strcmp(format, "host_device") == 0;
}

static int co_info(struct io *io, const struct io_command *command, struct io_args *a)
{
    struct block_node *node = io->disk.node;
    struct block_info info, below;
    struct json_object *specific, *data;
    char cluster[32], state[32];

    (void)block_co_get_info(node, &info);
    printf("format name: %s\n", block_node_format(node));
    if (block_node_traits(node) & BLOCK_DRIVER_PROTOCOL) {
        printf("format name: %s\n", block_node_format(node)); /* as qemu-io, of its protocol name */
    }
    if (!co_has_info(node, &below)) {
        return 0;
    }
    printf("cluster size: %s\nvm state offset: %s\n",
           io_size_text(info.cluster_size, cluster, sizeof(cluster)),
           io_size_text((double)vm_state_offset(node, info.cluster_size), state, sizeof(state)));
    specific = block_co_specific_info(node);
    if (specific && json_object_object_get_ex(specific, "data", &data) &&
        json_object_object_length(data) > 0) {
        printf("Format specific information:\n");
        cli_print_tree(data, 1);
    }
    json_object_put(specific);
    return 0;
}

/* --- allocation of the top layer ---------------------------------------------------------------------- */

/* Asks whoever has the data, too: a server that can't say what lies there is an error, not "allocated". */
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

static int co_alloc(struct io *io, const struct io_command *command, struct io_args *a)
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
        int rc = co_is_allocated(io, at, left, &allocated, &n);

        if (rc < 0) {
            printf("is_allocated failed: %s\n", strerror(-rc));
            return rc;
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

static int co_map(struct io *io, const struct io_command *command, struct io_args *a)
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
        int rc = co_is_allocated(io, at, size - at, &allocated, &n);

        if (rc < 0 || n == 0) {
            cli_fail("Failed to get allocation status: %s", strerror(rc < 0 ? -rc : EIO));
            return rc < 0 ? rc : -EIO;
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
     "checks if offset is allocated in the file", NULL, co_alloc},
    {"close", "c", NULL, 0, 0, IO_NEEDS_IMAGE, "", "close the current open file", NULL, co_close},
    {"flush", "f", NULL, 0, 0, IO_NEEDS_IMAGE, "", "flush all in-core file state to disk", NULL,
     co_flush},
    {"info", "i", NULL, 0, 0, IO_NEEDS_IMAGE, "", "prints information about the current file", NULL,
     co_info},
    {"length", "l", NULL, 0, 0, IO_NEEDS_IMAGE, "", "gets the length of the current file", NULL,
     co_length},
    {"map", NULL, NULL, 0, 0, IO_NEEDS_IMAGE, "", "prints the allocated areas of a file", NULL,
     co_map},
    {"open", "o", "Cd:i:kno:rst:U", 1, -1, 0,
     "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]", "open the file specified by path",
     "\n Example:\n 'open -n -o driver=raw /tmp/data' - opens a raw image, uncached\n"
     "\n -C, -- copy from backing files what is read\n"
     " -d, -- discard mode: unmap or ignore\n"
     " -i, -k, -- accepted and ignored\n"
     " -n, -- as -t none\n"
     " -o, -- options of the node; driver=... is the format\n"
     " -r, -- read-only\n"
     " -s, -- write to a temporary overlay\n"
     " -t, -- cache mode\n"
     " -U, -- share with other users (with -r)\n",
     co_open},
    {"reopen", NULL, "c:o:rw", 0, -1, IO_NEEDS_IMAGE, "[(-r|-w)] [-c cache] [-o options]",
     "reopens an image with new options",
     "\n Example:\n 'reopen -o lazy-refcounts=on'\n"
     "\n -c, -- cache mode\n"
     " -o, -- options of the node\n"
     " -r, -- read-only\n"
     " -w, -- writable\n",
     co_reopen},
    {"truncate", "t", "m:", 1, 3, IO_NEEDS_IMAGE | IO_NEEDS_WRITE, "[-m prealloc_mode] off",
     "truncates the current file at the given offset", NULL, co_truncate},
    {0},
};
