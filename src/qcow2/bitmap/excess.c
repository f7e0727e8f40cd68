/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of the bitmaps is dirty in excess, across a close (docs/qcow2.md, "Excess"). The header
 * has it: it is written with each header, so what a command has made of a bitmap is in it.
 */
#include <stddef.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "qcow2/bitmap/stored.h"

const char qcow2_excess_crash[] = "the image was not closed, and parts of it were in use";
const char qcow2_excess_no_space[] = "there was no space to store it exactly";
const char qcow2_excess_in_doubt[] =
    "a change of the bitmaps of several disks was interrupted, and it is not known whether it was "
    "made";
const char qcow2_excess_unreadable[] = "a part of it could not be read from the image";

static const char *const reasons[] = {
    [EXCESS_UNKNOWN] = "it was a superset before another program wrote the image",
    [EXCESS_CRASH] = qcow2_excess_crash,
    [EXCESS_NO_SPACE] = qcow2_excess_no_space,
    [EXCESS_IN_DOUBT] = qcow2_excess_in_doubt,
    [EXCESS_UNREADABLE] = qcow2_excess_unreadable,
};

static enum qcow2_excess_why number_of_reason(const char *why)
{
    for (unsigned i = EXCESS_CRASH; i < ARRAY_SIZE(reasons); i++) {
        if (why == reasons[i]) {
            return (enum qcow2_excess_why)i;
        }
    }
    return EXCESS_UNKNOWN;
}

/* Of a bitmap that was not loaded: as the header had it. */
static struct qcow2_excess excess_of(const struct stored_bitmap *s, uint32_t entry)
{
    struct qcow2_excess e = {.entry = entry, .why = s->excess.why, .bytes = s->excess.bytes};

    if (s->loaded) {
        e.bytes = s->loaded->inconsistent ? 0 : s->loaded->excess;
        e.why = number_of_reason(s->loaded->excess_why);
    }
    return e;
}

/*
 * While two directories may count, the entries have two meanings, and memory has what the bitmaps
 * of one of them have: one record for all, with the greatest of both.
 */
static unsigned list_excess_of_both(struct qcow2 *q, struct qcow2_excess *ret_list)
{
    const struct stored_bitmap *s;

    *ret_list =
        (struct qcow2_excess){.entry = EXCESS_ALL, .why = EXCESS_CRASH, .bytes = q->excess_written};
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        ret_list->bytes = MAX(ret_list->bytes, excess_of(s, 0).bytes);
    }
    return ret_list->bytes > 0;
}

unsigned qcow2_list_excess(struct qcow2 *q, struct qcow2_excess *ret_list)
{
    const struct stored_bitmap *s;
    uint32_t entry = 0;
    unsigned count = 0;

    if (q->joint.state == JOINT_PREPARED) {
        return list_excess_of_both(q, ret_list);
    }
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        struct qcow2_excess e = excess_of(s, entry++);

        if (e.bytes > 0 && count == EXCESS_MAX) {
            /* Too many: the last one stands for all bitmaps. */
            ret_list[EXCESS_MAX - 1].entry = EXCESS_ALL;
            ret_list[EXCESS_MAX - 1].bytes = MAX(ret_list[EXCESS_MAX - 1].bytes, e.bytes);
        } else if (e.bytes > 0) {
            ret_list[count++] = e;
        }
    }
    return count;
}

uint64_t qcow2_greatest_excess(struct qcow2 *q)
{
    struct qcow2_excess list[EXCESS_MAX];
    unsigned count = qcow2_list_excess(q, list);
    uint64_t greatest = 0;

    for (unsigned i = 0; i < count; i++) {
        greatest = MAX(greatest, list[i].bytes);
    }
    return greatest;
}

/* Another program may have merged bitmaps, or made others: any may have what all had. */
static struct qcow2_excess sum_of_excess(const struct qcow2 *q)
{
    struct qcow2_excess sum = {.entry = EXCESS_ALL, .why = EXCESS_UNKNOWN};

    for (unsigned i = 0; i < q->excess_count; i++) {
        sum.bytes += MIN(q->excess[i].bytes, UINT64_MAX - sum.bytes);
    }
    return sum;
}

void qcow2_note_excess(struct qcow2 *q)
{
    const struct qcow2_excess sum = sum_of_excess(q), none = {0};
    bool own = q->header.autoclear & AUTOCLEAR_EXCESS;
    struct stored_bitmap *s;
    uint32_t entry = 0;

    q->excess_written = 0;
    LIST_FOREACH (s, &q->bitmaps.stored, link) {
        s->excess = own ? none : sum;
        for (unsigned i = 0; own && i < q->excess_count; i++) {
            const struct qcow2_excess *e = &q->excess[i];

            if ((e->entry == entry || e->entry == EXCESS_ALL) && e->bytes > s->excess.bytes) {
                s->excess = *e;
            }
        }
        entry++;
        q->excess_written = MAX(q->excess_written, s->excess.bytes);
    }
}

void qcow2_apply_excess(const struct stored_bitmap *s, struct block_bitmap *loaded)
{
    uint32_t why = s->excess.why < ARRAY_SIZE(reasons) ? s->excess.why : EXCESS_UNKNOWN;

    block_bitmap_add_excess(loaded, s->excess.bytes, reasons[why]);
}
