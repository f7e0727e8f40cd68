/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "qcow2_fixture.h"

#include "file/file_drivers.h"
#include "loop/loop.h"
#include "qcow2/qcow2.h"

static char message[1024];

/* --- make and open ---------------------------------------------------------------------------- */

const char *image_create_fails(const char *name, uint64_t size, const char *options)
{
    struct options *opts = NULL;
    char filename[128];
    ERROR_AUTO(err);
    int r;

    snprintf(filename, sizeof(filename), "memory:%s", name);
    r = options[0] ? options_parse(options, NULL, &opts, &err) : 0;
    if (r == 0) {
        r = block_co_create_image("qcow2", filename, size, opts ? opts : options_new(), &err);
    }
    snprintf(message, sizeof(message), "%s", r < 0 ? error_message(&err) : "");
    return r < 0 ? message : NULL;
}

void image_create(const char *name, uint64_t size, const char *options)
{
    const char *error = image_create_fails(name, size, options);

    if (error) {
        fail_msg("%s: %s", options, error);
    }
}

static int open_node(const char *name, unsigned flags, const char *options, struct block_node **ret)
{
    struct options *opts = NULL;
    char text[512];
    ERROR_AUTO(err);
    int r;

    snprintf(text, sizeof(text),
             "driver=qcow2,discard=unmap,file.driver=memory-file,file.name=%s%s", name, options);
    r = options_parse(text, NULL, &opts, &err);
    r = r < 0 ? r : block_co_open(opts, flags, ret, &err);
    snprintf(message, sizeof(message), "%s", r < 0 ? error_message(&err) : "");
    return r;
}

static void open_image(struct image *i, const char *name, const char *options, unsigned flags)
{
    unsigned perm = BLOCK_PERM_CONSISTENT_READ | (flags ? BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE : 0);
    ERROR_AUTO(err);

    i->file = memory_file(name);
    if (open_node(name, flags, options, &i->node) < 0) {
        fail_msg("%s: %s", name, message);
    }
    if (block_co_root_new(i->node, "guest", perm, BLOCK_PERM_ALL, &i->root, &err) < 0) {
        fail_msg("%s: %s", name, error_message(&err));
    }
    i->edge = block_root_edge(i->root);
    i->q = qcow2_state(i->node);
}

void image_open(struct image *i, const char *name, const char *options)
{
    open_image(i, name, options, BLOCK_OPEN_RDWR);
}

void image_open_alone(struct image *i, const char *name)
{
    open_image(i, name, "", BLOCK_OPEN_RDWR | BLOCK_OPEN_NO_BACKING);
}

void image_open_read_only(struct image *i, const char *name)
{
    open_image(i, name, "", 0);
}

void image_open_to_check(struct image *i, const char *name)
{
    open_image(i, name, "", BLOCK_OPEN_RDWR | BLOCK_OPEN_CHECK);
}

const char *image_open_fails(const char *name, unsigned flags)
{
    struct block_node *node;

    if (open_node(name, flags, "", &node) == 0) {
        block_co_unref(node);
        return NULL;
    }
    return message;
}

void image_close(struct image *i)
{
    ERROR_AUTO(err);

    block_co_root_release(i->root);
    if (block_co_inactivate(i->node, &err) < 0) {
        fail_msg("closing '%s': %s", i->file->name, error_message(&err));
    }
    block_co_unref(i->node);
}

void image_kill(struct image *i)
{
    struct memory_file *kept = memory_file("kept");

    memory_file_copy(kept, i->file);
    block_co_root_release(i->root);
    block_co_unref(i->node);
    memory_file_copy(i->file, kept);
}

/* --- use -------------------------------------------------------------------------------------- */

int image_write(struct image *i, uint64_t offset, uint64_t length, int byte)
{
    uint8_t *buf = malloc(length);
    int r;

    assert_non_null(buf);
    memset(buf, byte, length);
    r = block_co_pwrite(i->edge, offset, buf, length, 0);
    free(buf);
    return r;
}

void image_expect(struct image *i, uint64_t offset, uint64_t length, int byte)
{
    uint8_t *buf = malloc(length);

    assert_non_null(buf);
    assert_int_equal(block_co_pread(i->edge, offset, buf, length), 0);
    for (uint64_t at = 0; at < length; at++) {
        if (buf[at] != (uint8_t)byte) {
            fail_msg("byte %llu is %#x, expected %#x", (unsigned long long)(offset + at), buf[at],
                     byte);
        }
    }
    free(buf);
}

unsigned image_status(struct image *i, uint64_t offset)
{
    struct block_status status;

    assert_int_equal(block_co_status(i->edge, offset, 1, &status), 0);
    return status.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED |
                           BLOCK_STATUS_OFFSET | BLOCK_STATUS_COMPRESSED);
}

void image_check(const char *name, uint64_t leaks)
{
    struct block_check_result result;
    struct block_node *node;
    ERROR_AUTO(err);

    if (open_node(name, BLOCK_OPEN_CHECK | BLOCK_OPEN_NO_BACKING, "", &node) < 0) {
        fail_msg("%s", message);
    }
    assert_int_equal(node->driver->co_check(node, 0, &result, &err), 0);
    assert_int_equal(result.corruptions, 0);
    assert_int_equal(result.check_errors, 0);
    assert_true(result.leaks <= leaks);
    block_co_unref(node);
}

/* --- running ---------------------------------------------------------------------------------- */

int qcow2_group_setup(void **state)
{
    /* A failed assertion can't jump from a coroutine's stack to the runner's. */
    setenv("CMOCKA_TEST_ABORT", "1", 1);
    file_register_drivers();
    block_register_driver(&memory_file_driver);
    qcow2_register_driver();
    /* Tests of durable bitmaps ask for them. */
    qcow2_durable_bitmaps_off_by_default();
    return reactor_init_main(NULL);
}

int qcow2_group_teardown(void **state)
{
    memory_file_free_all();
    reactor_exit_main();
    return 0;
}

void run_in_coroutine(void **state)
{
    memory_file_free_all();
    assert_int_equal(reactor_run_until_done((co_entry *)*state, NULL), 0);
    assert_null(block_node_next(NULL));
}
