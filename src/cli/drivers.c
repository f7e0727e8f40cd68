/* SPDX-License-Identifier: Apache-2.0 */
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "backup/point.h"
#include "backup/stored_node.h"
#include "block/user_object.h"
#include "bochs/bochs.h"
#include "cli/cli.h"
#include "export/fuse_export.h"
#include "export/nbd_server.h"
#include "file/file_drivers.h"
#include "filter/filter.h"
#include "filter/throttle_group.h"
#include "http/http.h"
#include "luks/luks.h"
#include "nbd/nbd.h"
#include "parallels/parallels.h"
#include "qcow1/qcow1.h"
#include "qcow2/qcow2.h"
#include "qed/qed.h"
#include "ssh/ssh.h"
#include "tls/tls.h"
#include "vdi/vdi.h"
#include "vhdx/vhdx.h"
#include "vmdk/vmdk.h"
#include "vpc/vpc.h"

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
    static bool done;

    if (done) {
        return;
    }
    done = true;
    file_register_drivers();
    luks_register_driver();
    qcow2_register_driver();
    bochs_register_driver();
    vpc_register_driver();
    vmdk_register_driver();
    vdi_register_driver();
    qed_register_driver();
    vhdx_register_driver();
    parallels_register_driver();
    qcow1_register_driver();
    filter_register_drivers();
    throttle_group_register_type();
    verify_set_watch(end_at_disagreement);
    nbd_register_driver();
    export_nbd_register_type();
    export_fuse_register_type();
    ssh_register_driver();
    http_register_drivers();
    point_register_driver();
    stored_node_register_driver();
    secret_register_type();
    tls_register_types();
}
