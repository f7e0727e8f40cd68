/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file that holds anything, opened as an image of Parallels. The checksum of a format extension
 * in the third cluster is made right, so that what it has inside is reached.
 */
#include <nettle/md5.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "parallels/image.h"
#include "parallels/parallels.h"

#define IMAGE_MAX (256 * KiB)
#define EXTENSION_HEADER 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static uint8_t image[IMAGE_MAX];

static void mend_checksum(size_t size)
{
    uint64_t sector = load_le64(image + PARALLELS_AT_EXTENSION), length;
    struct md5_ctx md5;

    length = (uint64_t)load_le32(image + PARALLELS_AT_TRACKS) * PARALLELS_SECTOR;
    if (sector < 1 || sector > size / PARALLELS_SECTOR || length <= EXTENSION_HEADER ||
        !range_fits(sector * PARALLELS_SECTOR, length, size)) {
        return;
    }
    md5_init(&md5);
    md5_update(&md5, length - EXTENSION_HEADER,
               image + sector * PARALLELS_SECTOR + EXTENSION_HEADER);
    md5_digest(&md5, MD5_DIGEST_SIZE, image + sector * PARALLELS_SECTOR + 8);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && size <= IMAGE_MAX) {
        memcpy(image, data, size);
        if (size >= PARALLELS_HEADER_SIZE) {
            mend_checksum(size);
        }
        format_image_set_parent(data[0] == 'w' ? 6000 : 0);
        format_image_try("parallels", image, size, 1);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(parallels_register_driver);
    return 0;
}
