/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The type of the options of nodes, as blockdev-add and --blockdev take them: a union over the
 * drivers that are registered, each of which describes its own options (struct block_driver,
 * `options`). Nothing here yields.
 */
#ifndef TIDEMARK_BLOCK_OPTION_TYPES_H
#define TIDEMARK_BLOCK_OPTION_TYPES_H

#include "schema/schema.h"

/* BlockdevOptions */
extern const struct schema_type block_options_type;
/* BlockdevRef: the name of a node, or its options. BlockdevRefOrNull: or null, for no node. */
extern const struct schema_type block_ref_type, block_ref_or_null_type;
/* BlockdevOptionsGenericFormat: the child "file", and nothing else. */
extern const struct schema_type block_format_options_type;
/* BlockDirtyBitmap: the names of a node and of one of its bitmaps. */
extern const struct schema_type block_bitmap_ref_type;
/* A list of bitmaps: BlockDirtyBitmapOrStr, a name alone is that of a bitmap of a known node. */
extern const struct schema_type block_bitmaps_or_names_type;
/* BlockPermission */
extern const struct schema_type block_permission_type;
/* A list of BlockdevRef. */
extern const struct schema_type block_refs_type;
/* BlockdevDriver: the names of the drivers that can be opened. */
extern const struct schema_type block_driver_names_type;
/* BlockdevDetectZeroesOptions, OnOffAuto */
extern const struct schema_type block_detect_zeroes_type, block_on_off_auto_type;

/* BlockdevCreateOptions, BlockdevAmendOptions: unions over the drivers that can do it by QMP. */
extern const struct schema_type block_create_options_type, block_amend_options_type;
/* PreallocMode */
extern const struct schema_type block_prealloc_type;
/* ImageInfoSpecific: a union over what drivers show of their images. */
extern const struct schema_type block_specific_info_type;

#endif
