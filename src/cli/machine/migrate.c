/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/migrate.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "block/control_lock.h"
#include "cli/daemon/run.h"
#include "cli/machine/disk.h"
#include "cli/machine/migrate_bitmaps.h"
#include "cli/machine/migrate_channel.h"
#include "cli/machine/migrate_mapping.h"
#include "cli/machine/run_state.h"
#include "loop/loop.h"
#include "qmp/answer.h"
#include "qmp/events.h"
#include "qmp/schema.h"
#include "qmp/set_active.h"
#include "schema/define.h"

#define LOOK_NS (2 * NS_PER_MS)

static const char *const capabilities[] = {"xbzrle",
                                           "rdma-pin-all",
                                           "auto-converge",
                                           "zero-blocks",
                                           "events",
                                           "postcopy-ram",
                                           "x-colo",
                                           "release-ram",
                                           "return-path",
                                           "pause-before-switchover",
                                           "multifd",
                                           "dirty-bitmaps",
                                           "postcopy-blocktime",
                                           "late-block-activate",
                                           "x-ignore-shared",
                                           "validate-uuid",
                                           "background-snapshot",
                                           "zero-copy-send",
                                           "postcopy-preempt",
                                           "switchover-ack",
                                           "dirty-limit",
                                           "mapped-ram",
                                           NULL};

static bool switched_on[ARRAY_SIZE(capabilities)];

static struct {
    const char *status; /* QEMU's MigrationStatus */
    struct error err;   /* why it failed */
    bool under_way;     /* a coroutine is at work */
    bool may_switch;    /* migrate-continue has come */
    bool ending;
    bool lost; /* nothing came, so there is nothing to go on with */
    int64_t began_ns, took_ns;
    const char *incoming; /* -incoming, until it has come; NULL: the machine runs by itself */
    struct migrate_channel channel;
} migration = {.status = "none", .channel = {.fd = -1, .listener = -1}};

static bool is_on(const char *capability)
{
    for (size_t i = 0; capabilities[i]; i++) {
        if (strcmp(capabilities[i], capability) == 0) {
            return switched_on[i];
        }
    }
    return false;
}

static void set_status(const char *status)
{
    migration.status = status;
    if (is_on("events")) {
        struct json_object *data = json_object_new_object();

        qmp_put_str(data, "status", status);
        qmp_emit("MIGRATION", data);
    }
}

const char *machine_migration_status(void)
{
    return migration.status;
}

static bool is_under_way(void)
{
    return migration.under_way;
}

static void begin_migration(void)
{
    error_clear(&migration.err);
    migration.under_way = true;
    migration.may_switch = false;
    migration.began_ns = loop_now_ns();
    set_status("setup");
}

static void co_finish(int r)
{
    migrate_channel_co_close(&migration.channel);
    migration.took_ns = loop_now_ns() - migration.began_ns;
    if (r < 0) {
        set_status("failed");
    }
    migration.under_way = false;
}

/* --- the source ------------------------------------------------------------------------------- */

/* The disks, with their bitmaps, belong to the other machine. */
static int co_hand_over(struct json_object *state, struct error *err)
{
    struct json_object *bitmaps = NULL;
    int r = 0;

    block_co_control_lock();
    if (is_on("dirty-bitmaps")) {
        r = migrate_co_save_bitmaps(&bitmaps, err);
    }
    UNLESS_FAILED(r, machine_disks_co_pause(err));
    UNLESS_FAILED(r, qmp_co_set_active(NULL, false, err));
    block_control_unlock();
    if (bitmaps) {
        json_object_object_add(state, "bitmaps", bitmaps);
    }
    return r;
}

/* The machine goes on, since the migration failed. */
static void co_stay(bool was_running)
{
    struct error err = ERROR_INIT;
    int r;

    block_co_control_lock();
    r = qmp_co_set_active(NULL, true, &err);
    UNLESS_FAILED(r, machine_disks_co_start(&err));
    block_control_unlock();
    if (r < 0) {
        log_error("migration: the disks can't be used again: %s", error_message(&err));
    }
    error_clear(&err);
    machine_set_run_state(was_running && r >= 0 ? "running" : "paused");
}

static int co_send_state(struct error *err)
{
    struct json_object *state = json_object_new_object();
    const char *text;
    int r;

    qmp_put_str(state, "machine", "tidemark");
    r = co_hand_over(state, err);
    if (r >= 0) {
        text = json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN);
        r = text ? migrate_channel_co_send(&migration.channel, text, strlen(text), err)
                 : error_out_of_memory(err);
    }
    json_object_put(state);
    return r;
}

static void co_migrate(void *arg)
{
    bool was_running = machine_is_running();
    int r = 0;

    (void)arg;
    set_status("active");
    machine_set_run_state("finish-migrate");
    if (is_on("pause-before-switchover")) {
        set_status("pre-switchover");
        while (!migration.may_switch && !migration.ending) {
            loop_co_sleep(LOOK_NS);
        }
    }
    if (migration.ending) {
        r = error_set(&migration.err, ECANCELED, "The machine ends");
    }
    if (r >= 0) {
        set_status("device");
        r = co_send_state(&migration.err);
    }
    co_finish(r);
    if (r < 0) {
        log_error("%s", error_message(&migration.err));
        co_stay(was_running);
        return;
    }
    machine_set_run_state("postmigrate");
    set_status("completed");
}

int machine_co_migrate_to(const char *uri, struct error *err)
{
    int r;

    if (is_under_way()) {
        return error_set(err, EBUSY, "There's a migration process in progress");
    }
    if (machine_waits_for_migration()) {
        return error_set(err, EINVAL, "Guest is waiting for an incoming migration");
    }
    begin_migration();
    r = migrate_channel_co_open(&migration.channel, uri, false, err);
    UNLESS_FAILED(r, reactor_spawn(reactor_main(), co_migrate, NULL));
    if (r < 0) {
        co_finish(r);
    }
    return r;
}

/* --- the destination -------------------------------------------------------------------------- */

void machine_wait_for_migration(const char *uri)
{
    migration.incoming = uri;
    machine_disks_wait_for_start();
    machine_set_run_state("inmigrate");
}

bool machine_waits_for_migration(void)
{
    return migration.incoming != NULL;
}

static int parse_state(const struct strbuf *text, struct json_object **ret_state, struct error *err)
{
    *ret_state = json_tokener_parse(strbuf_str(text));
    if (!*ret_state || !json_object_is_type(*ret_state, json_type_object) ||
        !qmp_get_str(*ret_state, "machine")) {
        return error_set(err, EINVAL, "load of migration failed: this is no state of a machine");
    }
    return 0;
}

/* The disks, with their bitmaps, belong to this machine. */
static int co_take_disks(struct json_object *state, struct error *err)
{
    struct json_object *bitmaps = qmp_get(state, "bitmaps");
    int r;

    block_co_control_lock();
    r = qmp_co_set_active(NULL, true, err);
    if (bitmaps && r >= 0) {
        migrate_co_load_bitmaps(bitmaps);
    }
    UNLESS_FAILED(r, machine_disks_co_start(err));
    block_control_unlock();
    return r;
}

static int co_receive_state(struct error *err)
{
    struct json_object *state = NULL;
    STRBUF_AUTO(text);
    int r = migrate_channel_co_wait(&migration.channel, err);

    if (r >= 0) {
        set_status("active");
    }
    UNLESS_FAILED(r, migrate_channel_co_receive(&migration.channel, &text, err));
    UNLESS_FAILED(r, parse_state(&text, &state, err));
    UNLESS_FAILED(r, co_take_disks(state, err));
    json_object_put(state);
    return r;
}

static void co_come(void *arg)
{
    int r = co_receive_state(&migration.err);

    (void)arg;
    co_finish(r);
    if (r >= 0) {
        migration.incoming = NULL;
        machine_set_run_state(machine_starts_stopped() ? "paused" : "running");
        set_status("completed");
    } else if (!migration.ending) {
        log_error("%s", error_message(&migration.err));
        migration.lost = true;
        daemon_quit();
    }
}

bool machine_migration_is_lost(void)
{
    return migration.lost;
}

static int co_begin_to_receive(const char *uri, struct error *err)
{
    int r;

    begin_migration();
    r = migrate_channel_co_open(&migration.channel, uri, true, err);
    UNLESS_FAILED(r, reactor_spawn(reactor_main(), co_come, NULL));
    if (r < 0) {
        co_finish(r);
    }
    return r;
}

int machine_migration_co_start(struct error *err)
{
    return migration.incoming && strcmp(migration.incoming, "defer") != 0
               ? co_begin_to_receive(migration.incoming, err)
               : 0;
}

void machine_migration_co_end(void)
{
    migration.ending = true;
    migrate_channel_cancel(&migration.channel);
    while (migration.under_way) {
        loop_co_sleep(LOOK_NS);
    }
    error_clear(&migration.err);
    migrate_free_mapping();
}

/* --- commands --------------------------------------------------------------------------------- */

int machine_co_migrate(struct qmp_call *call, struct json_object *args,
                       struct json_object **ret_value, struct error *err)
{
    return machine_co_migrate_to(qmp_get_str(args, "uri"), err);
}

int machine_co_migrate_incoming(struct qmp_call *call, struct json_object *args,
                                struct json_object **ret_value, struct error *err)
{
    if (!machine_waits_for_migration()) {
        return error_set(err, EINVAL, "'-incoming' was not specified on the command line");
    }
    if (is_under_way()) {
        return error_set(err, EBUSY, "The incoming migration has already been started");
    }
    return co_begin_to_receive(qmp_get_str(args, "uri"), err);
}

int machine_co_migrate_continue(struct qmp_call *call, struct json_object *args,
                                struct json_object **ret_value, struct error *err)
{
    const char *state = qmp_get_str(args, "state");

    if (strcmp(state, migration.status) != 0) {
        return error_set(err, EINVAL, "Migration not in expected state: %s", migration.status);
    }
    migration.may_switch = true;
    return 0;
}

int machine_co_migrate_start_postcopy(struct qmp_call *call, struct json_object *args,
                                      struct json_object **ret_value, struct error *err)
{
    if (!is_on("postcopy-ram") && !is_on("dirty-bitmaps")) {
        return error_set(err, EINVAL,
                         "Enable postcopy with migrate_set_capability before the start of "
                         "migration");
    }
    return strcmp(migration.status, "none") == 0
               ? error_set(err, EINVAL, "Postcopy must be started after migration has been started")
               : 0;
}

int machine_set_migration_capability(const char *name, bool on, struct error *err)
{
    for (size_t i = 0; capabilities[i]; i++) {
        if (strcmp(capabilities[i], name) == 0) {
            switched_on[i] = on;
            return 0;
        }
    }
    return error_set(err, EINVAL, "Invalid parameter '%s'", name);
}

int machine_co_migrate_set_capabilities(struct qmp_call *call, struct json_object *args,
                                        struct json_object **ret_value, struct error *err)
{
    struct json_object *list = qmp_get(args, "capabilities");
    int r = 0;

    if (is_under_way() && !migration.incoming) {
        return error_set(err, EBUSY, "There's a migration process in progress");
    }
    for (size_t i = 0; i < json_object_array_length(list) && r >= 0; i++) {
        struct json_object *o = json_object_array_get_idx(list, i);

        r = machine_set_migration_capability(qmp_get_str(o, "capability"),
                                             qmp_get_bool(o, "state", false), err);
    }
    return r;
}

/* The others are rates and times of the copy of a guest's memory. */
int machine_co_migrate_set_parameters(struct qmp_call *call, struct json_object *args,
                                      struct json_object **ret_value, struct error *err)
{
    struct json_object *mapping = qmp_get(args, "block-bitmap-mapping");

    return mapping ? migrate_set_mapping(mapping, err) : 0;
}

int machine_co_query_migrate(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_object();
    if (strcmp(migration.status, "none") != 0) {
        qmp_put_str(*ret_value, "status", migration.status);
        qmp_put_uint(
            *ret_value, "total-time",
            (uint64_t)((is_under_way() ? loop_now_ns() - migration.began_ns : migration.took_ns) /
                       NS_PER_MS));
    }
    if (strcmp(migration.status, "failed") == 0) {
        qmp_put_str(*ret_value, "error-desc", error_message(&migration.err));
    }
    return 0;
}

int machine_co_query_migrate_capabilities(struct qmp_call *call, struct json_object *args,
                                          struct json_object **ret_value, struct error *err)
{
    *ret_value = json_object_new_array();
    for (size_t i = 0; capabilities[i]; i++) {
        struct json_object *o = json_object_new_object();

        qmp_put_str(o, "capability", capabilities[i]);
        qmp_put_bool(o, "state", switched_on[i]);
        json_object_array_add(*ret_value, o);
    }
    return 0;
}

/* --- types ------------------------------------------------------------------------------------ */

static const struct schema_type capability_type = {
    .kind = SCHEMA_ENUM, .name = "MigrationCapability", .values = capabilities};
OBJECT(capability_status, "MigrationCapabilityStatus", REQ("capability", capability_type),
       REQ("state", schema_bool));
const struct schema_type machine_migrate_capability_list =
    ARRAY_INIT("MigrationCapabilityStatusList", capability_status);
ENUM(migration_status, "MigrationStatus", "none", "setup", "cancelling", "cancelled", "active",
     "postcopy-active", "completed", "failed", "pre-switchover", "device");
const struct schema_type machine_migrate_type =
    OBJECT_INIT("q_obj_migrate-arg", REQ("uri", schema_str), OPT("detach", schema_bool));
const struct schema_type machine_migrate_incoming_type =
    OBJECT_INIT("q_obj_migrate-incoming-arg", REQ("uri", schema_str));
const struct schema_type machine_migrate_continue_type =
    OBJECT_INIT("q_obj_migrate-continue-arg", REQ("state", migration_status));
const struct schema_type machine_migrate_capabilities_type = OBJECT_INIT(
    "q_obj_migrate-set-capabilities-arg", REQ("capabilities", machine_migrate_capability_list));
const struct schema_type machine_migrate_parameters_type = {
    .kind = SCHEMA_OBJECT,
    .name = "MigrateSetParameters",
    .members = MEMBERS(OPT("max-bandwidth", schema_int), OPT("downtime-limit", schema_int),
                       OPT("block-bitmap-mapping", migrate_mapping_type)),
    .open = true,
};
const struct schema_type machine_migrate_info_type =
    OBJECT_INIT("MigrationInfo", OPT("status", migration_status), OPT("total-time", schema_int),
                OPT("error-desc", schema_str));
const struct schema_type machine_migrate_event =
    OBJECT_INIT("q_obj_MIGRATION-arg", REQ("status", migration_status));
