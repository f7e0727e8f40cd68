/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/create.h"
#include "cli/img/command_line.h"
#include "cli/img/img.h"

static const struct cli_usage usage = {
    .command = "dd",
    .synopsis = "if=INPUT of=OUTPUT [bs=SIZE] [count=N] [skip=N]",
    .about = "Copies blocks of one disk to a new image, as dd(1) does: count and skip are in "
             "blocks of bs bytes.",
    .examples = "@-O qcow2 if=disk.raw of=part.qcow2 bs=1M skip=10 count=100",
};

struct dd_request {
    const char *input, *output, *output_format;
    uint64_t block_size; /* bytes */
    uint64_t count;      /* blocks; UINT64_MAX: all */
    uint64_t skip;       /* blocks */
};

/* Parse "if=x" and the like. */
static int parse_operand(struct dd_request *q, const char *text, struct error *err)
{
    const char *equals = strchr(text, '=');
    const char *value = equals ? equals + 1 : NULL;
    size_t len = equals ? (size_t)(equals - text) : 0;

    if (!equals) {
        return error_set(err, EINVAL, "unrecognized operand %s", text);
    }
    if (strncmp(text, "if", len) == 0 && len == 2) {
        q->input = value;
        return 0;
    }
    if (strncmp(text, "of", len) == 0 && len == 2) {
        q->output = value;
        return 0;
    }
    if (strncmp(text, "bs", len) == 0 && len == 2) {
        return cli_parse_size(value, "bs", 1, INT32_MAX, &q->block_size, err);
    }
    if (strncmp(text, "count", len) == 0 && len == 5) {
        return cli_parse_size(value, "count", 0, INT64_MAX, &q->count, err);
    }
    if (strncmp(text, "skip", len) == 0 && len == 4) {
        return cli_parse_size(value, "skip", 0, INT64_MAX, &q->skip, err);
    }
    return error_set(err, EINVAL, "unrecognized operand %.*s", (int)len, text);
}

/*
 * The byte range of the input that is copied. What overflows lies beyond the end of the input,
 * which is no error, as in qemu-img.
 */
static void choose_range(const struct dd_request *q, uint64_t size, uint64_t *from,
                         uint64_t *length)
{
    uint64_t begin, bytes;

    if (mul_overflows(q->skip, q->block_size, &begin) || begin > size) {
        cli_fail("%s: cannot skip to specified offset", q->input);
        begin = size;
    }
    if (q->count == UINT64_MAX || mul_overflows(q->count, q->block_size, &bytes)) {
        bytes = UINT64_MAX;
    }
    *from = begin;
    *length = MIN(bytes, size - begin);
}

static int co_copy_blocks(struct cli_disk *from, struct cli_disk *to, uint64_t offset,
                          uint64_t length, struct error *err)
{
    AUTO_FREE uint8_t *buffer = aligned_alloc(CLI_BUFFER_ALIGNMENT, CLI_BUFFER_SIZE);

    if (!buffer) {
        return error_out_of_memory(err);
    }
    for (uint64_t done = 0; done < length;) {
        size_t piece = (size_t)MIN(length - done, CLI_BUFFER_SIZE);
        int r = block_co_pread(from->edge, offset + done, buffer, piece);

        if (r < 0) {
            return error_set_errno(err, -r, "error while reading from input image file");
        }
        r = block_co_pwrite(to->edge, done, buffer, piece, 0);
        if (r < 0) {
            return error_set_errno(err, -r, "error while writing to output image file");
        }
        done += piece;
    }
    return 0;
}

static int co_dd(const struct dd_request *q, const struct cli_image *input, struct error *err)
{
    struct cli_image output = {.name = q->output, .format = q->output_format};
    struct cli_new_image new_image = {
        .filename = q->output, .format = q->output_format, .has_size = true};
    uint64_t from, length;
    CLI_DISK_AUTO(source);
    CLI_DISK_AUTO(target);
    int r = cli_co_open_disk(input, 0, &source, err);

    if (r < 0) {
        return r;
    }
    choose_range(q, cli_disk_size(&source), &from, &length);
    new_image.size = round_up(length, 512);
    r = cli_co_create(&new_image, err);
    UNLESS_FAILED(r, cli_co_open_disk(&output, BLOCK_OPEN_RDWR, &target, err));
    UNLESS_FAILED(r, co_copy_blocks(&source, &target, from, length, err));
    return r < 0 ? r : cli_co_finish_disk(&target, err);
}

int img_co_dd(int argc, char **argv, struct error *err)
{
    struct cli_image input = {0};
    struct dd_request q = {.output_format = "raw", .block_size = 512, .count = UINT64_MAX};
    int first, r = 0;
    CLI_ITEMS_AUTO(objects);
    const struct cli_arg args[] = {
        {"format", 'f', CLI_VALUE, &input.format, "FMT",
         "format of the input; guessed if not given"},
        {"output-format", 'O', CLI_VALUE, &q.output_format, "FMT",
         "format of the output (default raw)"},
        CLI_ARG_FORCE_SHARE(input.force_share),
        CLI_ARG_IMAGE_OPTS(input.image_opts),
        CLI_ARG_OBJECT(objects),
        CLI_ARG_END,
    };

    first = cli_args_parse(args, &usage, argc, argv);
    if (first < 0) {
        return first;
    }
    for (int i = first; i < argc; i++) {
        UNLESS_FAILED(r, parse_operand(&q, argv[i], err));
    }
    if (r < 0) {
        return r;
    }
    if (!q.input || !q.output) {
        return error_set(err, EINVAL, "Must specify both input and output files");
    }
    input.name = q.input;
    r = cli_add_objects(&objects, err);
    return r < 0 ? r : co_dd(&q, &input, err);
}
