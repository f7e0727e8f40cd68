/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"
#ifdef CLI_LAYER_FILE
#include "file/file_drivers.h"
#endif
#ifdef CLI_LAYER_FILTER
#include "filter/filter.h"
#endif
#ifdef CLI_LAYER_NBD
#include "nbd/nbd.h"
#endif
#ifdef CLI_LAYER_QCOW2
#include "qcow2/qcow2.h"
#endif

void cli_register_drivers(void)
{
#ifdef CLI_LAYER_FILE
    file_register_drivers();
#endif
#ifdef CLI_LAYER_QCOW2
    qcow2_register_driver();
#endif
#ifdef CLI_LAYER_FILTER
    filter_register_drivers();
#endif
#ifdef CLI_LAYER_NBD
    nbd_register_driver();
#endif
}
