/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/iov.h"

#define STAMP_MAGIC 0x5449444553544d50ull /* "TIDESTMP" */
#define STAMP_SIZE 32u /* repeated over the sector: magic, sector, request, check */

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

void model_init(struct model *m, uint64_t size)
{
    *m = (struct model){.sectors = size / MODEL_SECTOR};
    m->sector_ops = must(calloc(m->sectors, sizeof(*m->sector_ops)));
    m->sector_counts = must(calloc(m->sectors, sizeof(*m->sector_counts)));
}

void model_clear(struct model *m)
{
    for (uint64_t i = 0; i < m->sectors; i++) {
        free(m->sector_ops[i]);
    }
    for (unsigned i = 0; i < m->snapshot_count; i++) {
        free(m->snapshots[i].values);
    }
    free(m->sector_ops);
    free(m->sector_counts);
    free(m->ops);
}

static void sector_add(struct model *m, uint64_t sector, uint32_t op)
{
    uint32_t count = m->sector_counts[sector];

    if (is_power_of_2(count) || count == 0) {
        m->sector_ops[sector] =
            must(realloc(m->sector_ops[sector], (count ? 2 * count : 1) * sizeof(**m->sector_ops)));
    }
    m->sector_ops[sector][count] = op;
    m->sector_counts[sector]++;
}

uint32_t model_begin(struct model *m, enum model_kind kind, uint64_t sector, uint64_t sectors,
                     uint64_t now)
{
    uint32_t op = (uint32_t)m->count;

    if (m->count == m->capacity) {
        m->capacity = m->capacity ? 2 * m->capacity : 256;
        m->ops = must(realloc(m->ops, m->capacity * sizeof(*m->ops)));
    }
    m->ops[m->count++] = (struct model_op){
        .kind = kind, .sector = sector, .sectors = sectors, .begin = now, .end = MODEL_PENDING};
    if (kind != MODEL_FLUSH) {
        for (uint64_t i = 0; i < sectors; i++) {
            sector_add(m, sector + i, op);
        }
    }
    return op;
}

void model_end(struct model *m, uint32_t op, uint64_t now)
{
    m->ops[op].end = now;
}

void model_cancel(struct model *m, uint32_t op, uint64_t now)
{
    const struct model_op *o = &m->ops[op];

    for (uint64_t i = 0; i < o->sectors && o->kind != MODEL_FLUSH; i++) {
        m->sector_counts[o->sector + i]--;
    }
    model_end(m, op, now);
}

bool model_changes_snapshots(const struct model *m, uint64_t when)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct model_op *op = &m->ops[i];

        if (op->kind >= MODEL_SNAPSHOT_CREATE && op->kind <= MODEL_SNAPSHOT_DELETE &&
            op->begin <= when && when < op->end) {
            return true;
        }
    }
    return false;
}

const char *model_kind_name(enum model_kind kind)
{
    static const char *const names[] = {"write",    "zeroes", "discard", "flush",  "resize",
                                        "snapshot", "apply",  "delete",  "commit", "amend"};

    return names[kind];
}

/* --- sizes ------------------------------------------------------------------------------------ */

struct model_size *model_add_size(struct model *m, uint64_t sectors, uint64_t now)
{
    struct model_size *s = &m->sizes[m->size_count++];

    *s = (struct model_size){.begin = now, .end = MODEL_PENDING, .sectors = sectors};
    return s;
}

uint64_t model_sectors_now(const struct model *m)
{
    return m->sizes[m->size_count - 1].sectors;
}

bool model_allows_size(const struct model *m, uint64_t sectors, uint64_t crash)
{
    bool allowed = false;

    for (unsigned i = 0; i < m->size_count && m->sizes[i].begin <= crash; i++) {
        allowed &= m->sizes[i].end > crash;
        allowed |= m->sizes[i].sectors == sectors;
    }
    return allowed;
}

/* --- chains ----------------------------------------------------------------------------------- */

void model_set_top(struct model *m, unsigned disk, uint64_t now)
{
    if (m->top_count == 0 || m->tops[m->top_count - 1].disk != disk) {
        if (m->top_count == MODEL_MAX_TOPS) {
            abort();
        }
        m->tops[m->top_count++] = (struct model_top){.from = now, .disk = disk};
        model_note_moment(m, now);
    }
}

unsigned model_top_at(const struct model *m, uint64_t when)
{
    unsigned disk = 0;

    for (unsigned i = 0; i < m->top_count && (i == 0 || m->tops[i].from <= when); i++) {
        disk = m->tops[i].disk;
    }
    return disk;
}

void model_spoil(struct model *m, unsigned disk, uint64_t now)
{
    if (m->spoiled[disk] == 0) {
        m->spoiled[disk] = now;
    }
}

bool model_is_spoiled(const struct model *m, unsigned disk, uint64_t when)
{
    return m->spoiled[disk] > 0 && m->spoiled[disk] <= when;
}

void model_note_moment(struct model *m, uint64_t now)
{
    if (m->moment_count < MODEL_MAX_MOMENTS) {
        m->moments[m->moment_count++] = now;
    }
}

/* --- stamps ----------------------------------------------------------------------------------- */

static void make_stamp(uint8_t *stamp, uint64_t sector, uint32_t op)
{
    store_le64(stamp, STAMP_MAGIC);
    store_le64(stamp + 8, sector);
    store_le64(stamp + 16, op);
    store_le64(stamp + 24, STAMP_MAGIC ^ sector ^ ((uint64_t)op << 20));
}

void model_stamp(uint8_t *data, size_t size, uint64_t sector, uint32_t op)
{
    for (size_t at = 0; at < size; at += STAMP_SIZE) {
        make_stamp(data + at, sector + at / MODEL_SECTOR, op);
    }
}

uint32_t model_value(const uint8_t *data, uint64_t sector)
{
    uint8_t expected[STAMP_SIZE];
    uint64_t op;

    if (load_le64(data) != STAMP_MAGIC) {
        return buffer_is_zero(data, MODEL_SECTOR) ? MODEL_ZERO : MODEL_GARBAGE;
    }
    op = load_le64(data + 16);
    if (op >= MODEL_ANY) {
        return MODEL_GARBAGE;
    }
    make_stamp(expected, sector, (uint32_t)op);
    return memcmp(data, expected, STAMP_SIZE) == 0 &&
                   memcmp(data, data + STAMP_SIZE, MODEL_SECTOR - STAMP_SIZE) == 0
               ? (uint32_t)op
               : MODEL_GARBAGE;
}

bool model_is_guest_data(const uint8_t *data, size_t size)
{
    for (size_t at = 0; at + MODEL_SECTOR <= size; at += MODEL_SECTOR) {
        if (load_le64(data + at) == STAMP_MAGIC) {
            return true;
        }
    }
    return false;
}

/* --- questions -------------------------------------------------------------------------------- */

uint64_t model_stable_until(const struct model *m, uint64_t crash)
{
    uint64_t stable = 0;

    for (size_t i = 0; i < m->count; i++) {
        const struct model_op *op = &m->ops[i];

        if (op->kind == MODEL_FLUSH && op->end <= crash) {
            stable = MAX(stable, op->begin);
        }
    }
    for (unsigned i = 0; i < m->session_count; i++) {
        if (m->sessions[i].close_end <= crash) {
            stable = MAX(stable, m->sessions[i].close_begin);
        }
    }
    return stable;
}

static uint32_t op_value(const struct model *m, uint32_t op, uint64_t sector)
{
    if (m->ops[op].kind == MODEL_SNAPSHOT_APPLY) {
        return m->ops[op].values[sector];
    }
    return m->ops[op].kind == MODEL_WRITE ? op : MODEL_ZERO;
}

/* Whether a request is sure to have happened. */
static bool is_stable(const struct model_op *op, uint64_t crash, uint64_t stable)
{
    return op->end <= stable || (op->kind > MODEL_FLUSH && op->end <= crash);
}

bool model_allows(const struct model *m, uint64_t sector, uint32_t value, uint64_t crash,
                  uint64_t stable)
{
    const uint32_t *ops = m->sector_ops[sector];
    uint32_t count = m->sector_counts[sector], first = 0;
    bool any_stable = false;

    while (count > 0 && m->ops[ops[count - 1]].begin > crash) {
        count--;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (is_stable(&m->ops[ops[i]], crash, stable)) {
            first = i;
            any_stable = true;
        }
    }
    if (!any_stable && value == MODEL_ZERO) {
        return true;
    }
    for (uint32_t i = first; i < count; i++) {
        if (op_value(m, ops[i], sector) == value) {
            return true;
        }
        if (m->ops[ops[i]].kind != MODEL_DISCARD) {
            continue;
        }
        for (uint32_t k = 0; k < i; k++) {
            if (op_value(m, ops[k], sector) == value) {
                return true;
            }
        }
    }
    return false;
}

uint32_t model_value_at(const struct model *m, uint64_t sector, uint64_t when)
{
    uint32_t value = MODEL_ZERO;

    for (uint32_t i = 0; i < m->sector_counts[sector]; i++) {
        uint32_t op = m->sector_ops[sector][i];

        if (m->ops[op].begin > when) {
            break;
        }
        value = op_value(m, op, sector);
    }
    return value;
}

bool model_knows_value_at(const struct model *m, uint64_t sector, uint64_t when)
{
    bool known = true;

    for (uint32_t i = 0; i < m->sector_counts[sector]; i++) {
        const struct model_op *op = &m->ops[m->sector_ops[sector][i]];

        if (op->begin > when) {
            break;
        }
        known = op->end <= when;
    }
    return known;
}

bool model_discarded(const struct model *m, uint64_t sector, uint64_t since, uint64_t until)
{
    for (uint32_t i = 0; i < m->sector_counts[sector]; i++) {
        const struct model_op *op = &m->ops[m->sector_ops[sector][i]];

        if (op->kind == MODEL_DISCARD && op->end > since && op->begin <= until) {
            return true;
        }
    }
    return false;
}

void model_describe(const struct model *m, uint32_t value, char *buf, size_t size)
{
    if (value == MODEL_ZERO) {
        snprintf(buf, size, "zeroes");
    } else if (value >= m->count) {
        snprintf(buf, size, "garbage");
    } else {
        const struct model_op *op = &m->ops[value];

        snprintf(buf, size, "request %u (%s, sectors %llu+%llu, sent %llu, answered %lld)", value,
                 model_kind_name(op->kind), (unsigned long long)op->sector,
                 (unsigned long long)op->sectors, (unsigned long long)op->begin,
                 (long long)op->end);
    }
}
