/* SPDX-License-Identifier: Apache-2.0 */
#include "block/option_types.h"

#include <stdlib.h>
#include <string.h>

#include "block/internal.h"
#include "schema/define.h"

static const char *const *get_driver_names(void);
static const struct schema_variant *get_driver_options(void);
static const char *get_driver_help(const char *name);

/* --- what drivers use ------------------------------------------------------------------------- */

const struct schema_type block_driver_names_type = {
    .kind = SCHEMA_ENUM,
    .name = "BlockdevDriver",
    .get_values = get_driver_names,
    .refuse_value = block_refuse_driver,
};
const struct schema_type block_ref_type = {
    .kind = SCHEMA_ALTERNATE,
    .name = "BlockdevRef",
    .help = "the name of a node, or the options of a node that is opened with its parent",
    .choice = (const struct schema_type *const[]){&block_options_type, &schema_str, NULL},
};
const struct schema_type block_ref_or_null_type = {
    .kind = SCHEMA_ALTERNATE,
    .name = "BlockdevRefOrNull",
    .help = "as BlockdevRef; null: no node",
    .choice =
        (const struct schema_type *const[]){&block_options_type, &schema_str, &schema_null, NULL},
};
const struct schema_type block_refs_type = ARRAY_INIT("BlockdevRefList", block_ref_type);
const struct schema_type block_format_options_type =
    OBJECT_INIT("BlockdevOptionsGenericFormat", REQ("file", block_ref_type));
const struct schema_type block_bitmap_ref_type =
    OBJECT_INIT("BlockDirtyBitmap", REQ("node", schema_str, .help = "name of the node"),
                REQ("name", schema_str, .help = "name of the bitmap"));
static const struct schema_type bitmap_or_name = {
    .kind = SCHEMA_ALTERNATE,
    .name = "BlockDirtyBitmapOrStr",
    .choice = (const struct schema_type *const[]){&schema_str, &block_bitmap_ref_type, NULL},
};
const struct schema_type block_bitmaps_or_names_type =
    ARRAY_INIT("BlockDirtyBitmapOrStrList", bitmap_or_name);
const struct schema_type block_permission_type =
    ENUM_INIT("BlockPermission", "consistent-read", "write", "write-unchanged", "resize");
const struct schema_type block_on_off_auto_type = ENUM_INIT("OnOffAuto", "auto", "on", "off");

/* --- options of all nodes --------------------------------------------------------------------- */

const struct schema_type block_detect_zeroes_type =
    ENUM_INIT("BlockdevDetectZeroesOptions", "off", "on", "unmap");
ENUM(discard_type, "BlockdevDiscardOptions", "ignore", "unmap");
OBJECT(cache_type, "BlockdevCacheOptions",
       OPT("direct", schema_bool, .dflt = "false", .help = "bypass the page cache of the host"),
       OPT("no-flush", schema_bool, .dflt = "false",
           .help = "ignore flushes: after a crash of the host the image may be damaged"));

const struct schema_type block_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevOptions",
    .members = MEMBERS(
        REQ("driver", block_driver_names_type, .help = "the format, protocol or filter"),
        OPT("node-name", schema_str,
            .help = "by which other commands find the node; required for the root of blockdev-add"),
        OPT("discard", discard_type, .dflt = "ignore",
            .help = "whether discards of guests reach the storage"),
        OPT("cache", cache_type),
        OPT("read-only", schema_bool, .dflt = "false", .help = "refuse writes"),
        OPT("auto-read-only", schema_bool, .dflt = "false",
            .help = "open the file read-only if it cannot be written, or while nobody writes"),
        OPT("force-share", schema_bool, .dflt = "false",
            .help = "take no image lock; for read-only nodes"),
        OPT("detect-zeroes", block_detect_zeroes_type, .dflt = "off",
            .help = "turn writes of zeroes into zero clusters, or into discards (unmap)"),
        OPT("active", schema_bool, .dflt = "true",
            .help = "false: another process may write the image until blockdev-set-active")),
    .tag = "driver",
    .get_variants = get_driver_options,
    .get_case_help = get_driver_help,
};

/* --- by driver -------------------------------------------------------------------------------- */

/* The options of a driver that does not describe them: it checks them itself. */
static const struct schema_type undescribed = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevOptionsUndescribed",
    .members = (const struct schema_member[]){{.name = NULL}},
    .open = true,
};

static int compare_drivers(const void *a, const void *b)
{
    const struct schema_variant *x = a, *y = b;

    return strcmp(x->value, y->value);
}

/* Sorted by name. The drivers are registered once, before anybody asks. */
static const struct schema_variant *get_driver_options(void)
{
    static struct schema_variant variants[BLOCK_DRIVERS_MAX + 1];
    const struct block_driver *d = NULL;
    size_t count = 0;

    if (variants[0].value) {
        return variants;
    }
    while ((d = block_next_driver(d))) {
        if (d->co_open && block_driver_is_usable(d)) {
            variants[count++] =
                (struct schema_variant){d->name, d->options ? d->options : &undescribed};
        }
    }
    qsort(variants, count, sizeof(variants[0]), compare_drivers);
    return variants;
}

static const char *get_driver_help(const char *name)
{
    const struct block_driver *d = block_find_driver(name);

    return d ? d->help : NULL;
}

static const char *const *get_driver_names(void)
{
    static const char *names[BLOCK_DRIVERS_MAX + 1];
    const struct schema_variant *variants = get_driver_options();

    for (size_t i = 0; variants[i].value; i++) {
        names[i] = variants[i].value;
    }
    return names;
}

/* --- creation --------------------------------------------------------------------------------- */

const struct schema_type block_prealloc_type =
    ENUM_INIT("PreallocMode", "off", "metadata", "falloc", "full");

static const struct schema_variant *get_create_options(void)
{
    static struct schema_variant variants[BLOCK_DRIVERS_MAX + 1];
    const struct block_driver *d = NULL;
    size_t count = 0;

    while ((d = block_next_driver(d))) {
        if (d->create_type) {
            variants[count++] = (struct schema_variant){d->name, d->create_type};
        }
    }
    return variants;
}

const struct schema_type block_create_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevCreateOptions",
    .members = MEMBERS(REQ("driver", block_driver_names_type)),
    .tag = "driver",
    .get_variants = get_create_options,
};
static const struct schema_variant *get_amend_options(void)
{
    static struct schema_variant variants[BLOCK_DRIVERS_MAX + 1];
    const struct block_driver *d = NULL;
    size_t count = 0;

    while ((d = block_next_driver(d))) {
        if (d->amend_type) {
            variants[count++] = (struct schema_variant){d->name, d->amend_type};
        }
    }
    return variants;
}

const struct schema_type block_amend_options_type = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockdevAmendOptions",
    .members = MEMBERS(REQ("driver", block_driver_names_type)),
    .tag = "driver",
    .get_variants = get_amend_options,
};

/* --- information ------------------------------------------------------------------------------ */

static const struct schema_variant *get_specific_infos(void)
{
    static struct schema_variant variants[BLOCK_DRIVERS_MAX + 1];
    const struct block_driver *d = NULL;
    size_t count = 0;

    while ((d = block_next_driver(d))) {
        if (d->specific_info_type) {
            variants[count++] = (struct schema_variant){d->name, d->specific_info_type};
        }
    }
    return variants;
}

static const char *const *get_specific_info_names(void)
{
    static const char *names[BLOCK_DRIVERS_MAX + 1];
    const struct schema_variant *variants = get_specific_infos();

    for (size_t i = 0; variants[i].value; i++) {
        names[i] = variants[i].value;
    }
    return names;
}

static const struct schema_type specific_info_names = {
    .kind = SCHEMA_ENUM,
    .name = "ImageInfoSpecificKind",
    .get_values = get_specific_info_names,
};
const struct schema_type block_specific_info_type = {
    .kind = SCHEMA_OBJECT,
    .name = "ImageInfoSpecific",
    .members = MEMBERS(REQ("type", specific_info_names)),
    .tag = "type",
    .get_variants = get_specific_infos,
};
