/* SPDX-License-Identifier: Apache-2.0 */
/* A part of test-restore: a restored disk is started in an emulator. */
#ifndef TIDEMARK_CLI_BACKUP_BOOT_H
#define TIDEMARK_CLI_BACKUP_BOOT_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "cli/args.h"

struct boot_options {
    const char *program;           /* path of the emulator */
    const struct cli_items *words; /* more of its arguments */
    const char *disk;              /* a raw file, which is written to */
    const char *marker;            /* text that the guest prints on its serial console */
    int64_t limit_ns;
    volatile sig_atomic_t *stop;
};

/*
 * Start the disk and wait for the marker; the emulator is ended in any case. With KVM, unless
 * `words` choose a machine, a guest that prints nothing for a third of the limit is started once
 * more, without KVM and with the whole limit. Returns 1 if the
 * marker came, after *ret_ns; 0 if not, and *ret_tail, malloc'ed, is the end of what the guest
 * printed; -errno: it could not be tried, or was stopped. Blocks.
 */
int boot_disk(const struct boot_options *options, int64_t *ret_ns, char **ret_tail,
              struct error *err);

#endif
