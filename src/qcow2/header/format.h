/* SPDX-License-Identifier: Apache-2.0 */
/*
 * qcow2 on disk, by the specification. All numbers are big-endian.
 *
 *   0   magic "QFI\xfb"          48  refcount_table_offset      (8)
 *   4   version                  56  refcount_table_clusters    (4)
 *   8   backing_file_offset (8)  60  nb_snapshots               (4)
 *   16  backing_file_size        64  snapshots_offset           (8)
 *   20  cluster_bits             72  incompatible_features      (8)   version 3 from here
 *   24  size                (8)  80  compatible_features        (8)
 *   32  crypt_method             88  autoclear_features         (8)
 *   36  l1_size                  96  refcount_order             (4)
 *   40  l1_table_offset     (8)  100 header_length              (4)
 *                                104 compression_type (1), padding (7)
 *   then header extensions: type (4), length (4), data padded to 8; type 0 ends them
 */
#ifndef TIDEMARK_QCOW2_HEADER_FORMAT_H
#define TIDEMARK_QCOW2_HEADER_FORMAT_H

#include <stdint.h>

#include "base/checked.h"

#define QCOW2_MAGIC 0x514649fbu

enum {
    HDR_MAGIC = 0,
    HDR_VERSION = 4,
    HDR_BACKING_OFFSET = 8,
    HDR_BACKING_SIZE = 16,
    HDR_CLUSTER_BITS = 20,
    HDR_SIZE = 24,
    HDR_CRYPT_METHOD = 32,
    HDR_L1_SIZE = 36,
    HDR_L1_OFFSET = 40,
    HDR_REFTABLE_OFFSET = 48,
    HDR_REFTABLE_CLUSTERS = 56,
    HDR_NB_SNAPSHOTS = 60,
    HDR_SNAPSHOTS_OFFSET = 64,
    HDR_INCOMPATIBLE = 72,
    HDR_COMPATIBLE = 80,
    HDR_AUTOCLEAR = 88,
    HDR_REFCOUNT_ORDER = 96,
    HDR_LENGTH = 100,
    HDR_COMPRESSION_TYPE = 104,
    HDR_V2_SIZE = 72,
    HDR_V3_MIN_SIZE = 104,
    HDR_OUR_SIZE = 112, /* as we write it */
};

enum crypt_method { CRYPT_NONE, CRYPT_AES, CRYPT_LUKS };

/* Bits of incompatible_features. */
#define INCOMPAT_DIRTY (1ULL << 0)
#define INCOMPAT_CORRUPT (1ULL << 1)
#define INCOMPAT_DATA_FILE (1ULL << 2)
#define INCOMPAT_COMPRESSION (1ULL << 3)
#define INCOMPAT_EXTENDED_L2 (1ULL << 4)
#define INCOMPAT_KNOWN 0x1fULL

/* Bits of compatible_features. */
#define COMPAT_LAZY_REFCOUNTS (1ULL << 0)

/* Bits of autoclear_features. */
#define AUTOCLEAR_BITMAPS (1ULL << 0)
#define AUTOCLEAR_DATA_FILE_RAW (1ULL << 1)
/* Our own: the extension EXT_ACTIVITY, and the map that it names, are valid. */
#define AUTOCLEAR_ACTIVITY_BIT 62
#define AUTOCLEAR_ACTIVITY (1ULL << AUTOCLEAR_ACTIVITY_BIT)
/* Likewise EXT_JOINT, and the record that it names. */
#define AUTOCLEAR_JOINT_BIT 61
#define AUTOCLEAR_JOINT (1ULL << AUTOCLEAR_JOINT_BIT)

/* Likewise EXT_EXCESS: no other program has written the image since. */
#define AUTOCLEAR_EXCESS_BIT 60
#define AUTOCLEAR_EXCESS (1ULL << AUTOCLEAR_EXCESS_BIT)

/* Types of header extensions. */
#define EXT_END 0u
#define EXT_BACKING_FORMAT 0xe2792acau
#define EXT_FEATURE_NAMES 0x6803f857u
#define EXT_BITMAPS 0x23852875u
#define EXT_FULL_DISK_ENCRYPTION 0x0537be77u
#define EXT_DATA_FILE_NAME 0x44415441u

/*
 * Our own type: the greatest size that the disk had while there were bitmaps (8 bytes). An area
 * that was cut off by shrinking and came back by growing reads differently, so bitmaps must call
 * it dirty. Other programs keep the extension as an unknown one; it stays true while they do not
 * change the size.
 */
#define EXT_GREATEST_SIZE 0x54444753u

/*
 * Our own type: the activity log (docs/qcow2.md). Valid only together with AUTOCLEAR_ACTIVITY.
 *
 *   0   version, 1 (4)
 *   4   log2 of the bytes of a region (4)
 *   8   file offset of the map (8)
 *   16  bytes of the map (8)
 *   24  numbers of entries of the bitmap directory, from 0, that the log says nothing of (4 each)
 */
#define EXT_ACTIVITY 0x54444c47u
#define ACTIVITY_VERSION 1u
#define EXT_ACTIVITY_SIZE 24u
/* So that the extension fits into the first sector. */
#define ACTIVITY_VOID_MAX 16u

/*
 * Our own type: a change of the bitmaps of several images (docs/qcow2.md, "Joint changes"). Valid
 * only together with AUTOCLEAR_JOINT.
 *
 *   0   version, 1 (4)
 *   4   state, enum qcow2_joint_state (4)
 *   8   number of the change, the same in all images (16)
 *   24  file offset of the record (8)
 *   32  bytes of the record (8)
 */
#define EXT_JOINT 0x54444a43u
#define JOINT_VERSION 1u
#define EXT_JOINT_SIZE 40u
#define JOINT_RECORD_BYTES_MAX (1 * MiB)
/* Images of one change. */
#define JOINT_NAMES_MAX 4096u

/* The record. Behind these fields: void entries (4 each), then names (length, 4, and bytes). */
#define JOINT_DIRECTORY_OFFSET 0u
#define JOINT_DIRECTORY_SIZE 8u
#define JOINT_BITMAPS 16u /* in the directory */
#define JOINT_VOIDS 20u
#define JOINT_NAMES 24u
#define JOINT_OWN 28u /* number of this image among the names */
#define JOINT_FIXED_SIZE 32u

/*
 * Our own type: how much of the bitmaps is dirty in excess (docs/qcow2.md, "Excess"). Without
 * AUTOCLEAR_EXCESS the sum of all counts for each bitmap. At most EXCESS_MAX times:
 *
 *   0   number of the entry of the bitmap directory, from 0, or EXCESS_ALL (4)
 *   4   why, enum qcow2_excess_why (4)
 *   8   bytes of the disk, at most (8)
 */
#define EXT_EXCESS 0x54444445u
#define EXCESS_RECORD_SIZE 16u
#define EXCESS_MAX 8u
#define EXCESS_ALL 0xffffffffu

/* Why a bitmap is a superset; numbers of the format. */
enum qcow2_excess_why {
    EXCESS_UNKNOWN, /* also: another program has written the image since */
    EXCESS_CRASH,
    EXCESS_NO_SPACE,
    EXCESS_IN_DOUBT, /* after a joint change */
    EXCESS_UNREADABLE,
};

/* What the header said at open: how much of a bitmap is dirty in excess (format.h, EXT_EXCESS). */
struct qcow2_excess {
    uint32_t entry;
    uint32_t why;
    uint64_t bytes;
};

/* Limit of extensions with unknown types. */
#define EXTENSIONS_MAX 64
#define EXT_BITMAPS_SIZE 24u
#define EXT_ENCRYPTION_SIZE 16u
/* Bytes of a header of LUKS with its key material. Existing programs need 2 MiB. */
#define LUKS_BYTES_MAX (64 * MiB)

#define CLUSTER_BITS_MIN 9
#define CLUSTER_BITS_MAX 21
#define L1_BYTES_MAX (32 * MiB)
#define REFTABLE_BYTES_MAX (8 * MiB)
#define BACKING_NAME_MAX 1023
#define SECTOR_SIZE 512u

/* L1 and L2 entries. */
#define ENTRY_OFFSET_MASK 0x00fffffffffffe00ULL
#define ENTRY_COPIED (1ULL << 63)
#define L2_COMPRESSED (1ULL << 62)
#define L2_ZERO (1ULL << 0)
#define L1_RESERVED_MASK 0x7f000000000001ffULL
#define L2_RESERVED_MASK 0x3f000000000001feULL
#define REFTABLE_OFFSET_MASK 0xfffffffffffffe00ULL

/*
 * Extended L2 entries have 16 bytes: the standard entry (without the zero flag), then a bitmap of
 * 32 subclusters. Bit n: subcluster n is allocated; bit 32 + n: it reads as zeroes. Not both are
 * set.
 */
#define SUBCLUSTERS 32u
#define EXTENDED_CLUSTER_BITS_MIN 14
#define SUB_ALL_ALLOCATED 0x00000000ffffffffULL
#define SUB_ALL_ZERO 0xffffffff00000000ULL

enum compression_type { COMPRESSION_ZLIB = 0, COMPRESSION_ZSTD = 1 };

/*
 * Bitmap directory entry:
 *   0 table_offset (8), 8 table_size (4, entries), 12 flags (4), 16 type (1),
 *   17 granularity_bits (1), 18 name_size (2), 20 extra_data_size (4), 24 extra data, name,
 *   padding to 8
 */
enum {
    BITMAP_ENTRY_TABLE_OFFSET = 0,
    BITMAP_ENTRY_TABLE_SIZE = 8,
    BITMAP_ENTRY_FLAGS = 12,
    BITMAP_ENTRY_TYPE = 16,
    BITMAP_ENTRY_GRANULARITY_BITS = 17,
    BITMAP_ENTRY_NAME_SIZE = 18,
    BITMAP_ENTRY_EXTRA_SIZE = 20,
    BITMAP_ENTRY_FIXED_SIZE = 24,
};

#define BITMAP_FLAG_IN_USE 1u
#define BITMAP_FLAG_AUTO 2u
#define BITMAP_FLAG_EXTRA_COMPATIBLE 4u
#define BITMAP_FLAGS_KNOWN 7u
#define BITMAP_TYPE_DIRTY 1u
#define BITMAPS_MAX 65535u
#define BITMAP_DIRECTORY_BYTES_MAX (1024 * (uint64_t)BITMAPS_MAX)
#define BITMAP_TABLE_BYTES_MAX (64 * MiB)
/* Bytes of bits of all bitmaps: QEMU opens no image with more. */
#define BITMAP_BYTES_MAX (512 * MiB)

/* Bitmap table entries: bit 0 with offset 0 means "all ones" for the cluster's worth of bits. */
#define BITMAP_TABLE_ALL_ONES 1ULL

#endif
