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

/* Make image NAME; `options` as in "cluster_size=512". Failing fails the test. */
void image_create(const char *name, uint64_t size, const char *options);
/* The error's sentence where it is expected to fail (static buffer); NULL if it did not. */
const char *image_create_fails(const char *name, uint64_t size, const char *options);
/* Open it; `options`: of the node, as in ",backing.driver=..."; "" for none. */
void image_open(struct image *i, const char *name, const char *options);
/* As above, without the backing file that it names. */
void image_open_alone(struct image *i, const char *name);
void image_open_read_only(struct image *i, const char *name);
/* As `img check -r` does. */
void image_open_to_check(struct image *i, const char *name);
const char *image_open_fails(const char *name, unsigned flags);
/* Close; storing what is to be stored must succeed. */
void image_close(struct image *i);
/* Close without any write from here on: what is in the file is what a killed process leaves. */
void image_kill(struct image *i);

int image_write(struct image *i, uint64_t offset, uint64_t length, int byte);
void image_expect(struct image *i, uint64_t offset, uint64_t length, int byte);
/* Flags of block status at `offset`. */
unsigned image_status(struct image *i, uint64_t offset);
/* Open by itself to check: no corruption, no error; at most `leaks` leaked clusters. */
void image_check(const char *name, uint64_t leaks);

int qcow2_group_setup(void **state);
int qcow2_group_teardown(void **state);
void run_in_coroutine(void **state);

#define CO_TEST(f)                                                                                 \
    {                                                                                              \
        .name = #f, .test_func = run_in_coroutine, .initial_state = (void *)(f)                    \
    }

#endif
