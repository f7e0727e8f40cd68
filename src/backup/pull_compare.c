/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Incremental by checksum: what is read and has the same checksum in the parent is not stored.
 * Clusters are looked up in ascending order, once for zeroes, once for data.
 *
 * While clusters are fetched it is not known how many will stay, so digests are written to places
 * that leave room for all; pull_compare_close_gaps() moves them together in the end.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backup/pull_internal.h"
#include "base/checked.h"

#define MOVE_DIGESTS 4096u

static bool holds_data(const struct chain_extent *e)
{
    return e->layer && e->kind == SUMS_DATA;
}

/* Of clusters where the parent has data; `first` and `end` are indices of the plan. */
static int record_zeroes(struct pull_plan *plan, uint64_t first, uint64_t end)
{
    int r = 0;

    for (uint64_t i = first, next; r == 0 && i < end; i = next) {
        next = kind_map_run_end(&plan->kinds, i, end);
        if (kind_map_get(&plan->kinds, i) == PULL_SKIP) {
            r = kind_map_set(&plan->kinds, i, next - i, PULL_ZERO);
        }
    }
    return r;
}

static int record_zeroes_of_run(struct chain *parent, struct pull_plan *plan,
                                const struct sums_run *run)
{
    struct chain_extent e;
    uint64_t done = 0;
    int r = 0;

    chain_seek(parent, run->first);
    while (r == 0 && done < run->count && chain_next(parent, run->count - done, &e)) {
        if (holds_data(&e)) {
            r = record_zeroes(plan, run->digest + done, run->digest + done + e.count);
        }
        done += e.count;
    }
    return r;
}

int pull_compare_zeroes(struct chain *parent, struct pull_plan *plan)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < plan->runs.count; i++) {
        r = record_zeroes_of_run(parent, plan, &plan->runs.list[i]);
    }
    return r;
}

int pull_compare_look_up(struct chain *parent, struct pull_chunk *chunk)
{
    struct pull_parent *p = &chunk->parent;
    struct chain_extent e;
    uint64_t done = 0;
    int r = 0;

    memset(p->is_data, 0, sizeof(p->is_data));
    chain_seek(parent, chunk->first);
    while (r == 0 && done < chunk->count && chain_next(parent, chunk->count - done, &e)) {
        memset(p->is_data + done, holds_data(&e), e.count);
        if (holds_data(&e)) {
            r = chain_read_digests(&e, 0, e.count, p->digests + done * SUMS_DIGEST_SIZE);
        }
        done += e.count;
    }
    return r;
}

void pull_compare_kinds(const struct pull_chunk *chunk, const uint8_t *digests, uint8_t *kinds)
{
    const struct pull_parent *p = &chunk->parent;

    for (uint64_t i = 0; i < chunk->count; i++) {
        bool same =
            kinds[i] == PULL_ZERO
                ? !p->is_data[i]
                : p->is_data[i] && memcmp(digests + i * SUMS_DIGEST_SIZE,
                                          p->digests + i * SUMS_DIGEST_SIZE, SUMS_DIGEST_SIZE) == 0;

        kinds[i] = same ? PULL_SAME : kinds[i];
    }
}

/* --- digests --- */

static uint64_t place_of_digest(uint64_t index)
{
    return SUMS_HEADER_SIZE + index * SUMS_DIGEST_SIZE;
}

/* Move digests to a lower place, in ascending order, so that places may overlap. */
static int move_digests(struct stored *file, uint64_t from, uint64_t to, uint64_t count)
{
    static uint8_t buf[MOVE_DIGESTS * SUMS_DIGEST_SIZE];

    while (from != to && count > 0) {
        uint64_t n = MIN(count, MOVE_DIGESTS);
        int r = stored_read(file, buf, n * SUMS_DIGEST_SIZE, place_of_digest(from));

        UNLESS_FAILED(r, sums_write_digests(file, to, buf, n));
        if (r < 0) {
            return r;
        }
        from += n;
        to += n;
        count -= n;
    }
    return 0;
}

int pull_compare_close_gaps(const struct pull_plan *plan, struct stored *file)
{
    uint64_t slot = 0, kept = 0, end = plan->runs.digests, next;
    int r = stored_truncate(file, place_of_digest(plan->runs.digests));

    for (uint64_t i = 0; r == 0 && i < end; i = next) {
        enum pull_kind kind = (enum pull_kind)kind_map_get(&plan->kinds, i);

        next = kind_map_run_end(&plan->kinds, i, end);
        if (kind == PULL_DATA || kind == PULL_ZERO) {
            r = move_digests(file, slot, kept, next - i);
            kept += next - i;
        }
        slot += kind == PULL_SKIP || kind == PULL_UNMARKED ? 0 : next - i;
    }
    return r < 0 ? r : stored_truncate(file, place_of_digest(kept));
}
