/* SPDX-License-Identifier: Apache-2.0 */
/* Requests that go on while the next commands run: aio_read, aio_write, aio_discard, aio_flush. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/io/command.h"
#include "cli/io/util.h"
#include "loop/loop.h"

struct aio {
    struct io *io;
    struct block_edge *edge;
    bool is_write, zeroes, discard, verify, quiet, verbose, machine;
    int pattern;
    unsigned flags;
    uint64_t offset, size;
    uint8_t *buffer; /* owned; NULL for zeroes and discards */
    int64_t began_ns;
};

static void aio_free(struct aio *aio)
{
    io_free(aio->io, aio->buffer);
    free(aio);
}

static void finish_aio_read(struct aio *aio, int r)
{
    if (r < 0) {
        printf("readv failed: %s\n", strerror(-r));
        return;
    }
    if (aio->verify) {
        io_verify(aio->buffer, aio->pattern, aio->offset, aio->size);
    }
    if (aio->quiet) {
        return;
    }
    if (aio->verbose) {
        io_dump(aio->buffer, aio->offset, aio->size);
    }
    io_report("read", aio->began_ns, aio->offset, aio->size, aio->size, aio->machine);
}

static void finish_aio_write(struct aio *aio, int r)
{
    if (r < 0) {
        printf("aio_write failed: %s\n", strerror(-r));
    } else if (!aio->quiet) {
        io_report("wrote", aio->began_ns, aio->offset, aio->size, aio->size, aio->machine);
    }
}

static void finish_aio_discard(struct aio *aio, int r)
{
    if (r < 0) {
        printf("aio_discard failed: %s\n", strerror(-r));
    } else if (!aio->quiet) {
        io_report("discarded ", aio->began_ns, aio->offset, aio->size, aio->size, aio->machine);
    }
}

static void account_aio(const struct aio *aio, enum io_account_outcome outcome)
{
    const struct io *io = aio->io;
    enum io_account_op op = aio->discard    ? IO_ACCOUNT_DISCARD
                            : aio->is_write ? IO_ACCOUNT_WRITE
                                            : IO_ACCOUNT_READ;

    if (io->account) {
        io->account(io->account_arg, op, aio->offset, aio->size, outcome,
                    loop_now_ns() - aio->began_ns);
    }
}

static void co_aio(void *arg)
{
    struct aio *aio = arg;
    struct io *io = aio->io;
    struct block_edge *edge = aio->edge;
    int r;

    io_co_admit(io, aio->is_write || aio->discard, aio->size);
    if (aio->discard) {
        r = block_co_discard(edge, aio->offset, aio->size);
        finish_aio_discard(aio, r);
    } else if (!aio->is_write) {
        r = block_co_pread(edge, aio->offset, aio->buffer, aio->size);
        finish_aio_read(aio, r);
    } else {
        r = aio->zeroes ? block_co_write_zeroes(edge, aio->offset, aio->size, aio->flags)
                        : block_co_pwrite(edge, aio->offset, aio->buffer, aio->size, aio->flags);
        finish_aio_write(aio, r);
    }
    account_aio(aio, r < 0 ? IO_ACCOUNT_FAILED : IO_ACCOUNT_DONE);
    aio_free(aio);
    co_group_done(&io->in_flight);
}

/* Parse "OFFSET LEN [LEN...]". The lengths are added up, because one buffer does as well. */
static int parse_aio_range(const struct io_command *command, const struct io_args *a,
                           struct aio *aio)
{
    if (a->argc < 2) {
        return io_usage(command);
    }
    if (aio->zeroes && a->argc != 2) {
        printf("-z supports only a single length parameter\n");
        return -EINVAL;
    }
    if (io_parse_size(a->argv[0], &aio->offset) < 0) {
        return -EINVAL;
    }
    for (int i = 1; i < a->argc; i++) {
        uint64_t length;

        if (io_parse_part(a->argv[i], aio->size, &length) < 0) {
            return -EINVAL;
        }
        aio->size += length;
    }
    return 0;
}

static int parse_aio(struct io *io, const struct io_command *command, const struct io_args *a,
                     bool is_write, struct aio *aio)
{
    *aio = (struct aio){
        .io = io,
        .is_write = is_write,
        .zeroes = a->set['z'],
        .verify = a->set['P'] && !is_write,
        .quiet = a->set['q'],
        .verbose = a->set['v'],
        .machine = a->set['C'],
        .pattern = is_write ? IO_WRITE_FILL : IO_READ_FILL,
        .flags = (a->set['f'] || (is_write && io->disk.writethrough) ? BLOCK_REQ_FUA : 0) |
                 (a->set['u'] ? BLOCK_REQ_MAY_UNMAP : 0),
    };
    if (a->set['z'] && a->set['P']) {
        printf("-z and -P cannot be specified at the same time\n");
        return -EINVAL;
    }
    if (a->set['u'] && !a->set['z']) {
        printf("-u requires -z to be specified\n");
        return -EINVAL;
    }
    if (a->set['P'] && io_parse_pattern(a->value['P'], &aio->pattern) < 0) {
        return -EINVAL;
    }
    return parse_aio_range(command, a, aio);
}

/* Start a request, which frees `aio` when it is done. */
static int spawn_aio(struct io *io, struct aio *aio, struct error *err)
{
    int r;

    aio->began_ns = loop_now_ns();
    aio->edge = io->disk.edge;
    co_group_add(&io->in_flight);
    /*
     * It begins after the next command has: so requests that are started in a row are submitted
     * together.
     */
    r = reactor_spawn(reactor_main(), co_aio, aio);
    if (r < 0) {
        co_group_done(&io->in_flight);
        aio_free(aio);
        error_set_errno(err, -r, "Could not start a request");
    }
    return r;
}

static int start_aio(struct io *io, const struct io_command *command, const struct io_args *a,
                     bool is_write, struct error *err)
{
    struct aio *aio = malloc(sizeof(*aio));
    int r;

    if (!aio) {
        return error_out_of_memory(err);
    }
    r = parse_aio(io, command, a, is_write, aio);
    if (r == 0 && !a->set['i'] && !aio->zeroes) {
        aio->buffer = io_alloc(io, aio->size, is_write ? aio->pattern : IO_READ_FILL, err);
        r = aio->buffer ? 0 : -ENOMEM;
    }
    if (r == 0 && a->set['i']) {
        printf("injecting invalid %s request\n", is_write ? "write" : "read");
        account_aio(aio, IO_ACCOUNT_INVALID);
    }
    if (r < 0 || a->set['i']) {
        aio->buffer = r < 0 ? aio->buffer : NULL;
        aio_free(aio);
        return r;
    }
    return spawn_aio(io, aio, err);
}

static int co_run_aio_read(struct io *io, const struct io_command *command, struct io_args *a,
                           struct error *err)
{
    return start_aio(io, command, a, false, err);
}

static int co_run_aio_write(struct io *io, const struct io_command *command, struct io_args *a,
                            struct error *err)
{
    return start_aio(io, command, a, true, err);
}

static int co_run_aio_discard(struct io *io, const struct io_command *command, struct io_args *a,
                              struct error *err)
{
    struct aio *aio = calloc(1, sizeof(*aio));

    if (!aio) {
        return error_out_of_memory(err);
    }
    *aio = (struct aio){.io = io, .discard = true, .quiet = a->set['q'], .machine = a->set['C']};
    if (a->argc != 2 || io_parse_size(a->argv[0], &aio->offset) < 0 ||
        io_parse_length(a->argv[1], IO_LENGTH_MAX, &aio->size) < 0) {
        bool wrong_count = a->argc != 2;

        aio_free(aio);
        return wrong_count ? io_usage(command) : -EINVAL;
    }
    return spawn_aio(io, aio, err);
}

static int co_run_aio_flush(struct io *io, const struct io_command *command, struct io_args *a,
                            struct error *err)
{
    int64_t began_ns = loop_now_ns();

    co_group_wait(&io->in_flight);
    if (io->account) {
        io->account(io->account_arg, IO_ACCOUNT_FLUSH, 0, 0, IO_ACCOUNT_DONE,
                    loop_now_ns() - began_ns);
    }
    return 0;
}

const struct io_command io_aio_commands[] = {
    {"aio_discard", NULL, "Cq", 2, -1, IO_NEEDS_IMAGE | IO_NEEDS_WRITE, "[-Cq] off len",
     "asynchronously discards a number of bytes",
     "\n Starts to discard and returns; 'aio_flush' waits. Errors are printed, but the command "
     "succeeds.\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -q, -- quiet: no statistics\n",
     co_run_aio_discard},
    {"aio_flush", NULL, NULL, 0, 0, IO_NEEDS_IMAGE, "", "completes all outstanding aio requests",
     NULL, co_run_aio_flush},
    {"aio_read", NULL, "CiP:qrv", 2, -1, IO_NEEDS_IMAGE, "[-Ciqrv] [-P pattern] off len [len..]",
     "asynchronously reads a number of bytes",
     "\n Starts to read and returns; 'aio_flush' waits. Errors are printed, but the command "
     "succeeds.\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -i, -- do nothing (an invalid request)\n"
     " -P, -- verify that all bytes are this one\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n"
     " -v, -- show the bytes\n",
     co_run_aio_read},
    {"aio_write", NULL, "CfiP:qruz", 2, -1, IO_NEEDS_IMAGE | IO_NEEDS_WRITE,
     "[-Cfiqruz] [-P pattern] off len [len..]", "asynchronously writes a number of bytes",
     "\n Starts to write and returns; 'aio_flush' waits. Errors are printed, but the command "
     "succeeds.\n"
     "\n -C, -- report statistics in machine-readable form\n"
     " -f, -- on stable storage when it ends (force unit access)\n"
     " -i, -- do nothing (an invalid request)\n"
     " -P, -- the byte to write\n"
     " -q, -- quiet: no statistics\n"
     " -r, -- accepted without effect\n"
     " -u, -- with -z: space may be freed\n"
     " -z, -- write zeroes without sending them\n",
     co_run_aio_write},
    {0},
};
