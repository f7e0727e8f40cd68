/* SPDX-License-Identifier: Apache-2.0 */
/* Refusing images with features that we don't know, by the names that the image itself gives them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "base/strbuf.h"
#include "qcow2/state.h"

#define NAME_ENTRY_SIZE 48u
#define NAME_SIZE 46u

/* The feature name table of a header, whose extensions begin at `at`; NULL if there is none. *ret_size: its bytes. */
static const uint8_t *find_names(const uint8_t *head, uint64_t at, uint64_t end, uint32_t *ret_size)
{
    for (int n = 0; n < EXTENSIONS_MAX && at + 8 <= end; n++) {
        uint32_t type = load_be32(head + at), size = load_be32(head + at + 4);

        if (type == EXT_END || size > end - at - 8) {
            break;
        }
        if (type == EXT_FEATURE_NAMES) {
            *ret_size = size;
            return head + at + 8;
        }
        at += 8 + round_up(size, 8);
    }
    return NULL;
}

static void append_names(struct strbuf *sb, uint64_t *bits, const uint8_t *names, uint32_t size)
{
    for (uint32_t at = 0; at + NAME_ENTRY_SIZE <= size; at += NAME_ENTRY_SIZE) {
        const uint8_t *e = names + at;

        if (e[0] == 0 && e[1] < 64 && (*bits & (1ULL << e[1])) && e[2] != '\0') {
            strbuf_printf(sb, "%s%.*s", sb->len ? ", " : "", (int)NAME_SIZE, (const char *)e + 2);
            *bits &= ~(1ULL << e[1]);
        }
    }
}

int qcow2_co_refuse_features(struct qcow2 *q, const uint8_t *sector, uint64_t unknown,
                             struct error *err)
{
    uint32_t cluster_bits = load_be32(sector + HDR_CLUSTER_BITS), names_size = 0;
    uint64_t end =
        MIN(block_edge_size(q->node->file), 1ULL << MIN(cluster_bits, (uint32_t)CLUSTER_BITS_MAX));
    AUTO_FREE uint8_t *head = malloc(end);
    const uint8_t *names = NULL;
    STRBUF_AUTO(text);

    if (head && block_co_pread(q->node->file, 0, head, end) == 0) {
        names = find_names(head, load_be32(sector + HDR_LENGTH), end, &names_size);
    }
    if (names) {
        append_names(&text, &unknown, names, names_size);
    }
    if (unknown) {
        strbuf_printf(&text, "%sUnknown incompatible feature: %llx", text.len ? ", " : "",
                      (unsigned long long)unknown);
    }
    return error_set(err, ENOTSUP, "Unsupported qcow2 feature(s): %s", strbuf_str(&text));
}
