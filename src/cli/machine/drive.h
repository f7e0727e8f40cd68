/* SPDX-License-Identifier: Apache-2.0 */
/*
 * -drive: a disk, its node, and in most cases the guest device on it. Main reactor only; `co_`
 * functions yield.
 */
#ifndef TIDEMARK_CLI_MACHINE_DRIVE_H
#define TIDEMARK_CLI_MACHINE_DRIVE_H

#include <stdbool.h>

#include "base/error.h"

struct machine_disk;
struct machine_drive;

/*
 * Make the disk that the text of -drive describes; `interface`: if the text does not say, NULL for
 * that of the machine. *ret_drive is for the second step. Errors of opening the image; -EINVAL.
 */
int machine_co_add_drive(const char *text, const char *interface, struct machine_drive **ret_drive,
                         struct error *err);
/*
 * The second step, when controllers are there: the device on it, unless if=none. Frees `drive`,
 * also on failure.
 */
int machine_co_connect_drive(struct machine_drive *drive, struct error *err);
/* Free what a disk that will not be connected was to be made of; the disk stays. */
void machine_drive_free(struct machine_drive *drive);
/* Whether the device will be one of the machine's board, rather than one that the option adds. */
bool machine_drive_is_on_board(const struct machine_drive *drive);
/* From now on a drive gets a temporary overlay if its text does not say: the option -snapshot. */
void machine_drives_get_overlays(void);
/* Print the formats, as `-drive format=help` does, if the text asks for that. */
bool machine_drive_help(const char *text);

#endif
