/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots of the machine: one internal snapshot of each of its images, by the same name, of which
 * the first one has the VM state as well. There is no guest: the VM state is a mark alone.
 *
 * The images are those that a disk or another user has, and the nodes that a monitor owns and no
 * node is above, unless they are read-only. Main reactor only. All functions have the control lock,
 * yield, return 0 or -errno, and fill `err` on failure, in QEMU's words.
 */
#ifndef TIDEMARK_CLI_MACHINE_VM_SNAPSHOT_H
#define TIDEMARK_CLI_MACHINE_VM_SNAPSHOT_H

#include "base/error.h"
#include "base/strbuf.h"

/* Replaces a snapshot of that name. NULL: a name is made of the time. On failure none is left. */
int machine_co_save_vm(const char *name, struct error *err);
/* All images become what they were. The machine stops meanwhile. */
int machine_co_load_vm(const char *name, struct error *err);
/* Images that have no snapshot of that name stay as they are. */
int machine_co_delete_vm(const char *name, struct error *err);
/* Append what the images have, for people: what can be loaded, and what each has besides. */
int machine_co_list_vm(struct strbuf *text, struct error *err);

#endif
