/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for QEMU's system emulator, without a guest: the daemon under the command line by
 * which QEMU's tests start a machine. It is a program of its own, for tests (compat/machine.c), and
 * not installed.
 */
#ifndef TIDEMARK_CLI_MACHINE_MACHINE_H
#define TIDEMARK_CLI_MACHINE_MACHINE_H

/* Run it; returns the exit status of the process. */
int cli_machine_main(int argc, char **argv);

#endif
