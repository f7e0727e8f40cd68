/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2 images in memory files, for the tests of qcow2. Each test function runs in a coroutine of
 * the main reactor.
 */
#ifndef TIDEMARK_TESTS_QCOW2_FIXTURE_H
#define TIDEMARK_TESTS_QCOW2_FIXTURE_H

#include "memory_file.h"
#include "qcow2/image.h"

/* An open image with a guest on it. */
struct image {
    struct memory_file *file;
    struct block_node *node;
    struct block_root *root;
    struct block_edge *edge;
    struct qcow2 *q;
};

/* The image_ functions yield. A failure fails the test, unless stated. */

/* Create image NAME of `size` bytes; `options` as in "cluster_size=512". */
void image_create(const char *name, uint64_t size, const char *options);
/*
 * The same where it should fail: the error's sentence (a static buffer), or NULL if it succeeded.
 */
const char *image_create_fails(const char *name, uint64_t size, const char *options);
/* Open an image for writing; `options` of the node as in ",backing.driver=...", "" for none. */
void image_open(struct image *i, const char *name, const char *options);
/* The same without the backing file that the image names. */
void image_open_alone(struct image *i, const char *name);
/* Open an image for reading. */
void image_open_read_only(struct image *i, const char *name);
/* Open an image as `img check -r` does. */
void image_open_to_check(struct image *i, const char *name);
/*
 * Open an image that should not open: the error's sentence (a static buffer), or NULL if it opened.
 */
const char *image_open_fails(const char *name, unsigned flags);
/* Close. Storing metadata and bitmaps must succeed. */
void image_close(struct image *i);
/* Close without further writes: the file is what a killed process leaves. */
void image_kill(struct image *i);

/* Write `length` bytes of the value `byte`. Returns the result of the write. */
int image_write(struct image *i, uint64_t offset, uint64_t length, int byte);
/* Read, and compare all bytes with `byte`. */
void image_expect(struct image *i, uint64_t offset, uint64_t length, int byte);
/* Flags of block status at `offset`. */
unsigned image_status(struct image *i, uint64_t offset);
/* Open and check: no corruptions, no check errors, at most `leaks` leaked clusters. */
void image_check(const char *name, uint64_t leaks);

/* Set-up and tear-down of a cmocka group: the main reactor and the drivers. */
int qcow2_group_setup(void **state);
int qcow2_group_teardown(void **state);
/* The function of a test: runs *state, a function, in a coroutine of the main reactor. */
void run_in_coroutine(void **state);

/* An entry of the array of tests. */
#define CO_TEST(f)                                                                                 \
    {                                                                                              \
        .name = #f, .test_func = run_in_coroutine, .initial_state = (void *)(f)                    \
    }

#endif
