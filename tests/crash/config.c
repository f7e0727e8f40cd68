/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stddef.h>
#include <string.h>

#include "base/checked.h"
#include "random.h"

#define IMAGE_KINDS 16u /* then come those about chains of images, and the rest of qcow2 */
#define JOB_KINDS 6u
#define QCOW2_KINDS (IMAGE_KINDS + JOB_KINDS + 1)
#define FORMAT_KINDS (CRASH_CONFIG_KINDS - QCOW2_KINDS)

/* clang-format off */
const char *const crash_config_names[CRASH_CONFIG_KINDS + 4] = {
    "plain",
    "small-clusters",
    "large-clusters",
    "version-2",
    "refcount-bits",
    "extended-l2",
    "data-file",
    "data-file-raw",
    "compressed",
    "lazy-refcounts",
    "preallocated",
    "bitmaps",
    "discard-no-unref",
    "commit",
    "amend",
    "full",
    "job-stream",
    "job-commit",
    "job-commit-active",
    "job-mirror",
    "live-snapshot",
    "live-changes",
    "joint",
    "vmdk",
    "vpc",
    "vhdx",
    "vdi",
    "qed",
    "parallels",
    "qcow",
    "luks",
    "luks-detached",
    "luks-qcow2",
    "images",
    "jobs",
    "formats",
    NULL,
};
/* clang-format on */

enum kind {
    PLAIN,
    SMALL_CLUSTERS,
    LARGE_CLUSTERS,
    VERSION_2,
    REFCOUNT_BITS,
    EXTENDED_L2,
    DATA_FILE,
    DATA_FILE_RAW,
    COMPRESSED,
    LAZY_REFCOUNTS,
    PREALLOCATED,
    BITMAPS,
    DISCARD_NO_UNREF,
    COMMIT,
    AMEND,
    FULL,
    JOB_STREAM,
    JOB_COMMIT,
    JOB_COMMIT_ACTIVE,
    JOB_MIRROR,
    LIVE_SNAPSHOT,
    LIVE_CHANGES,
    JOINT,
    VMDK,
    VPC,
    VHDX,
    VDI,
    QED,
    PARALLELS,
    QCOW,
    LUKS,
    LUKS_DETACHED,
    LUKS_QCOW2,
};

/* Of formats other than qcow2, and of encrypted disks. */
static void set_format_kind(struct crash_config *c, uint64_t variant)
{
    switch ((enum kind)c->kind) {
    case VMDK:
        c->format = "vmdk";
        c->cluster_size = 64 * KiB;
        break;
    case VPC:
        c->format = "vpc";
        c->cluster_size = 2 * MiB;
        break;
    case VHDX:
        c->format = "vhdx";
        c->cluster_size = MiB << variant % 2;
        break;
    case VDI:
        c->format = "vdi";
        c->cluster_size = MiB;
        break;
    case QED:
        c->format = "qed";
        c->cluster_size = 64 * KiB;
        break;
    case PARALLELS:
        c->format = "parallels";
        c->cluster_size = 64 * KiB << variant % 2 * 4;
        break;
    case QCOW:
        c->format = "qcow";
        c->cluster_size = 4096;
        break;
    case LUKS_DETACHED:
    case LUKS:
        c->format = "luks";
        c->keys = true;
        c->detached_header = c->kind == LUKS_DETACHED;
        c->cluster_size = 4096;
        break;
    case LUKS_QCOW2:
        c->keys = true;
        c->bitmaps = variant % 2;
        break;
    default:
        break;
    }
}

/* What a kind is about; `variant` goes through its possibilities. */
static void set_kind(struct crash_config *c, uint64_t variant)
{
    static const unsigned widths[] = {1, 2, 4, 8, 32, 64};
    static const char *const preallocations[] = {"metadata", "falloc", "full"};

    switch ((enum kind)c->kind) {
    case PLAIN:
        break;
    case SMALL_CLUSTERS:
        c->cluster_size = 512u << variant % 3;
        break;
    case LARGE_CLUSTERS:
        c->cluster_size = 128u * 1024 << variant % 5;
        break;
    case VERSION_2:
        c->version = 2;
        c->cluster_size = variant % 4 == 3 ? 512 : c->cluster_size;
        break;
    case REFCOUNT_BITS:
        c->refcount_bits = widths[variant % ARRAY_SIZE(widths)];
        break;
    case EXTENDED_L2:
        c->extended_l2 = true;
        c->cluster_size = 16384u << variant % 4;
        break;
    case DATA_FILE_RAW:
        c->data_file_raw = true;
        c->data_file = true;
        break;
    case DATA_FILE:
        c->data_file = true;
        c->long_names = variant % 2;
        c->extended_l2 = variant % 4 == 3;
        break;
    case COMPRESSED:
        c->compressed = true;
        c->zstd = variant % 2;
        break;
    case LAZY_REFCOUNTS:
        c->lazy_refcounts = true;
        break;
    case PREALLOCATED:
        c->preallocation = preallocations[variant % ARRAY_SIZE(preallocations)];
        break;
    case BITMAPS:
        c->bitmaps = true;
        break;
    case DISCARD_NO_UNREF:
        c->discard_no_unref = true;
        break;
    case COMMIT:
        c->backing = true;
        c->version = variant % 4 == 1 ? 2 : 3;
        c->extended_l2 = variant % 4 == 2;
        c->lazy_refcounts = variant % 8 == 3;
        break;
    case AMEND:
        c->amend = AMEND_REFCOUNT_BITS + variant % 3;
        c->backing = c->amend == AMEND_VERSION && variant % 2;
        break;
    case FULL:
        c->room = 4u << variant % 6;
        c->compressed = variant % 3 == 1;
        c->lazy_refcounts = variant % 4 == 3;
        break;
    case JOINT:
        c->bitmaps = c->joint = true;
        c->cluster_size = variant % 4 == 3 ? 1024 : c->cluster_size;
        break;
    case JOB_STREAM:
    case JOB_COMMIT:
    case JOB_COMMIT_ACTIVE:
    case JOB_MIRROR:
    case LIVE_SNAPSHOT:
    case LIVE_CHANGES:
        c->job = CRASH_STREAM + (c->kind - JOB_STREAM);
        c->version = variant % 8 == 5 ? 2 : 3;
        c->extended_l2 = variant % 8 == 2;
        c->lazy_refcounts = variant % 8 == 3;
        break;
    default:
        set_format_kind(c, variant);
        break;
    }
}

/* What goes with it, by chance. */
static void set_extras(struct crash_config *c, uint64_t *random)
{
    c->bitmaps |= random_below(random, 2);
    c->compressed |= random_below(random, 8) == 0;
    c->lazy_refcounts |= random_below(random, 8) == 0;
    c->discard_no_unref |= random_below(random, 8) == 0;
    c->small_caches = random_below(random, 4) == 0;
    /* What does not go together. */
    if (c->version == 2 || c->amend == AMEND_VERSION) {
        c->bitmaps = c->discard_no_unref = false;
        c->lazy_refcounts &= c->version == 3;
    }
    c->compressed &= !c->data_file;
    if (c->extended_l2) {
        c->cluster_size = MAX(c->cluster_size, 16384);
    }
    c->commit = c->backing && c->amend == AMEND_NOTHING;
    c->snapshots = !c->data_file && !c->commit && c->room == 0 && !c->job;
    /*
     * A downgrade is refused if snapshots have other sizes. A disk that shrinks is not full any
     * more.
     */
    c->resize = c->room > 0 ? random_below(random, 3) == 0
                            : c->amend != AMEND_VERSION || random_below(random, 2);
    c->resize &= !c->job || c->job == CRASH_LIVE;
}

static void choose_kind(uint64_t seed, const char *name, uint64_t *ret_kind, uint64_t *ret_variant)
{
    uint64_t kinds = QCOW2_KINDS, first = 0;

    if (name && strcmp(name, "images") == 0) {
        kinds = IMAGE_KINDS;
    } else if (name && strcmp(name, "jobs") == 0) {
        kinds = JOB_KINDS;
        first = IMAGE_KINDS;
    } else if (name && strcmp(name, "formats") == 0) {
        kinds = FORMAT_KINDS;
        first = QCOW2_KINDS;
    } else if (name) {
        kinds = 1;
        while (strcmp(crash_config_names[first], name) != 0) {
            first++;
        }
    }
    *ret_kind = first + seed % kinds;
    *ret_variant = seed / kinds;
}

void crash_config_choose(struct crash_config *c, uint64_t seed, const char *name)
{
    static const uint32_t cluster_sizes[] = {4096, 65536, 8192, 32768, 16384};
    uint64_t random = random_mix(seed + 4711), kind, variant;

    choose_kind(seed, name, &kind, &variant);
    *c = (struct crash_config){
        .name = crash_config_names[kind],
        .kind = (unsigned)kind,
        .version = 3,
        .cluster_size = cluster_sizes[variant % ARRAY_SIZE(cluster_sizes)],
        .refcount_bits = 16,
    };
    set_kind(c, variant);
    if (c->format || c->keys) {
        return;
    }
    set_extras(c, &random);
    c->base_cluster_size = random_below(&random, 2) ? c->cluster_size : 4096;
    if (c->extended_l2) {
        c->base_cluster_size = MAX(c->base_cluster_size, 16384);
    }
}
