/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "compare",
    .synopsis = "FILENAME1 FILENAME2",
    .about = "Compares what two disks hold. If one is larger, the rest of it must be zero. The "
             "exit status is 0 if\n"
             "they are the same, 1 if they differ, 2 or more if they could not be compared.",
    .examples = "  compare disk.raw disk.qcow2\n"
                "  compare -s -f raw -F raw a.img b.img",
};

enum compare_status {
    COMPARE_SAME = 0,
    COMPARE_DIFFER = 1,
    COMPARE_CANNOT_OPEN = 2,
    COMPARE_NO_STATUS = 3,
    COMPARE_NO_READ = 4,
};

#define BUFFER_SIZE ((size_t)(2 * MiB))
#define STEP (1ULL << 30)
/* What of the status has to be the same in strict mode. */
#define STRICT_FLAGS (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED)

struct compare {
    struct cli_disk disk[2];
    uint8_t *buffer[2];
    bool strict, quiet;
    bool sizes_differ; /* to be told with the result */
    struct progress progress;
};

static void tell_of_sizes(struct compare *c)
{
    if (c->sizes_differ && !c->quiet) {
        printf("Warning: Image size mismatch!\n");
    }
    c->sizes_differ = false;
}

__attribute__((format(printf, 2, 3))) static enum compare_status differ(struct compare *c,
                                                                        const char *fmt, ...)
{
    va_list ap;

    progress_end(&c->progress, false);
    tell_of_sizes(c);
    if (!c->quiet) {
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
    }
    return COMPARE_DIFFER;
}

static enum compare_status co_read(struct compare *c, int which, uint64_t offset, uint64_t length)
{
    struct cli_disk *disk = &c->disk[which];
    int rc = block_co_pread(disk->edge, offset, c->buffer[which], (size_t)length);

    if (rc < 0) {
        cli_fail("Error while reading offset %" PRIu64 " of %s: %s", offset, disk->name,
                 strerror(-rc));
        return COMPARE_NO_READ;
    }
    return COMPARE_SAME;
}

static enum compare_status co_status(struct compare *c, int which, uint64_t offset, uint64_t length,
                                     struct cli_extent *ret)
{
    struct cli_disk *disk = &c->disk[which];
    int rc = cli_co_extent(disk, offset, length, ret);

    if (rc < 0) {
        cli_fail("Sector allocation test failed for %s at offset %" PRIu64 ": %s", disk->name,
                 offset, strerror(-rc));
        return COMPARE_NO_STATUS;
    }
    return COMPARE_SAME;
}

static bool is_zero(const struct cli_extent *e)
{
    return e->flags & BLOCK_STATUS_ZERO;
}

/* The first byte that is not zero; `size` if there is none. */
static size_t first_nonzero(const uint8_t *buffer, size_t size)
{
    size_t at = 0;

    while (at + 512 <= size && buffer_is_zero(buffer + at, 512)) {
        at += 512;
    }
    while (at < size && buffer[at] == 0) {
        at++;
    }
    return at;
}

static size_t first_difference(const uint8_t *a, const uint8_t *b, size_t size)
{
    size_t at = 0;

    while (at + 512 <= size && memcmp(a + at, b + at, 512) == 0) {
        at += 512;
    }
    while (at < size && a[at] == b[at]) {
        at++;
    }
    return at;
}

/* Whether [offset, offset + length) of one disk holds zeroes only. */
static enum compare_status co_expect_zeroes(struct compare *c, int which, uint64_t offset,
                                            uint64_t length)
{
    while (length > 0) {
        size_t piece = (size_t)MIN(length, BUFFER_SIZE);
        enum compare_status status = co_read(c, which, offset, piece);
        size_t at;

        if (status != COMPARE_SAME) {
            return status;
        }
        at = first_nonzero(c->buffer[which], piece);
        if (at < piece) {
            return differ(c, "Content mismatch at offset %" PRIu64 "!\n",
                          round_down(offset + at, 512));
        }
        offset += piece;
        length -= piece;
    }
    return COMPARE_SAME;
}

static enum compare_status co_expect_same(struct compare *c, uint64_t offset, uint64_t length)
{
    while (length > 0) {
        size_t piece = (size_t)MIN(length, BUFFER_SIZE);
        enum compare_status status = co_read(c, 0, offset, piece);
        size_t at;

        status = status == COMPARE_SAME ? co_read(c, 1, offset, piece) : status;
        if (status != COMPARE_SAME) {
            return status;
        }
        at = first_difference(c->buffer[0], c->buffer[1], piece);
        if (at < piece) {
            return differ(c, "Content mismatch at offset %" PRIu64 "!\n",
                          round_down(offset + at, 512));
        }
        offset += piece;
        length -= piece;
    }
    return COMPARE_SAME;
}

/* The part that both disks have. */
static enum compare_status co_compare_common(struct compare *c, uint64_t size)
{
    for (uint64_t at = 0; at < size;) {
        struct cli_extent e[2];
        uint64_t length = MIN(size - at, STEP);
        enum compare_status status = co_status(c, 0, at, length, &e[0]);

        status = status == COMPARE_SAME ? co_status(c, 1, at, length, &e[1]) : status;
        if (status != COMPARE_SAME) {
            return status;
        }
        length = MIN(e[0].length, e[1].length);
        if (c->strict && ((e[0].flags ^ e[1].flags) & STRICT_FLAGS)) {
            return differ(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n", at);
        }
        if (!is_zero(&e[0]) && !is_zero(&e[1])) {
            length = MIN(length, BUFFER_SIZE);
            status = co_expect_same(c, at, length);
        } else if (!is_zero(&e[0]) || !is_zero(&e[1])) {
            length = MIN(length, BUFFER_SIZE);
            status = co_expect_zeroes(c, is_zero(&e[0]) ? 1 : 0, at, length);
        }
        if (status != COMPARE_SAME) {
            return status;
        }
        at += length;
        progress_add(&c->progress, length);
    }
    return COMPARE_SAME;
}

/* What the larger disk has beyond the end of the other. */
static enum compare_status co_compare_rest(struct compare *c, int which, uint64_t from,
                                           uint64_t size)
{
    for (uint64_t at = from; at < size;) {
        struct cli_extent e;
        enum compare_status status = co_status(c, which, at, MIN(size - at, STEP), &e);

        if (status == COMPARE_SAME && !is_zero(&e)) {
            status = co_expect_zeroes(c, which, at, e.length);
        }
        if (status != COMPARE_SAME) {
            return status;
        }
        at += e.length;
        progress_add(&c->progress, e.length);
    }
    return COMPARE_SAME;
}

static enum compare_status co_compare(struct compare *c, bool show_progress)
{
    uint64_t size[2] = {cli_disk_size(&c->disk[0]), cli_disk_size(&c->disk[1])};
    uint64_t common = MIN(size[0], size[1]);
    int larger = size[1] > size[0];
    enum compare_status status;

    if (c->strict && size[0] != size[1]) {
        return differ(c, "Strict mode: Image size mismatch!\n");
    }
    img_progress_begin(&c->progress, show_progress, MAX(size[0], size[1]));
    status = co_compare_common(c, common);
    if (status == COMPARE_SAME && size[0] != size[1]) {
        c->sizes_differ = true;
        status = co_compare_rest(c, larger, common, size[larger]);
        tell_of_sizes(c);
    }
    if (status == COMPARE_SAME) {
        progress_end(&c->progress, true);
        if (!c->quiet) {
            printf("Images are identical.\n");
        }
    }
    return status;
}

int img_compare_main(int argc, char **argv)
{
    struct cli_image image[2] = {{.cache = "writeback"}, {.cache = "writeback"}};
    struct compare c = {0};
    bool progress = false, share = false, image_opts = false;
    enum compare_status status = COMPARE_CANNOT_OPEN;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"a-format", 'f', CLI_VALUE, &image[0].format, "FMT",
         "format of the first image; guessed if not given"},
        {"b-format", 'F', CLI_VALUE, &image[1].format, "FMT", "format of the second image"},
        {"strict", 's', CLI_FLAG, &c.strict, NULL, "sizes and allocation must be the same, too"},
        {"progress", 'p', CLI_FLAG, &progress, NULL, "show progress"},
        IMG_ARG_QUIET(c.quiet),
        {"cache", 'T', CLI_VALUE, &image[0].cache, "CACHE", "cache mode of both images"},
        IMG_ARG_SHARE(share),
        IMG_ARG_IMAGE_OPTS(image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    if (first != argc - 2) {
        return cli_usage_fail(&usage, "Expecting two image file names");
    }
    if (cli_check_cache_mode(image[0].cache, "source cache") < 0 || cli_add_objects(&objects)) {
        return COMPARE_CANNOT_OPEN;
    }
    image[1].cache = image[0].cache;
    c.buffer[0] = aligned_alloc(4096, BUFFER_SIZE);
    c.buffer[1] = aligned_alloc(4096, BUFFER_SIZE);
    for (int i = 0; i < 2; i++) {
        ERROR_AUTO(err);

        image[i].name = argv[first + i];
        image[i].force_share = share;
        image[i].image_opts = image_opts;
        if (!c.buffer[i]) {
            cli_fail("Out of memory");
            goto out;
        }
        if (cli_co_open_disk(&image[i], 0, &c.disk[i], &err) < 0) {
            cli_report(&err);
            goto out;
        }
    }
    status = co_compare(&c, progress && !c.quiet);
out:
    cli_co_close_disk(&c.disk[0]);
    cli_co_close_disk(&c.disk[1]);
    free(c.buffer[0]);
    free(c.buffer[1]);
    return (int)status;
}
