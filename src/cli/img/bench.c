/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "block/gate.h"
#include "cli/img/img.h"
#include "co/sync.h"
#include "loop/loop.h"

static const struct cli_usage usage = {
    .command = "bench",
    .synopsis = "FILENAME",
    .about = "Reads or writes an image in a simple pattern and tells how long it took. -w destroys "
             "its contents.",
    .examples = "  bench -c 100000 -d 32 -s 64k disk.qcow2\n"
                "  bench -w -f qcow2 --pattern=1 --flush-interval=1000 scratch.qcow2",
};

#define DEPTH_MAX 1024
#define REQUEST_MAX (1ULL << 30)

struct bench {
    struct cli_disk disk;
    uint64_t requests, depth, offset, size, step, flush_interval, pattern;
    bool is_write, no_drain, quiet;

    uint64_t sent, next_offset;
    uint64_t since_flush; /* writes */
    uint8_t *data;        /* what is written */
    int result;
    struct co_group group;
    struct co_rwlock flushing; /* with drained flushes: requests share it, a flush has it alone */
};

/* Where the next request goes: on by the step, from the beginning again behind the end. */
static uint64_t next_offset(struct bench *b)
{
    uint64_t room = cli_disk_size(&b->disk) - b->size;
    uint64_t offset = b->next_offset;

    b->next_offset += b->step;
    if (b->next_offset > room) {
        b->next_offset = room ? b->next_offset % room : 0;
    }
    return offset;
}

static int co_flush(struct bench *b)
{
    int rc;

    if (!b->no_drain) {
        co_rwlock_wrlock(&b->flushing);
    }
    rc = block_co_flush(b->disk.edge);
    if (!b->no_drain) {
        co_rwlock_unlock(&b->flushing);
    }
    return rc;
}

static int co_request(struct bench *b, uint8_t *buffer)
{
    uint64_t offset = next_offset(b);
    bool flush = false;
    int rc;

    b->sent++;
    co_rwlock_rdlock(&b->flushing);
    rc = b->is_write ? block_co_pwrite(b->disk.edge, offset, b->data, b->size, 0)
                     : block_co_pread(b->disk.edge, offset, buffer, b->size);
    co_rwlock_unlock(&b->flushing);
    if (b->flush_interval && ++b->since_flush >= b->flush_interval) {
        b->since_flush = 0;
        flush = true;
    }
    return rc == 0 && flush ? co_flush(b) : rc;
}

static void co_work(void *arg)
{
    struct bench *b = arg;
    uint8_t *buffer = b->is_write ? NULL : aligned_alloc(4096, round_up(b->size, 4096));
    int rc = !b->is_write && !buffer ? -ENOMEM : 0;

    while (rc == 0 && b->result == 0 && b->sent < b->requests) {
        rc = co_request(b, buffer);
    }
    if (rc < 0) {
        b->result = rc;
    }
    free(buffer);
    co_group_done(&b->group);
}

static int co_run_all(struct bench *b)
{
    co_group_init(&b->group);
    co_rwlock_init(&b->flushing);
    for (uint64_t i = 0; i < b->depth; i++) {
        co_group_add(&b->group);
        if (reactor_spawn(reactor_main(), co_work, b) < 0) {
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

static int co_bench(struct bench *b, const struct cli_image *image)
{
    int64_t began;
    int rc;
    ERROR_AUTO(err);

    if (cli_co_open_disk(image, b->is_write ? BLOCK_OPEN_RDWR : 0, &b->disk, &err) < 0) {
        return cli_report(&err);
    }
    if (b->size > cli_disk_size(&b->disk) || b->offset > cli_disk_size(&b->disk) - b->size) {
        return cli_fail("The first request, %" PRIu64 " bytes at offset %" PRIu64
                        ", lies beyond the end of the image",
                        b->size, b->offset);
    }
    if (b->is_write) {
        b->data = aligned_alloc(4096, round_up(b->size, 4096));
        if (!b->data) {
            return cli_fail("Out of memory");
        }
        memset(b->data, (int)b->pattern, b->size);
    }
    if (!b->quiet) {
        printf("Sending %" PRIu64 " %s requests, %" PRIu64 " bytes each, %" PRIu64
               " in parallel (starting at offset %" PRIu64 ", step size %" PRIu64 ")\n",
               b->requests, b->is_write ? "write" : "read", b->size, b->depth, b->offset, b->step);
        if (b->flush_interval) {
            printf("Sending flush every %" PRIu64 " %srequests\n", b->flush_interval,
                   b->no_drain ? "" : "drained ");
        }
    }
    b->next_offset = b->offset;
    began = loop_now_ns();
    rc = co_run_all(b);
    if (rc < 0) {
        return cli_fail("Failed request: %s", strerror(-rc));
    }
    if (!b->quiet) {
        printf("Run completed in %3.3f seconds.\n", (double)(loop_now_ns() - began) / 1e9);
    }
    return cli_co_finish_disk(&b->disk, &err) < 0 ? cli_report(&err) : 0;
}

struct texts {
    const char *count, *depth, *flush_interval, *offset, *pattern, *size, *step, *aio;
};

static int parse_numbers(const struct texts *t, struct bench *b)
{
    if ((t->count && cli_parse_number(t->count, "request count", 1, INT32_MAX, &b->requests) < 0) ||
        (t->depth && cli_parse_number(t->depth, "queue depth", 1, DEPTH_MAX, &b->depth) < 0) ||
        (t->flush_interval && cli_parse_number(t->flush_interval, "flush interval", 0, INT32_MAX,
                                               &b->flush_interval) < 0) ||
        (t->offset && cli_parse_size(t->offset, "offset", 0, INT64_MAX, &b->offset) < 0) ||
        (t->pattern && cli_parse_number(t->pattern, "pattern byte", 0, 255, &b->pattern) < 0) ||
        (t->size && cli_parse_size(t->size, "buffer size", 1, REQUEST_MAX, &b->size) < 0) ||
        (t->step && cli_parse_size(t->step, "step size", 0, INT32_MAX, &b->step) < 0)) {
        return 1;
    }
    if (b->step == 0) {
        b->step = b->size;
    }
    if (b->flush_interval && !b->is_write) {
        return cli_fail("--flush-interval is only available in write tests");
    }
    if (b->flush_interval && b->flush_interval < b->depth) {
        return cli_fail("Flush interval can't be smaller than depth");
    }
    return 0;
}

static void bench_release(struct bench *b)
{
    cli_co_close_disk(&b->disk);
    free(b->data);
}

int img_bench_main(int argc, char **argv)
{
    __attribute__((cleanup(bench_release))) struct bench b = {
        .requests = 75000, .depth = 64, .size = 4096};
    struct cli_image image = {.cache = "writeback"};
    struct texts t = {0};
    bool native = false;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"count", 'c', CLI_VALUE, &t.count, "COUNT", "number of requests (default 75000)"},
        {"depth", 'd', CLI_VALUE, &t.depth, "DEPTH", "requests in flight (default 64)"},
        IMG_ARG_FORMAT(image.format),
        {"flush-interval", 0, CLI_VALUE, &t.flush_interval, "N", "flush after every N writes"},
        {"no-drain", 0, CLI_FLAG, &b.no_drain, NULL, "writes go on while a flush is under way"},
        {"aio", 'i', CLI_VALUE, &t.aio, "AIO",
         "threads, native or io_uring: checked, and done as by default"},
        {"native", 'n', CLI_FLAG, &native, NULL, "as -i native"},
        {"offset", 'o', CLI_VALUE, &t.offset, "OFFSET", "where to begin (default 0)"},
        {"pattern", 0, CLI_VALUE, &t.pattern, "BYTE", "what to write (default 0)"},
        IMG_ARG_QUIET(b.quiet),
        {"buffer-size", 's', CLI_VALUE, &t.size, "SIZE", "size of a request (default 4k)"},
        {"step-size", 'S', CLI_VALUE, &t.step, "SIZE",
         "from one request to the next (default: size of a request)"},
        {"cache", 't', CLI_VALUE, &image.cache, "CACHE", "cache mode (default writeback)"},
        {"write", 'w', CLI_FLAG, &b.is_write, NULL, "write; the contents are lost"},
        IMG_ARG_SHARE(image.force_share),
        IMG_ARG_IMAGE_OPTS(image.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (first != argc - 1) {
        return cli_usage_fail(&usage, "Expecting one image file name");
    }
    if (cli_check_cache_mode(image.cache, "cache") < 0 || cli_check_aio_mode(t.aio) < 0 ||
        cli_add_objects(&objects) || parse_numbers(&t, &b)) {
        return 1;
    }
    image.name = argv[first];
    image.native_aio = native || (t.aio && strcmp(t.aio, "native") == 0);
    return co_bench(&b, &image);
}
