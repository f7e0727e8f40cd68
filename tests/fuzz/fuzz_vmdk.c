/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as a VMDK image. */
#include <stdlib.h>

#include "base/checked.h"
#include "format_image.h"
#include "vmdk/vmdk.h"

#define IMAGE_MAX (256 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && size <= IMAGE_MAX) {
        format_image_try("vmdk", data, size, 1);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(vmdk_register_driver);
    return 0;
}
