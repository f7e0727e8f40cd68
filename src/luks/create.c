/* SPDX-License-Identifier: Apache-2.0 */
/* Making LUKS volumes in files and nodes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "block/control_lock.h"
#include "luks/disk.h"
#include "luks/options.h"

const struct block_option_desc luks_create_options[] = {
    {"cipher-alg", "str", "Name of encryption cipher algorithm"},
    {"cipher-mode", "str", "Name of encryption cipher mode"},
    {"detached-header", "bool (on/off)", "Create a detached LUKS header"},
    {"hash-alg", "str", "Name of encryption hash algorithm"},
    {"iter-time", "num", "Time to spend in PBKDF in milliseconds"},
    {"ivgen-alg", "str", "Name of IV generator algorithm"},
    {"ivgen-hash-alg", "str", "Name of IV generator hash algorithm"},
    {"key-secret", "str", "ID of the secret that provides the keyslot passphrase"},
    {NULL, NULL, NULL},
};

struct luks_create {
    struct luks_format format;
    bool detached;
    int prealloc;
};

static void luks_create_release(struct luks_create *c)
{
    luks_format_release(&c->format);
}

static int take_luks_create(struct luks_create *c, struct options *opts, struct error *err)
{
    static const char *const prealloc_names[] = {"off", "metadata", "falloc", "full", NULL};
    int r;

    if ((r = luks_take_format(opts, "", &c->format, err)) < 0 ||
        (r = luks_check_passphrase(&c->format, err)) < 0 ||
        (r = options_take_bool(opts, "detached-header", c->detached, &c->detached, err)) < 0 ||
        (r = options_take_enum(opts, "preallocation", prealloc_names, 0, &c->prealloc, err)) < 0) {
        return r;
    }
    return options_check_empty(opts, "Format 'luks'", err);
}

static uint64_t luks_payload_of(const struct luks_create *c)
{
    return c->detached ? 0 : luks_new_header_size(&c->format.encryption);
}

static int check_luks_size(const struct luks_create *c, uint64_t size, struct error *err)
{
    uint64_t end;

    return add_overflows(luks_payload_of(c), size, &end) || end > INT64_MAX
               ? error_set(err, EFBIG, "The requested file size is too large")
               : 0;
}

/* Write the header, and make the files as long as they have to be. NULL: there is no such file. */
static int co_write_volume(struct block_edge *file, struct block_edge *header,
                           const struct luks_create *c, uint64_t size, struct error *err)
{
    struct luks_io io = luks_io_of_edge(header ? header : file);
    struct luks_volume *volume;
    int r = 0;

    if (file) {
        r = block_co_truncate(file, luks_payload_of(c) + size, (enum block_prealloc)c->prealloc,
                              err);
    }
    if (header) {
        UNLESS_FAILED(r, block_co_truncate(header, luks_new_header_size(&c->format.encryption),
                                           BLOCK_PREALLOC_OFF, err));
    }
    UNLESS_FAILED(r, luks_co_format(&io, c->detached, &c->format, &volume, err));
    if (r == 0) {
        luks_close(volume);
    }
    return r;
}

int luks_co_create_file(const char *filename, uint64_t size, struct options *opts,
                        struct error *err)
{
    CLEANUP(luks_create_release) struct luks_create c = {.detached = false};
    AUTO_OPTIONS struct options *file_options = options_new();
    struct block_root *root;
    struct block_edge *edge;
    int r = file_options ? 0 : error_out_of_memory(err);

    for (const char *const *name = (const char *const[]){"nocow", "extent_size_hint", NULL};
         *name && r == 0; name++) {
        AUTO_FREE char *value = NULL;

        r = options_take_text(opts, *name, &value, err);
        if (r == 0 && value) {
            options_set_str(file_options, *name, value);
        }
    }
    UNLESS_FAILED(r, take_luks_create(&c, opts, err));
    UNLESS_FAILED(r, check_luks_size(&c, size, err));
    UNLESS_FAILED(r, block_co_create_file(filename, TAKE_PTR(file_options), &root, err));
    if (r < 0) {
        return r;
    }
    edge = block_root_edge(root);
    /* The file is for a detached header alone. */
    r = co_write_volume(c.detached ? NULL : edge, c.detached ? edge : NULL, &c, size, err);
    block_co_root_release(root);
    if (r < 0) {
        block_co_remove_unfinished(filename);
    }
    return r;
}

int luks_co_format_nodes(struct block_node *file, struct block_node *header, uint64_t size,
                         struct options *opts, struct error *err)
{
    CLEANUP(luks_create_release) struct luks_create c = {.detached = header != NULL};
    struct block_root *file_root = NULL, *header_root = NULL;
    int r;

    if (!file && !header) {
        return error_set(err, EINVAL, "Either the parameter 'file' or 'header' must be specified");
    }
    if (file == header) {
        return error_set(err, EINVAL, "The header can't be in the file of the payload");
    }
    r = take_luks_create(&c, opts, err);
    UNLESS_FAILED(r, check_luks_size(&c, size, err));
    if (file) {
        UNLESS_FAILED(r, block_co_format_begin(file, &file_root, err));
    }
    if (header) {
        UNLESS_FAILED(r, block_co_format_begin(header, &header_root, err));
    }
    if (r == 0) {
        bool held = block_control_pause();

        r = co_write_volume(file_root ? block_root_edge(file_root) : NULL,
                            header_root ? block_root_edge(header_root) : NULL, &c, size, err);
        block_co_control_resume(held);
    }
    block_co_root_release(header_root);
    block_co_root_release(file_root);
    return r;
}
