/* SPDX-License-Identifier: Apache-2.0 */
/* The types of options, for QMP and help: QEMU's qapi/crypto.json and qapi/block-core.json. */
#ifndef TIDEMARK_LUKS_TYPES_H
#define TIDEMARK_LUKS_TYPES_H

#include "schema/schema.h"

/* BlockdevOptionsLUKS, BlockdevCreateOptionsLUKS, BlockdevAmendOptionsLUKS */
extern const struct schema_type luks_options_type, luks_create_type, luks_amend_type;

/* What formats embed: QCryptoBlockOptionsLUKS, -CreateOptionsLUKS, -AmendOptionsLUKS. */
extern const struct schema_type luks_key_type, luks_format_type, luks_change_type;

/* QCryptoBlockInfoLUKS, ImageInfoSpecificLUKSWrapper */
extern const struct schema_type luks_info_type, luks_specific_info_type;

#endif
