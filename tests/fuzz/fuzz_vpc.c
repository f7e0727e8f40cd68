/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as a VHD image. Its checksums are made right first. */
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "vpc/header.h"
#include "vpc/vpc.h"

#define IMAGE_MAX (256 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void fix(uint8_t *b, uint64_t offset, unsigned length, unsigned field, size_t size)
{
    if (range_fits(offset, length, size)) {
        store_be32(b + offset + field, vpc_checksum(b + offset, length, field));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t b[IMAGE_MAX];
    bool is_child;

    if (size < VPC_FOOTER_SIZE || size > IMAGE_MAX) {
        return 0;
    }
    memcpy(b, data, size);
    fix(b, load_be64(b + 16), VPC_HEADER_SIZE, VPC_HEADER_CHECKSUM, size);
    fix(b, size - VPC_FOOTER_SIZE, VPC_FOOTER_SIZE, VPC_FOOTER_CHECKSUM, size);
    fix(b, 0, VPC_FOOTER_SIZE, VPC_FOOTER_CHECKSUM, size);
    /* The type, in the copy of the footer that counts, or at the end. */
    is_child = load_be32(b + 60) == 4 || load_be32(b + size - VPC_FOOTER_SIZE + 60) == 4;
    format_image_set_parent(is_child ? 6000 : 0);
    format_image_try("vpc", b, size, 1);
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(vpc_register_driver);
    return 0;
}
