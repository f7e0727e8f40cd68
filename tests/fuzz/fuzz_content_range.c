/* SPDX-License-Identifier: Apache-2.0 */
/* The header Content-Range of a hostile web server. */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "http/content_range.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size);
    struct content_range r;

    if (size > 0 && !text) {
        return 0;
    }
    if (size > 0) {
        memcpy(text, data, size);
    }
    if (content_range_parse(text ? text : "", size, &r)) {
        assert(r.is_satisfied || r.has_total);
        assert(!r.is_satisfied || (r.first <= r.last && r.last <= INT64_MAX));
        assert(!r.has_total || r.total <= INT64_MAX);
        assert(!r.is_satisfied || !r.has_total || r.last < r.total);
    }
    free(text);
    return 0;
}
