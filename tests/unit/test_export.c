/* SPDX-License-Identifier: Apache-2.0 */
/* Exports and their rules, with the project's own client over a unix socket. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "block/bitmaps.h"
#include "block/gate.h"
#include "export/export.h"
#include "file/file_drivers.h"
#include "loop/loop.h"
#include "memory_disk.h"
#include "nbd/client.h"
#include "nbd/nbd.h"
#include "nbd/proto.h"

#define SIZE (8u << 20)

static char socket_path[64];
static char deleted[256]; /* ids of BLOCK_EXPORT_DELETED events, each with a space after it */

static void on_event(enum export_event event, const char *id, void *arg)
{
    size_t len = strlen(deleted);

    assert_int_equal(event, EXPORT_EVENT_DELETED);
    snprintf(deleted + len, sizeof(deleted) - len, "%s ", id);
}

/* --- helpers: all in a coroutine of the main reactor ------------------------------------------------- */

static struct block_node *co_open(const char *text, unsigned flags)
{
    struct options *opts;
    struct block_node *node = NULL;
    ERROR_AUTO(err);

    if (options_parse(text, NULL, &opts, &err) < 0 || block_co_open(opts, flags, &node, &err) < 0) {
        fail_msg("%s: %s", text, error_message(&err));
    }
    return node;
}

static struct block_node *co_open_disk(const char *name)
{
    char text[128];

    snprintf(text, sizeof(text), "driver=memory-disk,size=%u,node-name=%s", SIZE, name);
    return co_open(text, BLOCK_OPEN_RDWR);
}

static void co_start_server(void)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;
    ERROR_AUTO(err);

    config.unix_path = socket_path;
    if (export_co_nbd_server_start(&config, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
}

static struct export_config config_for(const char *id, const char *node)
{
    struct export_config config = EXPORT_CONFIG_INIT;

    config.id = id;
    config.node_name = node;
    return config;
}

static void co_assert_added(const struct export_config *config)
{
    ERROR_AUTO(err);

    if (export_co_add(config, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
}

static void co_assert_refused(const struct export_config *config, int code, const char *sentence)
{
    ERROR_AUTO(err);

    assert_int_equal(export_co_add(config, &err), code);
    if (!strstr(error_message(&err), sentence)) {
        fail_msg("'%s' is not in '%s'", sentence, error_message(&err));
    }
}

static struct nbd_client *co_connect(const char *name, const char *const *contexts, size_t count)
{
    struct nbd_address address = {.path = socket_path};
    struct nbd_client *c = NULL;
    ERROR_AUTO(err);

    if (nbd_client_co_connect(&address, NULL, name, contexts, count, 5000000000, &c, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
    return c;
}

static struct block_bitmap *co_add_bitmap(struct block_node *node, const char *name, bool disabled)
{
    struct block_bitmap *b;

    assert_int_equal(block_co_bitmap_add(node, name, 65536, false, disabled, &b, NULL), 0);
    return b;
}

/* --- tests --------------------------------------------------------------------------------------- */

static void co_reads_and_writes_reach_the_node(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = config_for("e", "disk");
    struct nbd_client *c;
    uint8_t out[10000], in[sizeof(out)];

    co_start_server();
    config.writable = true;
    config.name = "name";
    config.description = "what it is";
    co_assert_added(&config);
    c = co_connect("name", NULL, 0);
    assert_int_equal(nbd_client_size(c), SIZE);
    assert_string_equal(nbd_client_description(c), "what it is");
    memset(out, 7, sizeof(out));
    assert_int_equal(
        nbd_client_co_pwritev(c, 5000, iov_from_buf(&(struct iovec){0}, out, sizeof(out)), true),
        0);
    assert_int_equal(nbd_client_co_pread(c, 5000, in, sizeof(in)), 0);
    assert_memory_equal(in, out, sizeof(out));
    assert_int_equal(nbd_client_co_write_zeroes(c, 5000, 100, NBD_CMD_FLAG_NO_HOLE), 0);
    assert_int_equal(nbd_client_co_flush(c), 0);
    assert_int_equal(nbd_client_co_pread(c, SIZE - 10, in, 20), -EIO);
    nbd_client_co_close(c);
    assert_int_equal(export_co_nbd_server_stop(NULL), 0);
    /* Only now: nothing orders the memory of two threads before. */
    memset(out, 0, 100);
    assert_memory_equal(memory_disk_of(node)->data + 5000, out, sizeof(out));
    block_co_unref(node);
}

static void co_errors_of_the_node_reach_the_client(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = config_for("e", "disk");
    uint8_t buf[512] = {0};
    struct nbd_client *c;

    co_start_server();
    config.writable = true;
    co_assert_added(&config);
    c = co_connect("disk", NULL, 0);
    memory_disk_fail(memory_disk_of(node), MEMORY_DISK_WRITE, ENOSPC);
    assert_int_equal(
        nbd_client_co_pwritev(c, 0, iov_from_buf(&(struct iovec){0}, buf, sizeof(buf)), false),
        -ENOSPC);
    memory_disk_fail(memory_disk_of(node), MEMORY_DISK_READ, EIO);
    assert_int_equal(nbd_client_co_pread(c, 0, buf, sizeof(buf)), -EIO);
    memory_disk_fail(memory_disk_of(node), 0, 0);
    assert_int_equal(nbd_client_co_pread(c, 0, buf, sizeof(buf)), 0);
    nbd_client_co_close(c);
    export_co_nbd_server_stop(NULL);
    block_co_unref(node);
}

static void co_wrong_exports_leave_nothing_behind(void)
{
    struct block_node *node = co_open_disk("disk");
    struct block_bitmap *b = co_add_bitmap(node, "b", true);
    struct export_bitmap bitmaps[] = {{NULL, "b"}, {NULL, "absent"}};
    struct export_config config = config_for("e", "disk");
    ERROR_AUTO(err);

    co_assert_refused(&config, -EINVAL, "NBD server not running");
    co_start_server();
    config.node_name = "nowhere";
    co_assert_refused(&config, -ENOENT, "nowhere");
    config.node_name = "disk";
    config.id = "no/id";
    co_assert_refused(&config, -EINVAL, "Invalid block export id");
    config.id = "e";
    config.bitmaps = bitmaps;
    config.bitmap_count = 2;
    co_assert_refused(&config, -ENOENT, "Bitmap 'absent' is not found");
    assert_int_equal(b->busy, 0);
    assert_false(block_node_in_use(node));
    assert_false(export_find("e", &(struct export_info){0}));

    config.bitmap_count = 1;
    co_assert_added(&config);
    assert_int_equal(b->busy, 1);
    co_assert_refused(&config, -EEXIST, "'e' is already in use");
    config.id = "other";
    co_assert_refused(&config, -EEXIST, "already has export named 'disk'");
    assert_int_equal(b->busy, 1);
    assert_int_equal(export_co_del("e", EXPORT_DEL_SAFE, true, NULL), 0);
    assert_int_equal(b->busy, 0);
    assert_int_equal(export_co_del("e", EXPORT_DEL_SAFE, true, &err), -ENOENT);
    assert_string_equal(error_message(&err), "Export 'e' is not found");
    co_assert_added(&config);
    export_co_nbd_server_stop(NULL);
    assert_string_equal(deleted, "e other ");
    assert_false(block_node_in_use(node));
    block_co_unref(node);
}

static void co_enabled_bitmap_needs_a_node_that_cannot_change(void)
{
    struct block_node *node = co_open_disk("disk");
    struct block_bitmap *b = co_add_bitmap(node, "b", false);
    struct export_bitmap bitmap = {NULL, "b"};
    struct export_config config = config_for("e", "disk");

    co_start_server();
    config.bitmaps = &bitmap;
    config.bitmap_count = 1;
    co_assert_refused(&config, -EINVAL,
                      "Enabled bitmap 'b' incompatible with readonly export: node 'disk' can be "
                      "written, and the bitmap "
                      "would change; disable it first (block-dirty-bitmap-disable)");
    config.writable = true;
    co_assert_added(&config);
    assert_int_equal(export_co_del("e", EXPORT_DEL_HARD, true, NULL), 0);
    config.writable = false;
    assert_int_equal(block_co_bitmap_set_enabled(b, false, NULL), 0);
    co_assert_added(&config);
    export_co_nbd_server_stop(NULL);
    block_co_unref(node);
}

static void co_bitmap_is_read_as_a_context(void)
{
    static const char *const contexts[] = {"qemu:dirty-bitmap:nope", "base:allocation",
                                           "qemu:dirty-bitmap:b"};
    struct block_node *node = co_open_disk("disk");
    struct block_bitmap *b = co_add_bitmap(node, "b", true);
    struct export_bitmap bitmap = {"disk", "b"};
    struct export_config config = config_for("e", "disk");
    struct nbd_extents extents[3];
    struct nbd_client *c;

    dirty_bitmap_set(b->bits, 1 << 20, 1 << 16);
    co_start_server();
    config.bitmaps = &bitmap;
    config.bitmap_count = 1;
    co_assert_added(&config);
    c = co_connect("disk", contexts, 3);
    assert_false(nbd_client_context(c, 0));
    assert_true(nbd_client_context(c, 1));
    assert_true(nbd_client_context(c, 2));
    assert_int_equal(nbd_client_co_block_status(c, 4096, SIZE - 4096, false, extents), 0);
    assert_int_equal(extents[0].count, 0);
    assert_true(extents[1].count >= 1);
    assert_int_equal(extents[2].count, 3);
    assert_int_equal(extents[2].list[0].length, (1 << 20) - 4096);
    assert_int_equal(extents[2].list[0].flags, 0);
    assert_int_equal(extents[2].list[1].length, 1 << 16);
    assert_int_equal(extents[2].list[1].flags, NBD_STATE_DIRTY);
    assert_int_equal(extents[2].list[2].length, SIZE - (1 << 20) - (1 << 16));
    for (int i = 0; i < 3; i++) {
        nbd_extents_clear(&extents[i]);
    }
    nbd_client_co_close(c);
    export_co_nbd_server_stop(NULL);
    block_co_unref(node);
}

/* A read that somebody else makes. */
struct reader {
    struct nbd_client *client;
    int result;
    bool done;
    uint8_t buf[512];
};

static void reader_entry(void *arg)
{
    struct reader *r = arg;

    r->result = nbd_client_co_pread(r->client, 0, r->buf, sizeof(r->buf));
    r->done = true;
}

static void co_hard_deletion_waits_for_requests_and_drops_clients(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = config_for("e", "disk");
    struct memory_disk *disk = memory_disk_of(node);
    struct reader r = {0};
    struct export_info info;
    ERROR_AUTO(err);

    co_start_server();
    co_assert_added(&config);
    r.client = co_connect("disk", NULL, 0);
    assert_int_equal(export_co_del("e", EXPORT_DEL_SAFE, true, &err), -EBUSY);
    assert_string_equal(err.hint, "Use mode='hard' to force client disconnect");
    memory_disk_hold(disk, MEMORY_DISK_READ, 1);
    reactor_spawn(reactor_main(), reader_entry, &r);
    while (memory_disk_held(disk) == 0) {
        loop_co_sleep(1000000);
    }
    assert_int_equal(export_co_del("e", EXPORT_DEL_HARD, false, NULL), 0);
    loop_co_sleep(20000000);
    assert_true(export_find("e", &info));
    assert_true(info.shutting_down);
    error_clear(&err);
    assert_int_equal(export_co_del("e", EXPORT_DEL_HARD, false, &err), -EBUSY);
    assert_string_equal(deleted, "");
    memory_disk_release(disk);
    while (!r.done || export_find("e", &info)) {
        loop_co_sleep(1000000);
    }
    assert_string_equal(deleted, "e ");
    assert_int_equal(r.result, -EIO);
    nbd_client_co_close(r.client);
    export_co_nbd_server_stop(NULL);
    block_co_unref(node);
}

static void co_client_notices_nothing_of_another_node(void)
{
    struct block_node *first = co_open_disk("first");
    struct block_node *second = co_open_disk("second");
    struct export_config config = config_for("e", "first");
    struct nbd_client *c;
    uint8_t byte;

    memory_disk_of(second)->data[100] = 42;
    memory_disk_of(second)->written[0] = 1;
    co_start_server();
    co_assert_added(&config);
    c = co_connect("first", NULL, 0);
    assert_int_equal(nbd_client_co_pread(c, 100, &byte, 1), 0);
    assert_int_equal(byte, 0);
    assert_int_equal(export_co_replace_node("e", second, NULL), 0);
    assert_int_equal(nbd_client_co_pread(c, 100, &byte, 1), 0);
    assert_int_equal(byte, 42);
    assert_false(block_node_in_use(first));
    assert_int_equal(export_co_replace_node("absent", first, NULL), -ENOENT);
    nbd_client_co_close(c);
    export_co_nbd_server_stop(NULL);
    block_co_unref(first);
    block_co_unref(second);
}

/* --- the machinery ------------------------------------------------------------------------------- */

static void run_co(void *arg)
{
    void (*fn)(void) = *(void (**)(void))arg;

    fn();
}

static void run(void (*fn)(void))
{
    deleted[0] = '\0';
    assert_int_equal(reactor_run_until_done(run_co, &fn), 0);
}

#define TEST(name)                                                                                 \
    static void name(void **state)                                                                 \
    {                                                                                              \
        run(co_##name);                                                                            \
    }

TEST(reads_and_writes_reach_the_node)
TEST(errors_of_the_node_reach_the_client)
TEST(wrong_exports_leave_nothing_behind)
TEST(enabled_bitmap_needs_a_node_that_cannot_change)
TEST(bitmap_is_read_as_a_context)
TEST(hard_deletion_waits_for_requests_and_drops_clients)
TEST(client_notices_nothing_of_another_node)

static int set_up(void **state)
{
    snprintf(socket_path, sizeof(socket_path), "/tmp/tm-export-%d.sock", (int)getpid());
    block_register_driver(&memory_disk_driver);
    file_register_drivers();
    nbd_register_driver();
    export_set_event_fn(on_event, NULL);
    return reactor_init_main(NULL);
}

static int tear_down(void **state)
{
    reactor_exit_main();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_and_writes_reach_the_node),
        cmocka_unit_test(errors_of_the_node_reach_the_client),
        cmocka_unit_test(wrong_exports_leave_nothing_behind),
        cmocka_unit_test(enabled_bitmap_needs_a_node_that_cannot_change),
        cmocka_unit_test(bitmap_is_read_as_a_context),
        cmocka_unit_test(hard_deletion_waits_for_requests_and_drops_clients),
        cmocka_unit_test(client_notices_nothing_of_another_node),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
