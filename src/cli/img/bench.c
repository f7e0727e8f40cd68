/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/time_units.h"
#include "block/gate.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"
#include "co/sync.h"
#include "loop/loop.h"

static const struct cli_usage usage = {
    .command = "bench",
    .synopsis = "FILENAME",
    .about =
        "Reads or writes an image in a simple pattern and prints how long it took. -w destroys "
        "the contents.",
    .examples = "@-c 100000 -d 32 -s 64k disk.qcow2\n"
                "@-w -f qcow2 --pattern=1 --flush-interval=1000 scratch.qcow2",
};

#define DEPTH_MAX 1024
#define REQUEST_MAX (1ULL << 30)

struct bench {
    struct cli_disk disk;
    uint64_t requests, depth, offset, size, step, flush_interval, pattern;
    bool is_write, no_drain, quiet;

    uint64_t sent, next_offset;
    uint64_t since_flush; /* writes */
    uint8_t *data;        /* what is written; owned */
    int result;           /* the first error of a request */
    struct co_group group;
    struct co_rwlock flushing; /* drained flushes hold it alone; requests share it */
};

/* Where the next request goes: one step further, and from the beginning again after the end. */
static uint64_t take_offset(struct bench *b)
{
    uint64_t room = cli_disk_size(&b->disk) - b->size;
    uint64_t offset = b->next_offset;

    b->next_offset += b->step;
    if (b->next_offset > room) {
        b->next_offset = room ? b->next_offset % room : 0;
    }
    return offset;
}

static int co_bench_flush(struct bench *b)
{
    int r;

    if (!b->no_drain) {
        co_rwlock_wrlock(&b->flushing);
    }
    r = block_co_flush(b->disk.edge);
    if (!b->no_drain) {
        co_rwlock_unlock(&b->flushing);
    }
    return r;
}

static int co_bench_request(struct bench *b, uint8_t *buffer)
{
    uint64_t offset = take_offset(b);
    bool flush = false;
    int r;

    b->sent++;
    co_rwlock_rdlock(&b->flushing);
    r = b->is_write ? block_co_pwrite(b->disk.edge, offset, b->data, b->size, 0)
                    : block_co_pread(b->disk.edge, offset, buffer, b->size);
    co_rwlock_unlock(&b->flushing);
    if (b->flush_interval && ++b->since_flush >= b->flush_interval) {
        b->since_flush = 0;
        flush = true;
    }
    return r == 0 && flush ? co_bench_flush(b) : r;
}

static void co_bench_work(void *arg)
{
    struct bench *b = arg;
    uint8_t *buffer =
        b->is_write ? NULL
                    : aligned_alloc(CLI_BUFFER_ALIGNMENT, round_up(b->size, CLI_BUFFER_ALIGNMENT));
    int r = !b->is_write && !buffer ? -ENOMEM : 0;

    while (r == 0 && b->result == 0 && b->sent < b->requests) {
        r = co_bench_request(b, buffer);
    }
    if (r < 0) {
        b->result = r;
    }
    free(buffer);
    co_group_done(&b->group);
}

static int co_bench_requests(struct bench *b)
{
    co_group_init(&b->group);
    co_rwlock_init(&b->flushing);
    for (uint64_t i = 0; i < b->depth; i++) {
        co_group_add(&b->group);
        if (reactor_spawn(reactor_main(), co_bench_work, b) < 0) {
            co_group_done(&b->group);
            b->result = -ENOMEM;
            break;
        }
    }
    co_group_wait(&b->group);
    co_rwlock_destroy(&b->flushing);
    co_group_destroy(&b->group);
    return b->result;
}

/* Check the range of the first request, and make what is written. */
static int prepare_data(struct bench *b, struct error *err)
{
    if (b->size > cli_disk_size(&b->disk) || b->offset > cli_disk_size(&b->disk) - b->size) {
        return error_set(err, EINVAL,
                         "The first request, %" PRIu64 " bytes at offset %" PRIu64
                         ", lies beyond the end of the image",
                         b->size, b->offset);
    }
    if (b->is_write) {
        b->data = aligned_alloc(CLI_BUFFER_ALIGNMENT, round_up(b->size, CLI_BUFFER_ALIGNMENT));
        if (!b->data) {
            return error_out_of_memory(err);
        }
        memset(b->data, (int)b->pattern, b->size);
    }
    return 0;
}

static void print_plan(const struct bench *b)
{
    printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64
           " in parallel (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
           b->requests, b->is_write ? "write" : "read", b->size, b->depth, b->offset, b->step);
    if (b->flush_interval) {
        printf("Sending flush every %" PRIu64 " %srequests\n", b->flush_interval,
               b->no_drain ? "" : "drained ");
    }
}

static int co_bench(struct bench *b, const struct cli_image *image, struct error *err)
{
    int r = cli_co_open_disk(image, b->is_write ? BLOCK_OPEN_RDWR : 0, &b->disk, err);
    int64_t began;

    UNLESS_FAILED(r, prepare_data(b, err));
    if (r < 0) {
        return r;
    }
    if (!b->quiet) {
        print_plan(b);
    }
    b->next_offset = b->offset;
    began = loop_now_ns();
    r = co_bench_requests(b);
    if (r < 0) {
        return error_set_errno(err, -r, "Failed request");
    }
    if (!b->quiet) {
        printf("Run completed in %3.3f seconds.\n",
               (double)(loop_now_ns() - began) / (double)NS_PER_SECOND);
    }
    return cli_co_finish_disk(&b->disk, err);
}

/* Numbers as they were given; NULL: not given. */
struct bench_texts {
    const char *count, *depth, *flush_interval, *offset, *pattern, *size, *step, *aio;
};

static int check_bench_useless(const struct bench_texts *t, const struct bench *b,
                               struct error *err)
{
    const struct img_useless reads[] = {{t->pattern != NULL, "--pattern"}};
    const struct img_useless never_flushes[] = {{b->no_drain, "--no-drain"}};
    int r =
        b->is_write ? 0 : img_refuse_useless(reads, ARRAY_SIZE(reads), "without --write (-w)", err);

    return r < 0 || b->flush_interval ? r
                                      : img_refuse_useless(never_flushes, ARRAY_SIZE(never_flushes),
                                                           "without --flush-interval", err);
}

static int parse_bench_texts(const struct bench_texts *t, struct bench *b, struct error *err)
{
    int r = cli_take_number(t->count, "request count", 1, INT32_MAX, &b->requests, err);

    UNLESS_FAILED(r, cli_take_number(t->depth, "queue depth", 1, DEPTH_MAX, &b->depth, err));
    UNLESS_FAILED(r, cli_take_number(t->flush_interval, "flush interval", 0, INT32_MAX,
                                     &b->flush_interval, err));
    UNLESS_FAILED(r, cli_take_size(t->offset, "offset", 0, INT64_MAX, &b->offset, err));
    UNLESS_FAILED(r, cli_take_number(t->pattern, "pattern byte", 0, 255, &b->pattern, err));
    UNLESS_FAILED(r, cli_take_size(t->size, "buffer size", 1, REQUEST_MAX, &b->size, err));
    UNLESS_FAILED(r, cli_take_size(t->step, "step size", 0, INT32_MAX, &b->step, err));
    UNLESS_FAILED(r, cli_check_aio_mode(t->aio, err));
    if (r < 0) {
        return r;
    }
    if (b->step == 0) {
        b->step = b->size;
    }
    if (b->flush_interval && !b->is_write) {
        return error_set(err, EINVAL, "--flush-interval is only available in write tests");
    }
    r = check_bench_useless(t, b, err);
    if (r < 0) {
        return r;
    }
    if (b->flush_interval && b->flush_interval < b->depth) {
        return error_set(err, EINVAL, "Flush interval can't be smaller than depth");
    }
    return 0;
}

static void co_bench_release(struct bench *b)
{
    cli_co_close_disk(&b->disk);
    free(b->data);
}

int img_co_bench(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(co_bench_release))) struct bench b = {
        .requests = 75000, .depth = 64, .size = 4096};
    struct cli_image image = {.cache = "writeback"};
    struct bench_texts t = {0};
    bool native = false;
    int r;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"count", 'c', CLI_VALUE, &t.count, "COUNT", "number of requests (default 75000)"},
        {"depth", 'd', CLI_VALUE, &t.depth, "DEPTH", "requests in flight (default 64)"},
        CLI_ARG_FORMAT(image.format),
        {"flush-interval", 0, CLI_VALUE, &t.flush_interval, "N", "flush after every N writes"},
        {"no-drain", 0, CLI_FLAG, &b.no_drain, NULL, "writes go on while a flush is under way"},
        {"aio", 'i', CLI_VALUE, &t.aio, "AIO",
         "threads, native or io_uring: checked, without effect"},
        {"native", 'n', CLI_FLAG, &native, NULL, "as -i native"},
        {"offset", 'o', CLI_VALUE, &t.offset, "OFFSET", "where to begin (default 0)"},
        {"pattern", 0, CLI_VALUE, &t.pattern, "BYTE", "what to write (default 0)"},
        CLI_ARG_QUIET(b.quiet),
        {"buffer-size", 's', CLI_VALUE, &t.size, "SIZE", "size of a request (default 4k)"},
        {"step-size", 'S', CLI_VALUE, &t.step, "SIZE",
         "from one request to the next (default: size of a request)"},
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode (default writeback)"},
        {"write", 'w', CLI_FLAG, &b.is_write, NULL, "write; the contents are lost"},
        CLI_ARG_FORCE_SHARE(image.force_share),
        CLI_ARG_IMAGE_OPTS(image.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    r = img_parse(args, &usage, argc, argv, &image, err);
    UNLESS_FAILED(r, img_prepare(&image, "cache", &objects, err));
    UNLESS_FAILED(r, parse_bench_texts(&t, &b, err));
    if (r < 0) {
        return r;
    }
    image.native_aio = native || (t.aio && strcmp(t.aio, "native") == 0);
    return co_bench(&b, &image, err);
}
