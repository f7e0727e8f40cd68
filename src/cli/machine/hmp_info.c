/* SPDX-License-Identifier: Apache-2.0 */
/* The command info of the human monitor. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "cli/machine/call.h"
#include "cli/machine/hmp.h"
#include "cli/machine/migrate.h"
#include "cli/machine/migrate_mapping.h"
#include "cli/machine/vm_snapshot.h"

/* --- info block ------------------------------------------------------------------------------- */

static void print_cache_mode(struct hmp *hmp, struct json_object *cache)
{
    hmp_printf(hmp, "    Cache mode:       %s%s%s\n",
               qmp_get_bool(cache, "writeback", true) ? "writeback" : "writethrough",
               qmp_get_bool(cache, "direct", false) ? ", direct" : "",
               qmp_get_bool(cache, "no-flush", false) ? ", ignore flushes" : "");
}

static void print_limits(struct hmp *hmp, struct json_object *node)
{
    static const char *const names[] = {
        "bps",     "bps_rd",  "bps_wr",   "bps_max",     "bps_rd_max",  "bps_wr_max", "iops",
        "iops_rd", "iops_wr", "iops_max", "iops_rd_max", "iops_wr_max", "iops_size"};
    uint64_t any = 0;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        any |= qmp_get_uint(node, names[i], 0);
    }
    if (any == 0) {
        return;
    }
    hmp_printf(hmp, "    I/O throttling:  ");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        hmp_printf(hmp, " %s=%" PRIu64, names[i], qmp_get_uint(node, names[i], 0));
    }
    hmp_printf(hmp, " group=%s\n", qmp_get_str(node, "group") ?: "");
}

/* A node: the part of a disk that is inserted, or a node by itself. */
static void print_node(struct hmp *hmp, struct json_object *node)
{
    const char *backing = qmp_get_str(node, "backing_file");
    const char *detect = qmp_get_str(node, "detect_zeroes");

    print_cache_mode(hmp, qmp_get(node, "cache"));
    if (backing) {
        hmp_printf(hmp, "    Backing file:     %s (chain depth: %d)\n", backing,
                   (int)qmp_get_uint(node, "backing_file_depth", 0));
    }
    if (detect && strcmp(detect, "off") != 0) {
        hmp_printf(hmp, "    Detect zeroes:    %s\n", detect);
    }
    print_limits(hmp, node);
}

static void print_image(struct hmp *hmp, struct json_object *node)
{
    if (!node) {
        hmp_printf(hmp, ": [not inserted]\n");
        return;
    }
    hmp_printf(hmp, ": %s (%s%s%s)\n", qmp_get_str(node, "file"), qmp_get_str(node, "drv"),
               qmp_get_bool(node, "ro", false) ? ", read-only" : "",
               qmp_get_bool(node, "encrypted", false) ? ", encrypted" : "");
}

static void print_disk(struct hmp *hmp, struct json_object *disk)
{
    struct json_object *node = qmp_get(disk, "inserted");
    const char *name = qmp_get_str(disk, "device");
    const char *node_name = node ? qmp_get_str(node, "node-name") : NULL;

    if (*name) {
        hmp_printf(hmp, node_name ? "%s (%s)" : "%s", name, node_name);
    } else {
        hmp_printf(hmp, "%s", node_name ?: qmp_get_str(disk, "qdev") ?: "<anonymous>");
    }
    print_image(hmp, node);
    if (qmp_get_str(disk, "qdev")) {
        hmp_printf(hmp, "    Attached to:      %s\n", qmp_get_str(disk, "qdev"));
    }
    if (qmp_get_bool(disk, "removable", false)) {
        hmp_printf(hmp, "    Removable device: %slocked, tray %s\n",
                   qmp_get_bool(disk, "locked", false) ? "" : "not ",
                   qmp_get_bool(disk, "tray_open", false) ? "open" : "closed");
    }
    if (node) {
        print_node(hmp, node);
    }
}

static void print_named_node(struct hmp *hmp, struct json_object *node)
{
    hmp_printf(hmp, "%s", qmp_get_str(node, "node-name"));
    print_image(hmp, node);
    print_node(hmp, node);
}

/* Print the entries of a list whose `key` is `name` (NULL: all), with empty lines between. */
static bool print_entries(struct hmp *hmp, struct json_object *list, const char *key,
                          const char *name,
                          void (*print)(struct hmp *hmp, struct json_object *entry))
{
    bool printed = false;

    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct json_object *entry = json_object_array_get_idx(list, i);

        if (name && strcmp(qmp_get_str(entry, key), name) != 0) {
            continue;
        }
        if (i > 0) {
            hmp_printf(hmp, "\n");
        }
        print(hmp, entry);
        printed = true;
    }
    return printed;
}

static int co_info_block(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *list = NULL;
    const char *name = NULL;
    bool nodes = false, printed = false;
    int r = 0;

    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "-n") == 0) {
            nodes = true;
        } else if (strcmp(argv[i], "-v") != 0) {
            name = argv[i];
        }
    }
    if (!nodes) {
        r = machine_co_qmp("query-block", json_object_new_object(), &list, err);
        printed = r >= 0 && print_entries(hmp, list, "device", name, print_disk);
        json_object_put(list);
    }
    if (r < 0 || printed || (!name && !nodes)) {
        return r;
    }
    list = NULL;
    r = machine_co_qmp("query-named-block-nodes", json_object_new_object(), &list, err);
    if (r >= 0) {
        (void)print_entries(hmp, list, "node-name", name, print_named_node);
    }
    json_object_put(list);
    return r;
}

/* --- the others ------------------------------------------------------------------------------- */

static int co_info_status(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *status = NULL;
    int r = machine_co_qmp("query-status", json_object_new_object(), &status, err);

    if (r >= 0 && qmp_get_bool(status, "running", false)) {
        hmp_printf(hmp, "VM status: running\n");
    } else if (r >= 0) {
        hmp_printf(hmp, "VM status: paused (%s)\n", qmp_get_str(status, "status"));
    }
    json_object_put(status);
    return r;
}

static int co_info_version(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    hmp_printf(hmp, "%d.%d.%dTidemark %s\n", QMP_QEMU_MAJOR, QMP_QEMU_MINOR, QMP_QEMU_MICRO,
               TIDEMARK_VERSION);
    return 0;
}

static void print_job(struct hmp *hmp, struct json_object *job)
{
    unsigned long long speed = qmp_get_uint(job, "speed", 0);
    unsigned long long offset = qmp_get_uint(job, "offset", 0), len = qmp_get_uint(job, "len", 0);

    if (strcmp(qmp_get_str(job, "type"), "stream") == 0) {
        hmp_printf(hmp,
                   "Streaming device %s: Completed %llu of %llu bytes, speed limit %llu bytes/s\n",
                   qmp_get_str(job, "device"), offset, len, speed);
    } else {
        hmp_printf(hmp,
                   "Type %s, device %s: Completed %llu of %llu bytes, speed limit %llu bytes/s\n",
                   qmp_get_str(job, "type"), qmp_get_str(job, "device"), offset, len, speed);
    }
}

static int co_info_block_jobs(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *list = NULL;
    int r = machine_co_qmp("query-block-jobs", json_object_new_object(), &list, err);

    if (r >= 0 && json_object_array_length(list) == 0) {
        hmp_printf(hmp, "No active jobs\n");
    }
    for (size_t i = 0; r >= 0 && i < json_object_array_length(list); i++) {
        print_job(hmp, json_object_array_get_idx(list, i));
    }
    json_object_put(list);
    return r;
}

/* The figures of a disk, by names that are shorter than those of QMP. */
static void print_figures(struct hmp *hmp, struct json_object *disk)
{
    static const char *const names[] = {
        "rd_bytes",         "wr_bytes",         "rd_operations",    "wr_operations",
        "flush_operations", "wr_total_time_ns", "rd_total_time_ns", "flush_total_time_ns",
        "rd_merged",        "wr_merged",        "idle_time_ns",
    };
    struct json_object *stats = qmp_get(disk, "stats");

    if (!*qmp_get_str(disk, "device")) {
        return;
    }
    hmp_printf(hmp, "%s:", qmp_get_str(disk, "device"));
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        hmp_printf(hmp, " %s=%" PRIu64, names[i], qmp_get_uint(stats, names[i], 0));
    }
    hmp_printf(hmp, "\n");
}

static int co_info_blockstats(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    struct json_object *list = NULL;
    int r = machine_co_qmp("query-blockstats", json_object_new_object(), &list, err);

    for (size_t i = 0; r >= 0 && i < json_object_array_length(list); i++) {
        print_figures(hmp, json_object_array_get_idx(list, i));
    }
    json_object_put(list);
    return r;
}

static int co_info_migrate(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    if (strcmp(machine_migration_status(), "none") != 0) {
        hmp_printf(hmp, "Migration status: %s\n", machine_migration_status());
    }
    return 0;
}

static int co_info_migrate_parameters(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    STRBUF_AUTO(text);

    migrate_print_mapping(&text);
    hmp_printf(hmp, "%s", strbuf_str(&text));
    return 0;
}

static int co_info_snapshots(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    STRBUF_AUTO(text);
    int r = machine_co_list_vm(&text, err);

    hmp->plain_error = true;
    if (r >= 0) {
        hmp_printf(hmp, "%s", strbuf_str(&text));
    }
    return r;
}

const struct hmp_command hmp_info_commands[] = {
    {"block", NULL, 0, 3, "[-n] [-v] [device]", "show info of one block device or all",
     co_info_block},
    {"block-jobs", NULL, 0, 0, "", "show progress of ongoing block device operations",
     co_info_block_jobs},
    {"blockstats", NULL, 0, 0, "", "show block device statistics", co_info_blockstats},
    {"migrate", NULL, 0, 0, "", "show migration status", co_info_migrate},
    {"migrate_parameters", NULL, 0, 0, "", "show current migration parameters",
     co_info_migrate_parameters},
    {"snapshots", NULL, 0, 0, "", "show the currently saved VM snapshots", co_info_snapshots},
    {"status", NULL, 0, 0, "", "show the current VM status", co_info_status},
    {"version", NULL, 0, 0, "", "show the version of QEMU", co_info_version},
    {0},
};

int hmp_co_info(struct hmp *hmp, int argc, char **argv, struct error *err)
{
    const char *what = argc > 0 ? argv[0] : "";

    for (const struct hmp_command *c = hmp_info_commands; c->name; c++) {
        if (strcmp(c->name, what) == 0 && argc - 1 <= c->max_args) {
            return c->co_run(hmp, argc - 1, argv + 1, err);
        }
    }
    if (argc > 0) {
        hmp_printf(hmp, "unknown command: 'info %s'\n", what);
        return 0;
    }
    for (const struct hmp_command *c = hmp_info_commands; c->name; c++) {
        hmp_printf(hmp, "info %s %s -- %s\n", c->name, c->arguments, c->about);
    }
    return 0;
}
