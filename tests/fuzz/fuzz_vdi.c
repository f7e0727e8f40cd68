/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as a VDI image. */
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "vdi/image.h"
#include "vdi/vdi.h"

#define IMAGE_MAX (256 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && size <= IMAGE_MAX) {
        bool is_child = size >= VDI_HEADER_SIZE && load_le32(data + VDI_AT_TYPE) == VDI_TYPE_DIFF;

        format_image_set_parent(is_child ? 6000 : 0);
        format_image_try("vdi", data, size, 1);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(vdi_register_driver);
    return 0;
}
