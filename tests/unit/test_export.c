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
#include "export/export_type.h"
#include "export/nbd_server.h"
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

/* --- helpers: all in a coroutine of the main reactor ------------------------------------------ */

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
    struct socket_address address = {.path = socket_path};
    ERROR_AUTO(err);

    config.address = &address;
    if (export_co_nbd_server_start(&config, &err) < 0) {
        fail_msg("%s", error_message(&err));
    }
}

static struct options *nbd_options; /* of the current test; released by run() */

/* Give the export options of its type. */
static void set_options(struct export_config *config, const char *text)
{
    options_free(nbd_options);
    nbd_options = NULL;
    assert_int_equal(options_parse(text, NULL, &nbd_options, NULL), 0);
    config->options = nbd_options;
}

static struct export_config config_for(const char *id, const char *node)
{
    struct export_config config = EXPORT_CONFIG_INIT;

    config.type = "nbd";
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
    struct socket_address address = {.path = socket_path};
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

/* --- tests ------------------------------------------------------------------------------------ */

static void co_reads_and_writes_reach_the_node(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = config_for("e", "disk");
    struct nbd_client *c;
    uint8_t out[10000], in[sizeof(out)];

    co_start_server();
    config.writable = true;
    set_options(&config, "name=name,description=what it is");
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
    set_options(&config, "bitmaps.0=b,bitmaps.1=absent");
    co_assert_refused(&config, -ENOENT, "Bitmap 'absent' is not found");
    assert_int_equal(b->busy, 0);
    assert_false(block_node_in_use(node));
    assert_false(export_find("e", &(struct export_info){0}));

    set_options(&config, "bitmaps.0=b,colour=red");
    co_assert_refused(&config, -EINVAL, "NBD export does not support the option 'colour'");
    config.type = "no-type";
    co_assert_refused(&config, -EINVAL, "Export type 'no-type' is not supported");
    config.type = "nbd";
    set_options(&config, "bitmaps.0=b");
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
    struct export_config config = config_for("e", "disk");

    co_start_server();
    set_options(&config, "bitmaps.0=b");
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
    struct export_config config = config_for("e", "disk");
    struct nbd_extents extents[3];
    struct nbd_client *c;

    dirty_bitmap_set(b->bits, 1 << 20, 1 << 16);
    co_start_server();
    set_options(&config, "bitmaps.0.node=disk,bitmaps.0.name=b");
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
    uint8_t byte;
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
    /* What was in work is answered; after that the client is alone. */
    assert_int_equal(r.result, 0);
    assert_int_equal(nbd_client_co_pread(r.client, 0, &byte, 1), -EIO);
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

/* --- a type of exports that writes down what is called ---------------------------------------- */

static char notes[256]; /* calls, each with a space after it */

static void note(const char *what)
{
    size_t len = strlen(notes);

    snprintf(notes + len, sizeof(notes) - len, "%s ", what);
}

static struct noting {
    unsigned perm, shared;
    struct block_root *root;
    size_t clients;
    bool fails;
    int busy; /* how often drain_busy() still says so */
    uint64_t size;
} noting;

static int noting_parse(const struct export_config *config, struct options *opts, void **ret_state,
                        struct error *err)
{
    note("parse");
    *ret_state = &noting;
    return options_take_bool(opts, "fails", false, &noting.fails, err);
}

static void noting_adjust_permissions(const void *state, unsigned *perm, unsigned *shared)
{
    *perm |= noting.perm;
    *shared &= noting.shared;
}

static int noting_co_prepare(void *state, const struct export_access *access, struct error *err)
{
    note("prepare");
    noting.root = access->root;
    return noting.fails ? error_set(err, EIO, "It fails") : 0;
}

static void noting_publish(void *state)
{
    note("publish");
}

static void noting_stop_accepting(void *state)
{
    note("stop");
}

static void noting_co_disconnect(void *state)
{
    noting.clients = 0;
    note("disconnect");
}

static void noting_free(void *state)
{
    note("free");
}

static size_t noting_client_count(const void *state)
{
    return noting.clients;
}

static void noting_resized(void *state, uint64_t size)
{
    note("resized");
    noting.size = size;
}

static void noting_drain_begin(void *state)
{
    note("begin");
}

static bool noting_drain_busy(void *state)
{
    return noting.busy-- > 0;
}

static void noting_drain_end(void *state)
{
    note("end");
}

static const struct export_type noting_type = {
    .name = "noting",
    .title = "Noting export",
    .parse = noting_parse,
    .adjust_permissions = noting_adjust_permissions,
    .co_prepare = noting_co_prepare,
    .publish = noting_publish,
    .stop_accepting = noting_stop_accepting,
    .co_disconnect = noting_co_disconnect,
    .co_free = noting_free,
    .client_count = noting_client_count,
    .resized = noting_resized,
    .drain_begin = noting_drain_begin,
    .drain_busy = noting_drain_busy,
    .drain_end = noting_drain_end,
};

static struct export_config noting_config(const char *node)
{
    struct export_config config = config_for("n", node);

    config.type = "noting";
    noting = (struct noting){.shared = BLOCK_PERM_ALL};
    notes[0] = '\0';
    return config;
}

static void co_a_type_is_asked_in_order(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = noting_config("disk");
    struct export_info info;
    struct export *e;

    assert_int_equal(export_co_prepare(&config, &e, NULL), 0);
    assert_string_equal(notes, "parse prepare ");
    export_co_discard(e);
    assert_string_equal(notes, "parse prepare free ");
    notes[0] = '\0';
    co_assert_added(&config);
    assert_string_equal(notes, "parse prepare publish ");
    assert_true(export_find("n", &info));
    assert_string_equal(info.type, "noting");
    noting.clients = 1;
    assert_int_equal(export_co_del("n", EXPORT_DEL_SAFE, true, NULL), -EBUSY);
    assert_int_equal(export_co_del("n", EXPORT_DEL_HARD, true, NULL), 0);
    assert_string_equal(notes, "parse prepare publish stop disconnect free ");
    assert_string_equal(deleted, "n ");
    block_co_unref(node);
}

static void co_a_type_that_fails_leaves_nothing_behind(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = noting_config("disk");

    set_options(&config, "fails=on");
    co_assert_refused(&config, -EIO, "It fails");
    assert_string_equal(notes, "parse prepare free ");
    assert_false(block_node_in_use(node));
    block_co_unref(node);
}

static void co_a_type_wants_its_own_permissions(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config config = noting_config("disk");
    struct block_root *root;
    ERROR_AUTO(err);

    noting.shared &= ~(unsigned)BLOCK_PERM_WRITE;
    co_assert_added(&config);
    assert_int_equal(block_co_root_new(node, "test", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, &err),
                     -EPERM);
    assert_non_null(strstr(error_message(&err), "Noting export 'n'"));
    assert_int_equal(export_co_del("n", EXPORT_DEL_HARD, true, NULL), 0);
    block_co_unref(node);
}

static void co_drains_and_sizes_reach_a_type(void)
{
    struct block_node *node = co_open("driver=null-co,node-name=disk,size=65536", BLOCK_OPEN_RDWR);
    struct export_config config = noting_config("disk");
    struct block_root *root;

    /* An export that is made within a drain gets the callback. */
    block_co_drain_begin(node);
    co_assert_added(&config);
    assert_string_equal(notes, "parse begin prepare publish ");
    block_drain_end(node);
    assert_string_equal(notes, "parse begin prepare publish end ");
    notes[0] = '\0';
    noting.busy = 3;
    block_co_drain_begin(node);
    assert_true(noting.busy <= 0);
    block_drain_end(node);
    assert_string_equal(notes, "begin end ");
    notes[0] = '\0';
    assert_int_equal(block_co_root_new(node, "test", BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
                                       BLOCK_PERM_ALL, &root, NULL),
                     0);
    notes[0] = '\0';
    assert_int_equal(block_co_truncate(block_root_edge(root), 131072, BLOCK_PREALLOC_OFF, NULL), 0);
    assert_string_equal(notes, "begin resized end ");
    assert_int_equal(noting.size, 131072);
    block_co_root_release(root);
    notes[0] = '\0';
    assert_int_equal(export_co_del("n", EXPORT_DEL_HARD, true, NULL), 0);
    assert_string_equal(notes, "stop disconnect free ");
    block_co_unref(node);
}

static void co_the_server_deletes_exports_of_its_type(void)
{
    struct block_node *node = co_open_disk("disk");
    struct export_config noted = noting_config("disk"), config = config_for("e", "disk");

    co_start_server();
    co_assert_added(&noted);
    co_assert_added(&config);
    assert_int_equal(export_co_nbd_server_stop(NULL), 0);
    assert_string_equal(deleted, "e ");
    export_co_del_all(NULL);
    assert_string_equal(deleted, "e n ");
    block_co_unref(node);
}

/* --- the machinery ---------------------------------------------------------------------------- */

static void run_co(void *arg)
{
    void (*fn)(void) = *(void (**)(void))arg;

    fn();
}

static void run(void (*fn)(void))
{
    deleted[0] = '\0';
    assert_int_equal(reactor_run_until_done(run_co, &fn), 0);
    options_free(nbd_options);
    nbd_options = NULL;
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
TEST(a_type_is_asked_in_order)
TEST(a_type_that_fails_leaves_nothing_behind)
TEST(a_type_wants_its_own_permissions)
TEST(drains_and_sizes_reach_a_type)
TEST(the_server_deletes_exports_of_its_type)

static int set_up(void **state)
{
    snprintf(socket_path, sizeof(socket_path), "/tmp/tm-export-%d.sock", (int)getpid());
    block_register_driver(&memory_disk_driver);
    file_register_drivers();
    nbd_register_driver();
    export_nbd_register_type();
    export_register_type(&noting_type);
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
        cmocka_unit_test(a_type_is_asked_in_order),
        cmocka_unit_test(a_type_that_fails_leaves_nothing_behind),
        cmocka_unit_test(a_type_wants_its_own_permissions),
        cmocka_unit_test(drains_and_sizes_reach_a_type),
        cmocka_unit_test(the_server_deletes_exports_of_its_type),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
