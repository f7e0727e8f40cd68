/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as an image: what the targets of several formats share. */
#ifndef TIDEMARK_TESTS_FORMAT_IMAGE_H
#define TIDEMARK_TESTS_FORMAT_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Called once: makes the reactor, and registers the driver. */
void format_image_init(void (*register_driver)(void));
/*
 * Open `size` bytes as an image of a format: read-only, then (if `writes`) for writing. All of it
 * gets a status and is read; some is written. Only a crash, or a status that makes no sense, fails.
 */
void format_image_try(const char *format, const uint8_t *data, size_t size, int writes);

/* Bytes of an image; what is between parts is zero. */
struct format_part {
    uint64_t offset;
    const uint8_t *data;
    size_t length;
};

struct format_parts {
    const struct format_part *part;
    size_t count;
    /* Of the image: at least the end of each part. */
    uint64_t size;
};

/* The same for a sparse image. */
void format_image_try_parts(const char *format, const struct format_parts *parts, int writes);
/*
 * From now on the images tried have a parent, of this number of bytes, all zeroes; or, if it is 0,
 * none.
 */
void format_image_set_parent(uint64_t size);

#endif
