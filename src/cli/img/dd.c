/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "dd",
    .synopsis = "if=INPUT of=OUTPUT [bs=SIZE] [count=N] [skip=N]",
    .about = "Copies blocks of one disk to a new image, as dd(1) does: count and skip are in "
             "blocks of bs bytes.",
    .examples = "  dd -O qcow2 if=disk.raw of=part.qcow2 bs=1M skip=10 count=100",
};

#define BUFFER_SIZE ((size_t)(2 * MiB))

struct request {
    const char *input, *output, *output_format;
    uint64_t block_size, count, skip; /* count UINT64_MAX: all */
};

/* "if=x" and the like. Returns 0 or 1 (told). */
static int parse_operand(struct request *r, const char *text)
{
    const char *equals = strchr(text, '=');
    const char *value = equals ? equals + 1 : NULL;
    size_t len = equals ? (size_t)(equals - text) : 0;

    if (!equals) {
        return cli_fail("unrecognized operand %s", text);
    }
    if (strncmp(text, "if", len) == 0 && len == 2) {
        r->input = value;
        return 0;
    }
    if (strncmp(text, "of", len) == 0 && len == 2) {
        r->output = value;
        return 0;
    }
    if (strncmp(text, "bs", len) == 0 && len == 2) {
        return cli_parse_size(value, "bs", 1, INT32_MAX, &r->block_size) < 0;
    }
    if (strncmp(text, "count", len) == 0 && len == 5) {
        return cli_parse_size(value, "count", 0, INT64_MAX, &r->count) < 0;
    }
    if (strncmp(text, "skip", len) == 0 && len == 4) {
        return cli_parse_size(value, "skip", 0, INT64_MAX, &r->skip) < 0;
    }
    return cli_fail("unrecognized operand %.*s", (int)len, text);
}

/* The byte range of the input that is meant; what overflows lies beyond its end. */
static void choose_range(const struct request *r, uint64_t size, uint64_t *from, uint64_t *length)
{
    uint64_t begin, bytes;

    if (mul_overflows(r->skip, r->block_size, &begin) || begin > size) {
        cli_fail("%s: cannot skip to specified offset", r->input);
        begin = size;
    }
    if (r->count == UINT64_MAX || mul_overflows(r->count, r->block_size, &bytes)) {
        bytes = UINT64_MAX;
    }
    *from = begin;
    *length = MIN(bytes, size - begin);
}

static int co_copy(struct cli_disk *from, struct cli_disk *to, uint64_t offset, uint64_t length)
{
    AUTO_FREE uint8_t *buffer = aligned_alloc(4096, BUFFER_SIZE);

    if (!buffer) {
        return cli_fail("Out of memory");
    }
    for (uint64_t done = 0; done < length;) {
        size_t piece = (size_t)MIN(length - done, BUFFER_SIZE);
        int rc = block_co_pread(from->edge, offset + done, buffer, piece);

        if (rc < 0) {
            return cli_fail("error while reading from input image file '%s' at byte %" PRIu64
                            ": %s",
                            from->name, offset + done, strerror(-rc));
        }
        rc = block_co_pwrite(to->edge, done, buffer, piece, 0);
        if (rc < 0) {
            return cli_fail("error while writing to output image file '%s' at byte %" PRIu64 ": %s",
                            to->name, done, strerror(-rc));
        }
        done += piece;
    }
    return 0;
}

static int co_dd(const struct request *r, struct cli_image *input)
{
    struct cli_image output = {.name = r->output, .format = r->output_format};
    struct cli_new_image new_image = {
        .filename = r->output, .format = r->output_format, .has_size = true};
    uint64_t from, length;
    ERROR_AUTO(err);
    CLI_DISK_AUTO(source);
    CLI_DISK_AUTO(target);

    if (cli_co_open_disk(input, 0, &source, &err) < 0) {
        return cli_report(&err);
    }
    choose_range(r, cli_disk_size(&source), &from, &length);
    new_image.size = round_up(length, 512);
    if (cli_co_create(&new_image)) {
        return 1;
    }
    if (cli_co_open_disk(&output, BLOCK_OPEN_RDWR, &target, &err) < 0) {
        return cli_report(&err);
    }
    if (co_copy(&source, &target, from, length)) {
        return 1;
    }
    return cli_co_finish_disk(&target, &err) < 0 ? cli_report(&err) : 0;
}

int img_dd_main(int argc, char **argv)
{
    struct cli_image input = {0};
    struct request r = {.output_format = "raw", .block_size = 512, .count = UINT64_MAX};
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &input.format, "FMT",
         "format of the input; guessed if not given"},
        {"output-format", 'O', CLI_VALUE, &r.output_format, "FMT",
         "format of the output (default raw)"},
        IMG_ARG_SHARE(input.force_share),
        IMG_ARG_IMAGE_OPTS(input.image_opts),
        IMG_ARG_OBJECT(objects),
        IMG_ARG_END,
    };
    IMG_PARSE(first, args, &usage);

    for (int i = first; i < argc; i++) {
        if (parse_operand(&r, argv[i])) {
            return 1;
        }
    }
    if (!r.input || !r.output) {
        return cli_fail("Must specify both input and output files");
    }
    if (cli_add_objects(&objects)) {
        return 1;
    }
    input.name = r.input;
    return co_dd(&r, &input);
}
