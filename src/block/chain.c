/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the backing file that an image records: limits of depth, and circles. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "block/internal.h"
#include "co/co.h"
#include "loop/loop.h"

/*
 * Most images in a chain. Each is opened within the open of the one above. Circles of files are
 * found before; this bounds chains that never end for another reason.
 */
#define CHAIN_MAX 4096

/*
 * A backing image that is being opened because the image above records it. Nodes opened for this
 * image have the link's number in the upper bits of their open_flags; 0 is no link.
 */
struct chain_link {
    struct list link;
    const struct block_node *above; /* its co_open waits */
    const char *path, *format;      /* what is opened; format NULL: to be probed */
    unsigned number;
    unsigned depth;        /* 1 below the top */
    struct chain_link *up; /* the link that is being opened around this one */
    bool has_file;         /* `above` is one file, identified by: */
    struct stat file;
};

static struct list chain_links = LIST_INIT(chain_links); /* main reactor only */

static struct chain_link *find_link(unsigned number)
{
    struct chain_link *link;

    LIST_FOREACH (link, &chain_links, link) {
        if (link->number == number) {
            return link;
        }
    }
    return NULL;
}

/* stat() of a plain path; false for anything else. */
static bool co_stat_name(const char *name, struct stat *ret_stat)
{
    name += strncmp(name, "file:", 5) == 0 ? 5 : 0;
    return loop_co_stat(name, ret_stat) == 0;
}

static void co_chain_begin(struct chain_link *link, const struct block_node *above,
                           const char *path, const char *format)
{
    static unsigned last_number;
    const struct block_node *file = above->file ? above->file->node : NULL;

    do {
        last_number = (last_number + 1) & (BLOCK_OPEN_CHAIN_MASK >> BLOCK_OPEN_CHAIN_SHIFT);
    } while (last_number == 0 || find_link(last_number));
    *link = (struct chain_link){.above = above,
                                .path = path,
                                .format = format,
                                .number = last_number,
                                .up = find_link(above->open_flags >> BLOCK_OPEN_CHAIN_SHIFT)};
    link->depth = link->up ? link->up->depth + 1 : 1;
    list_prepend(&chain_links, &link->link);
    link->has_file = file && list_is_empty(&file->children) && file->filename &&
                     co_stat_name(file->filename, &link->file);
}

static void chain_end(struct chain_link *link)
{
    list_remove(&link->link);
}

static bool is_file_of(const struct chain_link *link, const struct stat *st)
{
    return link->has_file && link->file.st_dev == st->st_dev && link->file.st_ino == st->st_ino;
}

/*
 * Whether the image to open is one of the images above it; or, where the name does not show the
 * file, whether the same name was opened below the same image before.
 */
static bool co_chain_is_circle(const struct chain_link *link)
{
    struct stat st;
    bool has_file = co_stat_name(link->path, &st);

    for (const struct chain_link *l = link; l; l = l->up) {
        const char *driver = l->above->driver->name;
        bool same = has_file ? is_file_of(l, &st)
                             : strcmp(block_node_display_name(l->above), link->path) == 0;
        bool again = l != link && link->has_file && is_file_of(l, &link->file) &&
                     strcmp(driver, link->above->driver->name) == 0 &&
                     strcmp(l->path, link->path) == 0;

        if (again || (same && (!link->format || strcmp(link->format, driver) == 0))) {
            return true;
        }
    }
    return false;
}

/* Arguments and result of opening link->path. */
struct deep_open {
    const struct chain_link *link;
    struct options *extra;
    struct block_node **ret;
    struct error *err;
    int result;
};

static void co_open_deep(void *arg)
{
    struct deep_open *d = arg;
    const struct chain_link *link = d->link;
    unsigned flags = link->above->open_flags;

    flags &= ~(BLOCK_OPEN_CHAIN_MASK | BLOCK_OPEN_RDWR | BLOCK_OPEN_CHECK);
    flags |= link->number << BLOCK_OPEN_CHAIN_SHIFT;
    d->result =
        block_co_open_filename(link->path, link->format, TAKE_PTR(d->extra), flags, d->ret, d->err);
}

static int co_open_link(struct chain_link *link, struct options *extra /* consumed */,
                        struct block_node **ret_node, struct error *err)
{
    struct deep_open d = {.link = link, .extra = extra, .ret = ret_node, .err = err};
    int r;

    if (link->depth >= CHAIN_MAX) {
        r = error_set(err, ELOOP, "The backing chain at '%s' is longer than %d images", link->path,
                      CHAIN_MAX);
    } else if (co_chain_is_circle(link)) {
        r = error_set(err, ELOOP,
                      "The backing chain is a circle: '%s' names '%s', which it is below itself",
                      block_node_display_name(link->above), link->path);
    } else {
        r = co_call_deep(co_open_deep, &d);
        if (r < 0) {
            error_set_errno(err, -r, "Could not open '%s'", link->path);
        } else {
            r = d.result;
        }
    }
    options_free(d.extra);
    return r;
}

int block_co_open_below(struct block_node *above, const char *path, const char *format,
                        struct options *extra, struct block_node **ret_node, struct error *err)
{
    struct chain_link link;
    int r;

    co_chain_begin(&link, above, path, format);
    r = co_open_link(&link, extra, ret_node, err);
    chain_end(&link);
    return r;
}
