/* SPDX-License-Identifier: Apache-2.0 */
/* blkdebug: rules from options and from a file, states, limits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "cbw_fixture.h"
#include "co_test.h"

#include "co/co.h"
#include "file/file_drivers.h"
#include "filter/filter.h"
#include "loop/loop.h"

struct fault_graph {
    struct block_node *disk_node, *filter_node,
        *raw_node; /* raw announces what is read and written */
    struct memory_disk *disk;
    struct block_root *root;
    struct block_edge *edge;
};

/* `options`: as `"key":value,...`. */
static void open_graph(struct fault_graph *g, const char *options)
{
    char json[1024];

    g->disk_node =
        fixture_open("{\"driver\":\"memory-disk\",\"node-name\":\"disk\",\"size\":1048576}");
    g->disk = memory_disk_of(g->disk_node);
    snprintf(json, sizeof(json),
             "{\"driver\":\"blkdebug\",\"node-name\":\"fault\",\"image\":\"disk\",%s}", options);
    g->filter_node = fixture_open(json);
    g->raw_node = fixture_open("{\"driver\":\"raw\",\"discard\":\"unmap\",\"file\":\"fault\"}");
    assert_int_equal(block_co_root_new(g->raw_node, "test",
                                       BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                                       BLOCK_PERM_ALL, &g->root, NULL),
                     0);
    g->edge = block_root_edge(g->root);
}

static void close_graph(struct fault_graph *g)
{
    block_co_root_release(g->root);
    block_co_unref(g->raw_node);
    block_co_unref(g->filter_node);
    block_co_unref(g->disk_node);
}

static int co_read_at(struct fault_graph *g, uint64_t offset)
{
    uint8_t buf[512];

    return block_co_pread(g->edge, offset, buf, sizeof(buf));
}

static int co_write_at(struct fault_graph *g, uint64_t offset)
{
    uint8_t buf[512] = {0};

    return block_co_pwrite(g->edge, offset, buf, sizeof(buf), 0);
}

static void rule_applies_to_its_iotype(void *arg)
{
    struct fault_graph g;

    open_graph(&g, "\"inject-error\":[{\"event\":\"none\",\"iotype\":\"write\",\"errno\":28}]");
    assert_int_equal(co_read_at(&g, 0), 0);
    assert_int_equal(co_write_at(&g, 0), -ENOSPC);
    assert_int_equal(co_write_at(&g, 4096), -ENOSPC);
    assert_int_equal(block_co_write_zeroes(g.edge, 0, 4096, 0), 0);
    assert_int_equal(block_co_flush(g.edge), 0);
    close_graph(&g);
}

static void rule_applies_to_its_sector(void *arg)
{
    struct fault_graph g;
    uint8_t buf[8192];

    open_graph(&g, "\"inject-error\":[{\"event\":\"none\",\"sector\":8}]");
    assert_int_equal(co_read_at(&g, 7 * 512), 0);
    assert_int_equal(co_read_at(&g, 8 * 512), -EIO);
    assert_int_equal(co_write_at(&g, 8 * 512), -EIO);
    assert_int_equal(co_read_at(&g, 9 * 512), 0);
    assert_int_equal(block_co_pread(g.edge, 0, buf, sizeof(buf)), -EIO);
    assert_int_equal(block_co_discard(g.edge, 0, 8192), -EIO);
    close_graph(&g);
}

static void rule_with_once_applies_once(void *arg)
{
    struct fault_graph g;

    open_graph(&g,
               "\"inject-error\":[{\"event\":\"read_aio\",\"once\":true,\"immediately\":true}]");
    assert_int_equal(co_read_at(&g, 0), -EIO);
    assert_int_equal(co_read_at(&g, 0), 0);
    close_graph(&g);
}

/* A read moves to state 2, in which flushes fail; the next write moves on to state 3. */
static void rules_follow_the_state(void *arg)
{
    struct fault_graph g;

    open_graph(&g,
               "\"inject-error\":[{\"event\":\"flush_to_disk\",\"state\":2,\"iotype\":\"flush\"},"
               "{\"event\":\"flush_to_disk\",\"state\":3,\"iotype\":\"read\"}],"
               "\"set-state\":[{\"event\":\"read_aio\",\"state\":1,\"new_state\":2},"
               "{\"event\":\"write_aio\",\"state\":2,\"new_state\":3}]");
    assert_int_equal(co_write_at(&g, 0), 0);
    assert_int_equal(co_read_at(&g, 0), 0);
    assert_int_equal(block_co_flush(g.edge), -EIO);
    assert_int_equal(co_write_at(&g, 0), 0);
    assert_int_equal(block_co_flush(g.edge), 0);
    assert_int_equal(co_read_at(&g, 0), -EIO);
    close_graph(&g);
}

static void rules_come_from_a_file(void *arg)
{
    static const char config[] = "# rules\n"
                                 "[inject-error]\n"
                                 "event = \"write_aio\"\n"
                                 "  errno = \"28\"  \n"
                                 "sector = \"-1\"\n"
                                 "once = \"on\"\n"
                                 "\n"
                                 "[set-state \"an id\"]\n"
                                 "event = \"write_aio\"\n"
                                 "new_state = \"2\"\n";
    struct fault_graph g;
    FILE *file = fopen("rules.conf", "w");

    assert_non_null(file);
    fputs(config, file);
    fclose(file);
    open_graph(&g, "\"config\":\"rules.conf\"");
    assert_int_equal(co_write_at(&g, 0), -ENOSPC);
    assert_int_equal(co_write_at(&g, 0), 0);
    close_graph(&g);
    unlink("rules.conf");
}

static void expect_config_error(const char *text, const char *part)
{
    FILE *file = fopen("bad.conf", "w");
    const char *message;

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    message = fixture_open_fails("{\"driver\":\"blkdebug\",\"config\":\"bad.conf\","
                                 "\"image\":{\"driver\":\"memory-disk\",\"size\":4096}}");
    assert_non_null(message);
    if (!strstr(message, part)) {
        fail_msg("'%s' does not tell '%s'", message, part);
    }
    unlink("bad.conf");
}

static void bad_files_are_refused_with_their_line(void *arg)
{
    expect_config_error("event = \"read_aio\"\n", "bad.conf:1: no group");
    expect_config_error("[inject-error]\nevent = read_aio\n", "bad.conf:2");
    expect_config_error("[inject-error\n", "']' expected");
    expect_config_error("[no-such]\n", "no-such");
    expect_config_error("[inject-error]\nevent = \"nothing\"\n", "nothing");
    expect_config_error("[inject-error]\nevent = \"none\"\ncolour = \"red\"\n", "colour");
    expect_config_error("[set-state]\nevent = \"none\"\n", "new_state");
}

static void limits_split_and_align(void *arg)
{
    struct fault_graph g;
    uint8_t buf[16384] = {0};

    open_graph(&g, "\"align\":4096,\"max-transfer\":8192");
    assert_int_equal(block_co_pread(g.edge, 0, buf, sizeof(buf)), 0);
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ), 2);
    assert_int_equal(block_co_pwrite(g.edge, 512, buf, 512, 0), 0); /* read, then write 4096 */
    assert_int_equal(memory_disk_requests(g.disk, MEMORY_DISK_READ), 3);
    close_graph(&g);
    assert_non_null(fixture_open_fails("{\"driver\":\"blkdebug\",\"align\":1000,"
                                       "\"image\":{\"driver\":\"memory-disk\",\"size\":4096}}"));
}

static void formats_can_announce_events(void *arg)
{
    struct fault_graph g;

    open_graph(&g, "\"inject-error\":[{\"event\":\"l2_load\",\"iotype\":\"read\"}]");
    assert_int_equal(co_read_at(&g, 0), 0);
    block_co_event_at(g.raw_node, BLOCK_EVENT_L2_LOAD);
    assert_int_equal(co_read_at(&g, 0), -EIO);
    close_graph(&g);
}

static void co_read_aside(void *arg)
{
    struct fault_graph *g = arg;

    assert_int_equal(co_read_at(g, 0), -EIO);
}

/*
 * The rule came into force before the request was held up, and it is still so when the request goes
 * on.
 */
static void breakpoint_holds_a_request_up(void *arg)
{
    struct fault_graph g;

    open_graph(&g, "\"inject-error\":[{\"event\":\"read_aio\",\"iotype\":\"read\"}]");
    assert_int_equal(fault_break(g.raw_node, "no_such_event", "A"), -ENOENT);
    assert_int_equal(fault_break(g.raw_node, "read_aio", "A"), 0);
    assert_int_equal(fault_resume(g.raw_node, "A"), -ENOENT);
    assert_int_equal(reactor_spawn(reactor_main(), co_read_aside, &g), 0);
    while (!fault_is_held(g.raw_node, "A")) {
        co_reschedule();
    }
    assert_false(fault_is_held(g.raw_node, "B"));
    assert_int_equal(co_write_at(&g, 0), 0);
    assert_int_equal(fault_resume(g.raw_node, "A"), 0);
    assert_false(fault_is_held(g.raw_node, "A"));
    assert_int_equal(co_read_at(&g, 0), -EIO);
    assert_int_equal(fault_break(g.disk_node, "read_aio", "A"), -ENOTSUP);
    close_graph(&g);
}

static void breakpoint_can_be_removed(void *arg)
{
    struct fault_graph g;

    open_graph(&g, "\"inject-error\":[{\"event\":\"read_aio\",\"iotype\":\"read\"}]");
    assert_int_equal(fault_break(g.raw_node, "write_aio", "A"), 0);
    assert_int_equal(fault_remove_break(g.raw_node, "A"), 0);
    assert_int_equal(fault_remove_break(g.raw_node, "A"), -ENOENT);
    assert_int_equal(co_write_at(&g, 0), 0);
    assert_int_equal(fault_break(g.raw_node, "read_aio", "B"), 0);
    assert_int_equal(reactor_spawn(reactor_main(), co_read_aside, &g), 0);
    while (!fault_is_held(g.raw_node, NULL)) {
        co_reschedule();
    }
    assert_int_equal(fault_remove_break(g.raw_node, NULL), 0);
    close_graph(&g);
}

/* Why another user of the disk is refused; "": it is not. */
static const char *second_user(struct fault_graph *g, unsigned perm, unsigned shared)
{
    static char message[256];
    struct block_root *root;
    ERROR_AUTO(err);
    int r = block_co_root_new(g->disk_node, "second", perm, shared, &root, &err);

    snprintf(message, sizeof(message), "%s", r < 0 ? error_message(&err) : "");
    if (r == 0) {
        block_co_root_release(root);
    }
    return message;
}

static void permissions_of_the_child_can_be_taken_and_kept(void *arg)
{
    struct fault_graph g;

    open_graph(&g, "\"inject-error\":[]");
    assert_string_equal(second_user(&g, BLOCK_PERM_RESIZE, BLOCK_PERM_ALL), "");
    assert_string_equal(second_user(&g, 0, BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE), "");
    close_graph(&g);
    open_graph(&g, "\"take-child-perms\":[\"resize\"],\"unshare-child-perms\":[\"write\"]");
    assert_non_null(
        strstr(second_user(&g, 0, BLOCK_PERM_ALL & ~BLOCK_PERM_RESIZE), "Permission conflict"));
    assert_non_null(strstr(second_user(&g, BLOCK_PERM_WRITE, BLOCK_PERM_ALL),
                           "permissions 'write' are both required by second (uses node "));
    assert_string_equal(second_user(&g, BLOCK_PERM_RESIZE, BLOCK_PERM_ALL), "");
    close_graph(&g);
    assert_non_null(strstr(fixture_open_fails("{\"driver\":\"blkdebug\",\"image\":{\"driver\":"
                                              "\"memory-disk\",\"size\":512},"
                                              "\"take-child-perms\":[\"all\"]}"),
                           "'all'"));
}

static int setup(void **state)
{
    block_register_driver(&memory_disk_driver);
    filter_register_drivers();
    file_register_drivers();
    return co_test_setup();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CO_TEST(rule_applies_to_its_iotype),
        CO_TEST(rule_applies_to_its_sector),
        CO_TEST(rule_with_once_applies_once),
        CO_TEST(rules_follow_the_state),
        CO_TEST(rules_come_from_a_file),
        CO_TEST(bad_files_are_refused_with_their_line),
        CO_TEST(limits_split_and_align),
        CO_TEST(formats_can_announce_events),
        CO_TEST(breakpoint_holds_a_request_up),
        CO_TEST(breakpoint_can_be_removed),
        CO_TEST(permissions_of_the_child_can_be_taken_and_kept),
    };

    return cmocka_run_group_tests(tests, setup, co_test_teardown);
}
