/* SPDX-License-Identifier: Apache-2.0 */
#include "filter/filter.h"

void filter_register_drivers(void)
{
    block_register_driver(&copy_before_write_driver);
    block_register_driver(&snapshot_access_driver);
    block_register_driver(&write_log_driver);
    block_register_driver(&fault_driver);
    block_register_driver(&copy_on_read_driver);
    block_register_driver(&compress_driver);
    block_register_driver(&quorum_driver);
}
