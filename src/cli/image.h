/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images as command lines name them: a filename and a format, or --image-opts, with a cache mode. In a coroutine on
 * the main reactor; `co_` functions may yield.
 */
#ifndef TIDEMARK_CLI_IMAGE_H
#define TIDEMARK_CLI_IMAGE_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/block.h"
#include "block/gate.h"

struct cli_image {
    const char *name;    /* filename, or the options text if image_opts */
    const char *format;  /* NULL: guess */
    const char *cache;   /* a cache mode; NULL: writeback */
    const char *discard; /* "unmap", "ignore"; NULL: unmap */
    bool image_opts;
    bool force_share;
    bool
        native_aio; /* asked for: without effect, but as in QEMU's tools it takes a direct cache mode */
    const char
        *snapshot; /* show this internal snapshot: an ID or name, or snapshot.id=...; NULL: none */
    bool copy_on_read;
    bool overlay;              /* writes go to a temporary file and are lost */
    const char *extra_options; /* text of more options for the node; NULL: none */
};

/* An opened image and the user's edge to it. */
struct cli_disk {
    struct block_node *node; /* a reference */
    struct block_root *root; /* NULL if nothing is read or written */
    struct block_edge *edge; /* of root */
    const char *name;        /* as the user named it; borrowed */
    bool writethrough;       /* the cache mode wants every write stable */
};

/* -EINVAL (told to the user) if there is no such cache mode. NULL is fine. */
int cli_check_cache_mode(const char *mode, const char *what);
bool cli_cache_is_writethrough(const char *mode);
bool cli_cache_is_direct(const char *mode);
/* -EINVAL (told to the user) if it is no way to do I/O ("threads", "native", "io_uring"). NULL is fine. */
int cli_check_aio_mode(const char *mode);
/* Whether it is named by a tree of options: --image-opts or json:{...}. */
bool cli_image_is_options(const struct cli_image *image);
/* What goes to its top node: options given as text, and what its other members mean where those say nothing. */
int cli_image_options(const struct cli_image *image, unsigned flags, struct options **ret,
                      struct error *err);
/* Put a temporary qcow2 overlay, which vanishes with the process, on the node (replaced; its reference is consumed). */
int cli_co_add_overlay(struct block_node **node, struct error *err);
/* Put a filter on it that copies into the image what is read from its backing files. As above. */
int cli_co_add_copy_on_read(struct block_node **node, struct error *err);

/*
 * Open. `flags` are BLOCK_OPEN_...; with BLOCK_OPEN_RDWR the disk can be written, with BLOCK_OPEN_RESIZE_FILE resized too,
 * with BLOCK_OPEN_NO_IO there is no root. Errors begin "Could not open 'name': ".
 */
int cli_co_open_disk(const struct cli_image *image, unsigned flags, struct cli_disk *ret,
                     struct error *err);
/* The same without that beginning. */
int cli_co_open_disk_plainly(const struct cli_image *image, unsigned flags, struct cli_disk *ret,
                             struct error *err);
/* Flush and store what an image that was written keeps; fails when that fails. Then close. */
int cli_co_finish_disk(struct cli_disk *disk, struct error *err);
/* Close; does nothing on a disk that is not open. */
void cli_co_close_disk(struct cli_disk *disk);
#define CLI_DISK_AUTO(name) __attribute__((cleanup(cli_co_close_disk))) struct cli_disk name = {0}

static inline uint64_t cli_disk_size(const struct cli_disk *disk)
{
    return block_edge_size(disk->edge);
}

/* Status of the whole chain at `offset`, in the terms of `map`. */
struct cli_extent {
    uint64_t start, length;
    unsigned flags; /* BLOCK_STATUS_... */
    int depth;      /* 0: the image itself, 1: its backing file, ... */
    uint64_t map;   /* if BLOCK_STATUS_OFFSET */
    struct block_node *file;
};
int cli_co_extent(const struct cli_disk *disk, uint64_t offset, uint64_t length,
                  struct cli_extent *ret);

/* "human" and "json". Tells the user if it is neither. */
int cli_parse_output(const char *text, bool *ret_json);

struct cli_items;

/* What `create` and `convert` make a new image from. */
struct cli_new_image {
    const char *filename;
    const char *format;
    const char *backing_file; /* NULL: by -o, or none */
    const char *backing_format;
    const struct cli_items *option_texts; /* of -o */
    const char *size_text;                /* as given; NULL: see size */
    bool has_size;
    uint64_t size; /* bytes, if has_size */
    bool quiet;
    bool unsafe;   /* don't look at the backing file */
    bool announce; /* print the "Formatting" line */
    bool converts; /* errors say so */
};
/* Whether an -o text asks for help. */
bool cli_wants_option_help(const struct cli_items *option_texts);
/* The value of one creation option of -o texts; NULL if it is not there. The caller frees it. -EINVAL is told. */
int cli_creation_option(const struct cli_items *texts, const char *name, char **ret);
/* Whether a format has all of them. Returns 0 or 1 (told). */
int cli_check_creation_options(const char *format, const struct cli_items *texts);
/* All of them, values as given. -EINVAL is told. */
int cli_creation_options(const struct cli_items *texts, struct options **ret);
/* Print the creation options of a format, and of the protocol of `filename` if that is not NULL. Returns the status. */
int cli_print_option_help(const char *format, const char *filename);
/* Create. The user has been told when it fails. Returns the exit status. */
int cli_co_create(const struct cli_new_image *image);

/* --- internal snapshots (snapshot.c) --- */

/* As "snapshots" of `info`; a new reference, or NULL if there are none. */
struct json_object *cli_co_snapshots(struct block_node *node);
/* The same as a table. */
void cli_print_snapshots(struct json_object *array);
/* -EINVAL (told to the user) if the text has no sound form. NULL is fine. */
int cli_check_snapshot(const char *text);
/* Have a read-only node show a snapshot. */
int cli_co_show_snapshot(struct block_node *node, const char *text, struct error *err);

/* Print as QEMU's tools do: 4 spaces a level, keys in their order, empty containers on two lines. */
void cli_print_json(struct json_object *json);
/* Print the members of an object as lines "name: value", parts indented by 4 spaces a level. */
void cli_print_tree(struct json_object *value, int level);
/* The members of an object in QEMU's order, as a NULL-terminated array of names (borrowed) that the caller frees. */
const char **cli_json_sorted_keys(struct json_object *object);

#endif
