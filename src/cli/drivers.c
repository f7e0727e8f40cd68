/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <unistd.h>

#include "block/user_object.h"
#include "bochs/bochs.h"
#include "cli/cli.h"
#include "export/nbd_server.h"
#include "file/file_drivers.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "http/http.h"
#include "luks/luks.h"
#include "nbd/nbd.h"
#include "qcow2/qcow2.h"
#include "ssh/ssh.h"
#include "tls/tls.h"

/* Keep the state of the images as it is. */
static void end_at_disagreement(const char *sentence)
{
    fflush(stdout);
    fprintf(stderr, "%s\n", sentence);
    fflush(stderr);
    _exit(1);
}

void cli_register_drivers(void)
{
    file_register_drivers();
    luks_register_driver();
    qcow2_register_driver();
    bochs_register_driver();
    filter_register_drivers();
    throttle_group_register_type();
    verify_set_watch(end_at_disagreement);
    nbd_register_driver();
    export_nbd_register_type();
    ssh_register_driver();
    http_register_drivers();
    secret_register_type();
    tls_register_types();
}
