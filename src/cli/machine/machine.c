/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line of the machine. Options that make something are carried out in the order that
 * QEMU has, whatever the order in which they are given:
 *
 *   objects -> chardevs -> nodes (-blockdev) -> disks (-drive) -> monitors -> devices
 */
#include "cli/machine/machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/log.h"
#include "base/strbuf.h"
#include "block/option_types.h"
#include "block/passed_fd.h"
#include "block/user_object.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/create.h"
#include "cli/daemon/help.h"
#include "cli/daemon/run.h"
#include "cli/machine/clock.h"
#include "cli/machine/commands.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "cli/machine/drive.h"
#include "cli/machine/hmp.h"
#include "cli/machine/lines.h"
#include "cli/machine/migrate.h"
#include "cli/machine/monitors.h"
#include "cli/machine/run_state.h"
#include "cli/machine/vm_snapshot.h"
#include "cli/observe.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "qcow2/qcow2.h"
#include "qmp/monitor.h"
#include "chardev/stdio_pair.h"
#include "qmp/transaction.h"

struct machine {
    struct daemon_run run;
    struct cli_items items; /* in order */
    char **texts;           /* owned, and each of them: values of `items` that -set has changed */
    size_t text_count;
    const char *loadvm; /* a snapshot of the machine to begin with; NULL: none */
    bool is_incoming, is_preconfig;
};

/* --- makers ----------------------------------------------------------------------------------- */

struct maker;

typedef int co_machine_maker(const struct maker *maker, const char *text, struct error *err);

/* In the order in which they are carried out, by `turn`. */
struct maker {
    const char *option;
    int turn;
    co_machine_maker *co_make;
    int detail;
};

enum turn { OBJECTS, CHARDEVS, NODES, DRIVES, MONITORS, DEVICES, TURNS };

static int co_make_object(const struct maker *maker, const char *text, struct error *err)
{
    struct options *opts;
    int r = options_parse(text, "qom-type", &opts, err);

    UNLESS_FAILED(r, user_object_co_add(opts, err));
    cli_hide_secret(text);
    return r;
}

/* -add-fd fd=N,set=ID,opaque=TEXT: a duplicate of an inherited descriptor goes into the set. */
static int co_make_fd(const struct maker *maker, const char *text, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    AUTO_FREE char *opaque = NULL;
    AUTO_CLOSE int copy = -1;
    uint64_t fd = 0, set = 0;
    int64_t id;
    int r = options_parse(text, NULL, &opts, err);

    UNLESS_FAILED(r, options_take_uint(opts, "fd", UINT64_MAX, INT32_MAX, &fd, err));
    UNLESS_FAILED(r, options_take_uint(opts, "set", UINT64_MAX, INT64_MAX, &set, err));
    UNLESS_FAILED(r, options_take_str(opts, "opaque", &opaque, err));
    UNLESS_FAILED(r, options_check_empty(opts, "add-fd", err));
    if (r >= 0 && (fd == UINT64_MAX || set == UINT64_MAX)) {
        r = error_set(err, EINVAL, "%s option is required and must be non-negative",
                      fd == UINT64_MAX ? "fd" : "set");
    }
    if (r >= 0 && fd <= STDERR_FILENO) {
        r = error_set(err, EINVAL, "fd cannot be a standard I/O stream");
    }
    if (r >= 0 && (copy = fcntl((int)fd, F_DUPFD_CLOEXEC, 0)) < 0) {
        r = error_set_errno(err, errno, "error duplicating fd");
    }
    id = (int64_t)set;
    UNLESS_FAILED(r, fdset_add(copy, &id, opaque, &id, err));
    if (r >= 0) {
        (void)TAKE_FD(copy);
        close((int)fd);
    }
    return r;
}

static int co_make_chardev(const struct maker *maker, const char *text, struct error *err)
{
    return machine_co_add_chardev(text, err);
}

static int co_make_node(const struct maker *maker, const char *text, struct error *err)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *args;
    int r = options_parse(text, "driver", &opts, err);

    if (r < 0) {
        return r;
    }
    if (machine_waits_for_migration()) {
        options_default_bool(opts, "active", false);
    }
    r = qmp_args_of_options(&block_options_type, opts, &args, err);
    if (r < 0) {
        return r;
    }
    r = qmp_co_run_action(&qmp_action_blockdev_add, args, err);
    json_object_put(args);
    return r;
}

/* Drives whose devices are still to be made, in order. */
struct connection {
    struct machine_drive *drive;
    const char *option, *value; /* borrowed */
    bool on_board;              /* QEMU's errors of devices of the board name no option */
};

static struct connection *drives;
/* Those that were made, and those of them that were connected. */
static size_t drive_count, connected_count;

static int co_make_drive_of(const struct maker *maker, const char *value, const char *text,
                            const char *interface, struct error *err)
{
    struct connection *more = realloc(drives, (drive_count + 1) * sizeof(*more));
    int r;

    if (!more) {
        return error_out_of_memory(err);
    }
    drives = more;
    drives[drive_count] = (struct connection){.option = maker->option, .value = value};
    r = machine_co_add_drive(text, interface, &drives[drive_count].drive, err);
    if (r >= 0) {
        drives[drive_count].on_board = machine_drive_is_on_board(drives[drive_count].drive);
        drive_count++;
    }
    return r;
}

/* QEMU connects the drives after the monitors, and before it makes other devices. */
static int co_connect_drives(struct error *err)
{
    int r = 0;

    while (connected_count < drive_count && r >= 0) {
        const struct connection *c = &drives[connected_count++];

        r = machine_co_connect_drive(c->drive, err);
        if (r < 0 && !c->on_board) {
            error_prepend(err, "-%s %s: ", c->option, c->value);
        }
    }
    return r;
}

static int co_make_drive(const struct maker *maker, const char *text, struct error *err)
{
    return co_make_drive_of(maker, text, text, NULL, err);
}

enum unit_detail {
    UNIT_NUMBER = 3,
    UNIT_IS_CD = 1 << 2,
    UNIT_IS_FLOPPY = 1 << 3,
};

/* -hda and its like: an image as a unit of IDE, of which the third one is the CD, or a floppy. */
static int co_make_unit(const struct maker *maker, const char *text, struct error *err)
{
    AUTO_FREE char *options = NULL;
    STRBUF_AUTO(name);

    for (const char *p = text; *p; p++) {
        strbuf_append(&name, p, 1);
        strbuf_puts(&name, *p == ',' ? "," : "");
    }
    if (asprintf(&options, "file=%s,index=%d,media=%s", strbuf_str(&name),
                 maker->detail & UNIT_NUMBER, maker->detail & UNIT_IS_CD ? "cdrom" : "disk") < 0) {
        options = NULL;
        return error_out_of_memory(err);
    }
    return co_make_drive_of(maker, text, options, maker->detail & UNIT_IS_FLOPPY ? "floppy" : "ide",
                            err);
}

static int co_make_monitor(const struct maker *maker, const char *text, struct error *err)
{
    return machine_add_monitor(text, err);
}

static int co_make_talk(const struct maker *maker, const char *text, struct error *err)
{
    return machine_co_add_talk((enum machine_talk)maker->detail, text, err);
}

static int co_make_device(const struct maker *maker, const char *text, struct error *err)
{
    struct options *opts;
    int r = options_parse(text, "driver", &opts, err);

    return r < 0 ? r : machine_co_add_device(opts, err);
}

static const struct maker makers[] = {
    {"add-fd", OBJECTS, co_make_fd, 0},
    {"object", OBJECTS, co_make_object, 0},
    {"chardev", CHARDEVS, co_make_chardev, 0},
    {"blockdev", NODES, co_make_node, 0},
    {"drive", DRIVES, co_make_drive, 0},
    {"hda", DRIVES, co_make_unit, 0},
    {"hdb", DRIVES, co_make_unit, 1},
    {"hdc", DRIVES, co_make_unit, 2},
    {"hdd", DRIVES, co_make_unit, 3},
    {"cdrom", DRIVES, co_make_unit, 2 | UNIT_IS_CD},
    {"fda", DRIVES, co_make_unit, 0 | UNIT_IS_FLOPPY},
    {"fdb", DRIVES, co_make_unit, 1 | UNIT_IS_FLOPPY},
    {"mon", MONITORS, co_make_monitor, 0},
    {"qmp", MONITORS, co_make_talk, MACHINE_TALK_QMP},
    {"qmp-pretty", MONITORS, co_make_talk, MACHINE_TALK_QMP_PRETTY},
    {"monitor", MONITORS, co_make_talk, MACHINE_TALK_HMP},
    {"qtest", MONITORS, co_make_talk, MACHINE_TALK_QTEST},
    {"device", DEVICES, co_make_device, 0},
};

static const struct maker *maker_of(const char *option)
{
    for (size_t i = 0; i < ARRAY_SIZE(makers); i++) {
        if (strcmp(makers[i].option, option) == 0) {
            return &makers[i];
        }
    }
    return NULL;
}

/* Options that say what a guest would see or how it runs: there is no guest. */
static const struct {
    const char *name;
    bool has_value;
} without_effect[] = {
    {"nodefaults", false},
    {"nodefconfig", false},
    {"no-user-config", false},
    {"nographic", false},
    {"no-shutdown", false},
    {"enable-kvm", false},
    {"display", true},
    {"vga", true},
    {"machine", true},
    {"M", true},
    {"m", true},
    {"smp", true},
    {"cpu", true},
    {"uuid", true},
    {"serial", true},
    {"parallel", true},
    {"msg", true},
    {"qtest-log", true},
    {"net", true},
    {"nic", true},
    {"boot", true},
    {"rtc", true},
    {"global", true},
    {"D", true},
    {"d", true},
};

/* --- making ----------------------------------------------------------------------------------- */

static int co_make_turn(struct machine *m, int turn, struct error *err)
{
    for (size_t i = 0; i < m->items.count && !m->run.ending; i++) {
        const struct cli_item *item = &m->items.item[i];
        const struct maker *maker = maker_of(item->name);
        int r = maker->turn == turn ? maker->co_make(maker, item->value, err) : 0;

        if (r < 0) {
            error_prepend(err, "-%s %s: ", item->name, item->value);
            return r;
        }
    }
    return 0;
}

static int co_make_machine(struct daemon_run *run, struct error *err)
{
    struct machine *m = container_of(run, struct machine, run);
    int r = 0;

    qcow2_refuse_legacy_encryption();
    export_set_io_error_fn(NULL); /* BLOCK_IO_ERROR is about guests here */
    for (int turn = 0; turn < TURNS && r >= 0; turn++) {
        r = co_make_turn(m, turn, err);
        if (turn == MONITORS) {
            UNLESS_FAILED(r, co_connect_drives(err));
        }
    }
    if (r >= 0) {
        hmp_prompt();
    }
    if (m->loadvm) {
        UNLESS_FAILED(r, machine_co_load_vm(m->loadvm, err));
    }
    while (connected_count < drive_count) {
        machine_drive_free(drives[connected_count++].drive);
    }
    free(drives);
    block_set_creation_fn(cli_announce_creation);
    UNLESS_FAILED(r, machine_migration_co_start(err));
    if (r < 0) {
        chardev_co_stdio_settle();
    }
    return r;
}

static void co_end_machine(void)
{
    export_nbd_server_keep_file();
    machine_monitors_co_end();
    machine_migration_co_end();
    machine_devices_co_free();
    machine_disks_co_free();
    machine_qtest_end();
}

/* --- the command line ------------------------------------------------------------------------- */

static bool print_machine_help(struct daemon_run *run, int *ret_result, struct error *err)
{
    const struct machine *m = container_of(run, struct machine, run);

    for (size_t i = 0; i < m->items.count; i++) {
        const struct cli_item *item = &m->items.item[i];

        *ret_result = 0;
        if (strcmp(item->name, "device") == 0 && strcmp(item->value, "help") == 0) {
            machine_print_device_types();
            return true;
        }
        if (strcmp(item->name, "drive") == 0 && machine_drive_help(item->value)) {
            return true;
        }
        if (strcmp(item->name, "object") == 0 &&
            daemon_help(item->name, item->value, ret_result, err)) {
            return true;
        }
    }
    return false;
}

static void print_machine_usage(void)
{
    printf("usage: %s [options]\n"
           "\n"
           "The storage daemon under the command line of QEMU's system emulator, without a guest.\n"
           "For tests. Options that make something: -add-fd -object -chardev -blockdev -drive\n"
           "-hda ... -cdrom -fda -fdb -mon -qmp -monitor -qtest -device; -set -S -accel -snapshot\n"
           "-pidfile -daemonize -incoming -loadvm.\n",
           cli_program());
}

static bool has_no_effect(const char *name, bool *ret_has_value)
{
    for (size_t i = 0; i < ARRAY_SIZE(without_effect); i++) {
        if (strcmp(without_effect[i].name, name) == 0) {
            *ret_has_value = without_effect[i].has_value;
            return true;
        }
    }
    return false;
}

enum verdict { NEXT, DONE, WRONG };

/* The option -device, -drive or the like, given before, that has this ID; NULL: none. */
static struct cli_item *find_given_option(struct machine *m, const char *name, const char *id)
{
    for (size_t i = 0; i < m->items.count; i++) {
        struct cli_item *item = &m->items.item[i];
        AUTO_OPTIONS struct options *opts = NULL;

        if (strcmp(item->name, name) == 0 && item->value[0] != '{' &&
            options_parse(item->value, "driver", &opts, NULL) == 0 &&
            options_is_text(opts, "id", id)) {
            return item;
        }
    }
    return NULL;
}

/* -set OPTION.ID.NAME=VALUE: give an option that was given before one more member. */
static enum verdict set_member(struct machine *m, const char *text)
{
    char option[32], id[64];
    int end = 0;
    struct cli_item *item;
    char *value = NULL, **more;

    if (sscanf(text, "%31[^.].%63[^.].%n", option, id, &end) != 2 || end == 0 ||
        !strchr(text + end, '=')) {
        cli_fail("-set %s: can't parse: \"%s\"", text, text);
        return WRONG;
    }
    item = find_given_option(m, option, id);
    if (!item) {
        cli_fail("-set %s: there is no %s \"%s\" defined", text, option, id);
        return WRONG;
    }
    more = realloc(m->texts, (m->text_count + 1) * sizeof(*more));
    if (!more) {
        cli_fail("out of memory");
        return WRONG;
    }
    m->texts = more;
    if (asprintf(&value, "%s,%s", item->value, text + end) < 0) {
        cli_fail("out of memory");
        return WRONG;
    }
    m->texts[m->text_count++] = value;
    item->value = value;
    return NEXT;
}

/* An option that is neither without effect nor makes something. `value` is NULL at the end. */
static enum verdict take_plain_option(struct machine *m, const char *name, const char *value,
                                      bool *ret_used_value)
{
    *ret_used_value = false;
    if (strcmp(name, "version") == 0) {
        cli_print_version();
        return DONE;
    }
    if (strcmp(name, "help") == 0 || strcmp(name, "h") == 0) {
        print_machine_usage();
        return DONE;
    }
    if (strcmp(name, "S") == 0) {
        machine_start_stopped();
        return NEXT;
    }
    if (strcmp(name, "snapshot") == 0) {
        machine_drives_get_overlays();
        return NEXT;
    }
    if (strcmp(name, "preconfig") == 0) {
        m->is_preconfig = true;
        return NEXT;
    }
    if (strcmp(name, "daemonize") == 0) {
        m->run.daemonize = true;
        return NEXT;
    }
    *ret_used_value = true;
    if (value && strcmp(name, "pidfile") == 0) {
        m->run.pidfile = value;
        return NEXT;
    }
    if (value && strcmp(name, "name") == 0) {
        machine_set_name(value);
        return NEXT;
    }
    if (value && strcmp(name, "accel") == 0) {
        if (strncmp(value, "qtest", 5) == 0) {
            machine_clock_use_steps();
        }
        return NEXT;
    }
    if (value && strcmp(name, "set") == 0) {
        return set_member(m, value);
    }
    if (value && strcmp(name, "loadvm") == 0) {
        m->loadvm = value;
        return NEXT;
    }
    if (value && strcmp(name, "incoming") == 0) {
        m->is_incoming = true;
        machine_wait_for_migration(value);
        return NEXT;
    }
    cli_fail("-%s: invalid option", name);
    return WRONG;
}

static enum verdict parse_machine_options(struct machine *m, int argc, char **argv)
{
    enum verdict verdict = NEXT;

    for (int i = 1; i < argc && argv[i] && verdict == NEXT; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        const struct maker *maker;
        bool takes_value = true;

        if (name[0] != '-') { /* as -hda; nothing boots from it */
            verdict = cli_items_append(&m->items, "hda", name) ? NEXT : WRONG;
            continue;
        }
        name += name[1] == '-' ? 2 : 1;
        if (value && strcmp(value, "help") == 0 &&
            (strcmp(name, "machine") == 0 || strcmp(name, "M") == 0)) {
            printf("Supported machines are:\n"
                   "none                 empty machine\n"
                   "pc                   Standard PC, without a guest (alias of pc-tidemark)\n"
                   "pc-tidemark          Standard PC, without a guest (default)\n");
            return DONE;
        }
        maker = maker_of(name);
        if (maker && value) {
            verdict = cli_items_append(&m->items, maker->option, value) ? NEXT : WRONG;
        } else if (!has_no_effect(name, &takes_value)) {
            verdict = take_plain_option(m, name, value, &takes_value);
        }
        i += takes_value;
    }
    return verdict;
}

static bool options_fit(const struct machine *m)
{
    if (m->loadvm && m->is_incoming) {
        cli_fail("'incoming' and 'loadvm' options are mutually exclusive");
        return false;
    }
    if (m->loadvm && m->is_preconfig) {
        cli_fail("'preconfig' and 'loadvm' options are mutually exclusive");
        return false;
    }
    if (m->is_preconfig) {
        cli_fail("-preconfig: there is nothing to configure without a guest");
        return false;
    }
    return true;
}

int cli_machine_main(int argc, char **argv)
{
    struct machine m = {.run = {.co_make = co_make_machine,
                                .print_help = print_machine_help,
                                .co_end_users = co_end_machine}};
    enum verdict verdict;
    int status;

    cli_set_program("qemu-system-x86_64", true);
    verdict = parse_machine_options(&m, argc, argv);
    if (verdict == NEXT && !options_fit(&m)) {
        verdict = WRONG;
    }
    if (verdict == NEXT) {
        machine_clock_start();
        log_set_level(LOG_LEVEL_ERROR); /* of which QEMU prints a part, and tests read all */
        qmp_add(&machine_qmp);
        qmp_answer_quit_late();
        cli_observe_server();
        status = daemon_run(&m.run);
        status = machine_migration_is_lost() ? 1 : status;
    } else {
        status = verdict == DONE ? 0 : 1;
    }
    cli_items_clear(&m.items);
    while (m.text_count > 0) {
        free(m.texts[--m.text_count]);
    }
    free(m.texts);
    return status;
}
