/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/io/session.h"

#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "filter/filter.h"

void io_co_admit(const struct io *io, bool is_write, uint64_t bytes)
{
    if (io->co_admit) {
        io->co_admit(io->admit_arg, is_write, bytes);
    }
}

void io_opening_clear(struct io_opening *o)
{
    free(o->name);
    free(o->format);
    free(o->cache);
    free(o->discard);
    free(o->options);
    *o = (struct io_opening){0};
}

static struct cli_image image_to_open(const struct io_opening *o)
{
    return (struct cli_image){
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
}

int io_co_open_again(struct io *io, struct error *err)
{
    const struct io_opening *o = &io->opening;
    const struct cli_image image = image_to_open(o);

    return cli_co_open_disk_plainly(&image, o->read_only ? 0 : BLOCK_OPEN_RDWR, &io->disk, err);
}

int io_co_open(struct io *io, struct error *err)
{
    const struct io_opening *o = &io->opening;
    const struct cli_image image = image_to_open(o);
    int r = cli_check_force_share(&image, "-U", err);

    if (r < 0) {
        return r;
    }
    r = io_co_open_again(io, err);
    if (r < 0 && (o->image_opts || !o->name)) {
        error_prepend(err, "can't open: ");
    } else if (r < 0) {
        error_prepend(err, "can't open device %s: ", o->name);
    }
    return r;
}

static bool is_about_flush(const struct error *err)
{
    static const char begin[] = "Could not flush ";

    return strncmp(error_message(err), begin, sizeof(begin) - 1) == 0;
}

int io_co_close(struct io *io, struct error *err)
{
    int r;

    /* Resume requests held at breakpoints: otherwise closing would wait for them forever. */
    (void)fault_remove_break(io->disk.node, NULL);
    co_group_wait(&io->in_flight);
    r = cli_co_finish_disk(&io->disk, err);
    /*
     * As qemu-io, say nothing about a failed flush when a command has reported an error of the
     * image before. What a format could not store is always reported.
     */
    if (r < 0 && cli_is_compat() && io->failed && is_about_flush(err)) {
        error_clear(err);
    }
    return r;
}
