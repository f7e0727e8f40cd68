/* SPDX-License-Identifier: Apache-2.0 */
/* Refusing images with unknown features, by the names in the image (specification, "Feature name
 * table"). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "qcow2/header/header.h"

/* An entry: type of the feature (1), bit number (1), name (46, zero-padded). */
#define NAME_ENTRY_SIZE 48u
#define NAME_AT 2u
#define NAME_SIZE 46u

/*
 * Append the names of those features in *bits that one table names, and clear their bits. The last
 * entry may be cut off where its name ends.
 */
static void append_names(struct strbuf *sb, uint64_t *bits, const uint8_t *names, uint32_t size)
{
    for (uint32_t at = 0; at + NAME_AT < size; at += NAME_ENTRY_SIZE) {
        const uint8_t *e = names + at;
        uint32_t name_size = MIN(NAME_SIZE, size - at - NAME_AT);

        if (e[0] == 0 && e[1] < 64 && (*bits & (1ULL << e[1])) && e[NAME_AT] != '\0') {
            strbuf_printf(sb, "%s%.*s", sb->len ? ", " : "", (int)name_size,
                          (const char *)e + NAME_AT);
            *bits &= ~(1ULL << e[1]);
        }
    }
}

/* The same for all tables in the extensions from `at` on: programs may have added one each. */
static void append_all_names(struct strbuf *sb, uint64_t *bits, const uint8_t *head, uint64_t at,
                             uint64_t end)
{
    for (int n = 0; n < EXTENSIONS_MAX && at + 8 <= end; n++) {
        uint32_t type = load_be32(head + at), size = load_be32(head + at + 4);

        if (type == EXT_END || size > end - at - 8) {
            break;
        }
        if (type == EXT_FEATURE_NAMES) {
            append_names(sb, bits, head + at + 8, size);
        }
        at += 8 + round_up(size, 8);
    }
}

int qcow2_co_refuse_features(struct qcow2 *q, const uint8_t *sector, uint64_t unknown,
                             struct error *err)
{
    uint32_t cluster_bits = load_be32(sector + HDR_CLUSTER_BITS);
    uint64_t end =
        MIN(block_edge_size(q->node->file), 1ULL << MIN(cluster_bits, (uint32_t)CLUSTER_BITS_MAX));
    AUTO_FREE uint8_t *head = malloc(end);
    STRBUF_AUTO(text);

    if (head && block_co_pread(q->node->file, 0, head, end) == 0) {
        append_all_names(&text, &unknown, head, load_be32(sector + HDR_LENGTH), end);
    }
    if (unknown) {
        strbuf_printf(&text, "%sUnknown incompatible feature: %llx", text.len ? ", " : "",
                      (unsigned long long)unknown);
    }
    return error_set(err, ENOTSUP, "Unsupported qcow2 feature(s): %s", strbuf_str(&text));
}
