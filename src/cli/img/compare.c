/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "compare",
    .synopsis = "FILENAME1 FILENAME2",
    .about = "Compares the contents of two disks. If one is larger, the rest of it must be zero. "
             "The exit status\n"
             "is 0 if they are the same, 1 if they differ, 2 or more if they could not be "
             "compared.",
    .examples = "@disk.raw disk.qcow2\n"
                "@-s -f raw -F raw a.img b.img",
};

/* Exit statuses, as qemu-img has them. Those from 2 on come with an error. */
enum compare_status {
    COMPARE_SAME = 0,
    COMPARE_DIFFER = 1,
    COMPARE_CANNOT_OPEN = 2,
    COMPARE_NO_STATUS = 3,
    COMPARE_NO_READ = 4,
};

/* The flags of the status that must be the same in strict mode. */
#define STRICT_FLAGS (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED)

struct compare {
    struct cli_disk disk[2];
    uint8_t *buffer[2];
    bool strict, quiet;
    bool sizes_differ; /* and a warning about that is still to be printed, with the result */
    struct progress progress;
    struct error *err; /* of the command */
};

/* An error comes before the warning, as from qemu-img. */
static void warn_about_sizes(struct compare *c)
{
    if (c->sizes_differ && !c->quiet) {
        if (error_is_set(c->err)) {
            cli_report(c->err);
        }
        printf("Warning: Image size mismatch!\n");
    }
    c->sizes_differ = false;
}

/* Print how the disks differ. */
__attribute__((format(printf, 2, 3))) static enum compare_status
print_difference(struct compare *c, const char *fmt, ...)
{
    va_list ap;

    progress_end(&c->progress, false);
    warn_about_sizes(c);
    if (!c->quiet) {
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
    }
    return COMPARE_DIFFER;
}

static enum compare_status co_read_disk(struct compare *c, int which, uint64_t offset,
                                        uint64_t length)
{
    struct cli_disk *disk = &c->disk[which];
    int r = block_co_pread(disk->edge, offset, c->buffer[which], (size_t)length);

    if (r < 0) {
        error_set_errno(c->err, -r, "Error while reading offset %" PRIu64 " of %s", offset,
                        disk->name);
        return COMPARE_NO_READ;
    }
    return COMPARE_SAME;
}

static enum compare_status co_compare_status(struct compare *c, int which, uint64_t offset,
                                             uint64_t length, struct cli_extent *ret_extent)
{
    struct cli_disk *disk = &c->disk[which];
    int r = cli_co_extent(disk, offset, length, ret_extent);

    if (r < 0) {
        error_set_errno(c->err, -r, "Sector allocation test failed for %s at offset %" PRIu64,
                        disk->name, offset);
        return COMPARE_NO_STATUS;
    }
    return COMPARE_SAME;
}

static bool is_zero(const struct cli_extent *e)
{
    return e->flags & BLOCK_STATUS_ZERO;
}

/* The index of the first byte that is not zero; `size` if there is none. */
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
        size_t piece = (size_t)MIN(length, CLI_BUFFER_SIZE);
        enum compare_status status = co_read_disk(c, which, offset, piece);
        size_t at;

        if (status != COMPARE_SAME) {
            return status;
        }
        at = first_nonzero(c->buffer[which], piece);
        if (at < piece) {
            return print_difference(c, "Content mismatch at offset %" PRIu64 "!\n",
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
        size_t piece = (size_t)MIN(length, CLI_BUFFER_SIZE);
        enum compare_status status = co_read_disk(c, 0, offset, piece);
        size_t at;

        status = status == COMPARE_SAME ? co_read_disk(c, 1, offset, piece) : status;
        if (status != COMPARE_SAME) {
            return status;
        }
        at = first_difference(c->buffer[0], c->buffer[1], piece);
        if (at < piece) {
            return print_difference(c, "Content mismatch at offset %" PRIu64 "!\n",
                                    round_down(offset + at, 512));
        }
        offset += piece;
        length -= piece;
    }
    return COMPARE_SAME;
}

/* Compare the part that both disks have. */
static enum compare_status co_compare_common(struct compare *c, uint64_t size)
{
    for (uint64_t at = 0; at < size;) {
        struct cli_extent e[2];
        uint64_t length = MIN(size - at, CLI_STATUS_STEP);
        enum compare_status status = co_compare_status(c, 0, at, length, &e[0]);

        status = status == COMPARE_SAME ? co_compare_status(c, 1, at, length, &e[1]) : status;
        if (status != COMPARE_SAME) {
            return status;
        }
        length = MIN(e[0].length, e[1].length);
        if (c->strict && ((e[0].flags ^ e[1].flags) & STRICT_FLAGS)) {
            return print_difference(c, "Strict mode: Offset %" PRIu64 " block status mismatch!\n",
                                    at);
        }
        if (!is_zero(&e[0]) && !is_zero(&e[1])) {
            length = MIN(length, CLI_BUFFER_SIZE);
            status = co_expect_same(c, at, length);
        } else if (!is_zero(&e[0]) || !is_zero(&e[1])) {
            length = MIN(length, CLI_BUFFER_SIZE);
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

/* Compare the larger disk with zeroes beyond the end of the other one. */
static enum compare_status co_compare_rest(struct compare *c, int which, uint64_t from,
                                           uint64_t size)
{
    for (uint64_t at = from; at < size;) {
        struct cli_extent e;
        enum compare_status status =
            co_compare_status(c, which, at, MIN(size - at, CLI_STATUS_STEP), &e);

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
        return print_difference(c, "Strict mode: Image size mismatch!\n");
    }
    img_progress_begin(&c->progress, show_progress, MAX(size[0], size[1]));
    status = co_compare_common(c, common);
    if (status == COMPARE_SAME && size[0] != size[1]) {
        c->sizes_differ = true;
        status = co_compare_rest(c, larger, common, size[larger]);
        warn_about_sizes(c);
    }
    if (status == COMPARE_SAME) {
        progress_end(&c->progress, true);
        if (!c->quiet) {
            printf("Images are identical.\n");
        }
    }
    return status;
}

/* Open both images, and make the buffers. */
static int co_open_both(struct compare *c, const struct cli_image image[2])
{
    for (int i = 0; i < 2; i++) {
        int r;

        c->buffer[i] = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);
        if (!c->buffer[i]) {
            return error_out_of_memory(c->err);
        }
        r = cli_co_open_disk(&image[i], 0, &c->disk[i], c->err);
        if (r < 0) {
            return r;
        }
    }
    return 0;
}

static void co_compare_release(struct compare *c)
{
    for (int i = 0; i < 2; i++) {
        cli_co_close_disk(&c->disk[i]);
        free(c->buffer[i]);
    }
}

int img_co_compare(int argc, char **argv, struct error *err)
{
    __attribute__((cleanup(co_compare_release))) struct compare c = {.err = err};
    struct cli_image image[2] = {{.cache = "writeback"}, {.cache = "writeback"}};
    bool progress = false;
    int first, r;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"a-format", 'f', CLI_VALUE, &image[0].format, "FMT",
         "format of the first image; guessed if not given"},
        {"b-format", 'F', CLI_VALUE, &image[1].format, "FMT", "format of the second image"},
        {"strict", 's', CLI_FLAG, &c.strict, NULL, "sizes and allocation must be the same, too"},
        CLI_ARG_PROGRESS(progress),
        CLI_ARG_QUIET(c.quiet),
        {"cache", 'T', CLI_VALUE, &image[0].cache, "CACHE", "cache mode of both images"},
        CLI_ARG_FORCE_SHARE(image[0].force_share),
        CLI_ARG_IMAGE_OPTS(image[0].image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    if (first != argc - 2) {
        return cli_usage_error(err, &usage, "Expecting two image file names");
    }
    image[0].name = argv[first];
    image[1].name = argv[first + 1];
    image[1].cache = image[0].cache;
    image[1].force_share = image[0].force_share;
    image[1].image_opts = image[0].image_opts;
    r = img_prepare(&image[0], "source cache", &objects, err);
    if (r == CLI_ARGS_HELP) {
        return r;
    }
    if (r < 0 || co_open_both(&c, image) < 0) {
        return COMPARE_CANNOT_OPEN;
    }
    return (int)co_compare(&c, progress && !c.quiet);
}
