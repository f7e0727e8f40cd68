/* SPDX-License-Identifier: Apache-2.0 */
/* Checking an image, which changes nothing. */
#include "qcow2_image.h"

void fuzz_co_image(unsigned how)
{
    fuzz_co_check(0);
}
