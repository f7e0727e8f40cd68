/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The driver "tidemark-backup": a disk as it was at one of its backups, for reading. Options:
 * `repository`, the directory, and `at`, the id of a backup or an unambiguous beginning of it (the
 * newest if absent); `key-secret` or `passphrase-secret`, the ID of a secret object, instead of the
 * key of the program. Every cluster is compared with its checksum before anything of it is
 * returned; one that differs is an I/O error, and a line in the log that names file and offset.
 */
#ifndef TIDEMARK_BACKUP_POINT_H
#define TIDEMARK_BACKUP_POINT_H

#include <signal.h>

#define POINT_DRIVER "tidemark-backup"

/* Register the driver. Called once, at start. Does not yield. */
void point_register_driver(void);
/*
 * For a program with one user: opening a point in time ends with -EINTR when *stop becomes true.
 * NULL, as at start: it does not. Does not yield.
 */
void point_stop_by(volatile sig_atomic_t *stop);

#endif
