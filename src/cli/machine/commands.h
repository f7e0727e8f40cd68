/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The commands and events of QMP that the machine adds to those of the daemon. Main reactor only.
 */
#ifndef TIDEMARK_CLI_MACHINE_COMMANDS_H
#define TIDEMARK_CLI_MACHINE_COMMANDS_H

#include "qmp/commands.h"
#include "qmp/table.h"

extern const struct qmp_addition machine_qmp;

qmp_co_command machine_co_latency_histogram_set;
qmp_co_command machine_co_query_block, machine_co_query_blockstats;
qmp_co_command machine_co_eject, machine_co_open_tray, machine_co_close_tray,
    machine_co_insert_medium, machine_co_remove_medium, machine_co_change_medium;
qmp_co_command machine_co_nbd_server_add;
qmp_co_command machine_co_set_io_throttle;
qmp_co_command machine_co_stop, machine_co_cont, machine_co_query_status;
qmp_co_command machine_co_qom_get;
qmp_co_command machine_co_qom_set;

/* -name NAME, or -name guest=NAME: what query-name answers. Borrowed. Does not yield. */
void machine_set_name(const char *option);

#endif
