/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as an image of the first version of qcow. */
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "qcow1/image.h"
#include "qcow1/qcow1.h"

#define IMAGE_MAX (256 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && size <= IMAGE_MAX) {
        bool has_name = size >= QCOW1_HEADER_SIZE && load_be64(data + 8) != 0;

        format_image_set_parent(has_name ? 6000 : 0);
        format_image_try("qcow", data, size, 1);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(qcow1_register_driver);
    return 0;
}
