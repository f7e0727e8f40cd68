/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Migration: what one machine has goes on in another process. There is no guest, so this is the
 * disks: they are handed over (block/hand_over.h), with their bitmaps if the capability
 * `dirty-bitmaps` is on. The stream is Tidemark's own, a JSON text. Commands and states are those
 * of QEMU. Main reactor only.
 */
#ifndef TIDEMARK_CLI_MACHINE_MIGRATE_H
#define TIDEMARK_CLI_MACHINE_MIGRATE_H

#include "base/error.h"
#include "qmp/commands.h"

/*
 * -incoming URI: the machine waits for another one's state, from the beginning. `uri` is borrowed;
 * "defer": migrate-incoming names the channel. Does not yield.
 */
void machine_wait_for_migration(const char *uri);
/* Whether the machine waits so, and nodes are made without being used. Does not yield. */
bool machine_waits_for_migration(void);
/* The machine has been made: begin to receive. Yields. */
int machine_migration_co_start(struct error *err);
/* Whether the machine ends because what it waited for did not come. Does not yield. */
bool machine_migration_is_lost(void);
/* End what is under way, and wait for that. Yields. */
void machine_migration_co_end(void);

/*
 * Begin to migrate to a channel. -EBUSY: under way. Errors of the channel. Yields.
 */
int machine_co_migrate_to(const char *uri, struct error *err);
/* Switch a capability. -EINVAL: there is none of that name. Does not yield. */
int machine_set_migration_capability(const char *name, bool on, struct error *err);
/* The last migration: QEMU's MigrationStatus. Does not yield. */
const char *machine_migration_status(void);

extern const struct schema_type machine_migrate_type, machine_migrate_incoming_type,
    machine_migrate_continue_type, machine_migrate_capabilities_type,
    machine_migrate_parameters_type, machine_migrate_info_type, machine_migrate_capability_list,
    machine_migrate_event;
qmp_co_command machine_co_migrate, machine_co_migrate_incoming, machine_co_migrate_continue,
    machine_co_migrate_set_capabilities, machine_co_migrate_set_parameters,
    machine_co_migrate_start_postcopy, machine_co_query_migrate,
    machine_co_query_migrate_capabilities;

#endif
