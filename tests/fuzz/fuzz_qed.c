/* SPDX-License-Identifier: Apache-2.0 */
/* A file that holds anything, opened as a QED image. */
#include <stdlib.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "format_image.h"
#include "qed/image.h"
#include "qed/qed.h"

#define IMAGE_MAX (256 * KiB)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > 0 && size <= IMAGE_MAX) {
        bool has_name = size >= QED_HEADER_SIZE && (data[16] & QED_F_BACKING_FILE);

        format_image_set_parent(has_name ? 6000 : 0);
        format_image_try("qed", data, size, 1);
    }
    return 0;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    format_image_init(qed_register_driver);
    return 0;
}
