/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VHDX image whose metadata hold anything. The input is parts of the image one after another,
 * each put where it belongs; checksums are made right.
 */
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "vhdx/image.h"
#include "vhdx/vhdx.h"

#define IMAGE_SIZE (6 * MiB)
#define METADATA (3 * MiB)
#define VALUES (METADATA + VHDX_METADATA_TABLE_SIZE)
#define LOG_SIZE ((size_t)64 * KiB)
#define HAS_PARENT 2u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum { HEADER, REGIONS, TABLE, ITEMS, ENTRIES, LOCATOR, LOG, PARTS };

/*
 * Lengths in the input, those in the image, and offsets there. Headers and region tables have a
 * checksum of all their bytes. The last part is what is left: the log.
 */
static const struct {
    size_t input, length;
    uint64_t offset;
} places[PARTS] = {
    [HEADER] = {80, VHDX_HEADER_SIZE, VHDX_HEADER_1},
    [REGIONS] = {112, VHDX_REGIONS_SIZE, VHDX_REGIONS_1},
    [TABLE] = {264, 264, METADATA},
    [ITEMS] = {64, 64, VALUES},
    [ENTRIES] = {128, 128, 2 * MiB},
    [LOCATOR] = {256, 256, VALUES + 64},
    [LOG] = {LOG_SIZE, LOG_SIZE, MiB},
};

static void fix_log(uint8_t *log, size_t size)
{
    for (size_t at = 0; at + VHDX_LOG_SECTOR <= size; at += VHDX_LOG_SECTOR) {
        uint32_t length = load_le32(log + at + 8);

        if (memcmp(log + at, "loge", 4) == 0 && length >= 64 && range_fits(at, length, size)) {
            store_le32(log + at + 4, vhdx_checksum(log + at, length, 4));
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t b[PARTS][LOG_SIZE];
    struct format_part part[PARTS + 1] = {{0, (const uint8_t *)"vhdxfile", 8}};
    size_t at = 0;

    for (size_t i = 0; i < PARTS; i++) {
        size_t n = MIN(places[i].input, size - at);

        memset(b[i], 0, places[i].input);
        memcpy(b[i], data + at, n);
        at += n;
        part[i + 1] = (struct format_part){places[i].offset, b[i], places[i].length};
    }
    store_le32(b[HEADER] + 4, vhdx_checksum(b[HEADER], VHDX_HEADER_SIZE, 4));
    store_le32(b[REGIONS] + 4, vhdx_checksum(b[REGIONS], VHDX_REGIONS_SIZE, 4));
    fix_log(b[LOG], LOG_SIZE);
    format_image_set_parent(load_le32(b[ITEMS] + 4) & HAS_PARENT ? 3 * MiB / 2 : 0);
    format_image_try_parts("vhdx", &(struct format_parts){part, PARTS + 1, IMAGE_SIZE}, size % 2);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(vhdx_register_driver);
    return 0;
}
