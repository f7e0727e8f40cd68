/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_INFO_H
#define TIDEMARK_QCOW2_INFO_H

#include "block/driver.h"

/* block_driver.specific_info_type */
extern const struct schema_type qcow2_specific_info_type;
/* block_driver.co_specific_info: QEMU's ImageInfoSpecificQCow2. The caller frees it. */
struct json_object *qcow2_co_specific_info(struct block_node *node);

/* block_driver.co_get_info. Never fails. */
int qcow2_co_get_info(struct block_node *node, struct block_info *ret_info);

#endif
