/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a read that were answered. A server may answer in any order, but each byte once. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "nbd/client_internal.h"

void nbd_pieces_clear(struct nbd_pieces *p)
{
    if (p->list != p->few) {
        free(p->list);
    }
    p->list = NULL;
    p->count = p->capacity = 0;
}

uint64_t nbd_pieces_bytes(const struct nbd_pieces *p)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < p->count; i++) {
        bytes += p->list[i].end - p->list[i].start;
    }
    return bytes;
}

bool nbd_pieces_cover(const struct nbd_pieces *p, uint64_t length)
{
    return p->count == 1 && p->list[0].start == 0 && p->list[0].end == length;
}

/* Have room for one more piece. */
static int grow_pieces(struct nbd_pieces *p)
{
    struct nbd_piece *list;

    if (p->count < p->capacity) {
        return 0;
    }
    if (!p->list) {
        p->list = p->few;
        p->capacity = ARRAY_SIZE(p->few);
        return 0;
    }
    if (p->count >= NBD_CLIENT_PIECES_MAX) {
        return -E2BIG;
    }
    list = malloc(2 * p->capacity * sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    memcpy(list, p->list, p->count * sizeof(*list));
    if (p->list != p->few) {
        free(p->list);
    }
    p->list = list;
    p->capacity *= 2;
    return 0;
}

int nbd_pieces_add(struct nbd_pieces *p, uint64_t start, uint64_t length)
{
    uint64_t end = start + length;
    size_t i = p->count; /* of the first piece behind the range; mostly there is none */
    bool joins_before, joins_after;
    int r;

    while (i > 0 && p->list[i - 1].start >= start) {
        i--;
    }
    if ((i > 0 && p->list[i - 1].end > start) || (i < p->count && p->list[i].start < end)) {
        return -EEXIST;
    }
    joins_before = i > 0 && p->list[i - 1].end == start;
    joins_after = i < p->count && p->list[i].start == end;
    if (joins_before && joins_after) {
        p->list[i - 1].end = p->list[i].end;
        memmove(&p->list[i], &p->list[i + 1], (p->count - i - 1) * sizeof(*p->list));
        p->count--;
    } else if (joins_before) {
        p->list[i - 1].end = end;
    } else if (joins_after) {
        p->list[i].start = start;
    } else {
        r = grow_pieces(p);
        if (r < 0) {
            return r;
        }
        memmove(&p->list[i + 1], &p->list[i], (p->count - i) * sizeof(*p->list));
        p->list[i] = (struct nbd_piece){.start = start, .end = end};
        p->count++;
    }
    return 0;
}
