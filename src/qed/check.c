/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A check of all tables. A repair takes away entries that lead out of the file or to what is no
 * cluster, as after a crash of a program that had set QED_F_NEED_CHECK. Clusters that two entries
 * lead to are counted, and stay.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "loop/loop.h"
#include "qed/image.h"

/* Of the map of clusters that a check keeps. */
#define MAP_MAX (256 * MiB)

struct qed_check {
    struct block_node *node;
    bool fixes;
    /* A bit for each cluster of the file. */
    uint8_t *used;
    uint64_t clusters, used_count;
    /* The last data cluster of the table; 0: none yet. */
    uint64_t last;
    struct block_check_result *result;
};

/* Mark clusters as used. Whether none was. */
static bool take_clusters(struct qed_check *c, uint64_t offset, uint64_t count)
{
    const struct qed *q = c->node->opaque;
    uint64_t first = offset / q->header.cluster_size;
    bool free_before = true;

    for (uint64_t i = first; i < MIN(first + count, c->clusters); i++) {
        uint8_t bit = (uint8_t)(1u << i % 8);

        free_before = free_before && !(c->used[i / 8] & bit);
        c->used_count += !(c->used[i / 8] & bit);
        c->used[i / 8] |= bit;
    }
    return free_before;
}

static void count_corruption(struct qed_check *c, bool fixed)
{
    *(fixed ? &c->result->corruptions_fixed : &c->result->corruptions) += 1;
}

static int co_check_entry(struct qed_check *c, uint64_t table, uint64_t index, uint64_t entry)
{
    const struct qed *q = c->node->opaque;
    int r = 0;

    if (entry == 0 || entry == QED_ZERO) {
        return 0;
    }
    if (!qed_is_place(c->node, entry, 1)) {
        r = c->fixes ? qed_co_set_entry(c->node, table, index, 0) : 0;
        count_corruption(c, c->fixes && r == 0);
        return r;
    }
    if (!take_clusters(c, entry, 1)) {
        count_corruption(c, false);
    }
    c->result->allocated_clusters++;
    c->result->fragmented_clusters += c->last && entry != c->last + q->header.cluster_size;
    c->last = entry;
    return 0;
}

static int co_check_table(struct qed_check *c, uint64_t table)
{
    const struct qed *q = c->node->opaque;
    uint64_t entries[QED_PAGE_ENTRIES];
    int r = 0;

    c->last = 0;
    for (uint64_t first = 0; first < q->table_entries && r == 0; first += QED_PAGE_ENTRIES) {
        r = qed_co_get_entries(c->node, table, first, QED_PAGE_ENTRIES, entries);
        for (size_t i = 0; i < QED_PAGE_ENTRIES && r == 0; i++) {
            r = co_check_entry(c, table, first + i, entries[i]);
        }
        /* Guests of other disks go on: tables may be in the page cache, and many. */
        if (reactor_turn_expired()) {
            loop_co_give_way();
        }
    }
    return r;
}

static int co_check_l1_locked(struct qed_check *c)
{
    struct qed *q = c->node->opaque;
    int r = 0;

    for (uint64_t i = 0; i < q->l1_count && r == 0; i++) {
        if (q->l1[i] == 0) {
            continue;
        }
        if (qed_is_place(c->node, q->l1[i], q->table_entries * QED_ENTRY_SIZE)) {
            if (take_clusters(c, q->l1[i], q->header.table_clusters)) {
                r = co_check_table(c, q->l1[i]);
            } else {
                count_corruption(c, false);
            }
            continue;
        }
        r = c->fixes ? qed_co_set_l1_locked(c->node, i, 0) : 0;
        count_corruption(c, c->fixes && r == 0);
    }
    return r;
}

/*
 * Everything is in order again, stably, before the flag goes. That includes a last cluster that is
 * cut, since QEMU takes that for a place outside the file.
 */
static int co_clear_flag_locked(struct block_node *node)
{
    struct qed *q = node->opaque;
    struct qed_header old = q->header;
    int r = 0;

    if (!is_aligned(block_edge_size(node->file), q->header.cluster_size)) {
        r = blockmap_co_make_room_locked(node->file, &q->room, q->end, NULL);
    }
    UNLESS_FAILED(r, block_co_flush(node->file));
    if (r < 0) {
        return r;
    }
    q->header.features &= ~(uint64_t)QED_F_NEED_CHECK;
    q->header.autoclear = 0;
    UNLESS_FAILED(r, qed_co_write_header(node));
    UNLESS_FAILED(r, block_co_flush(node->file));
    if (r < 0) {
        q->header = old;
    }
    return r;
}

int qed_co_check_locked(struct block_node *node, unsigned fix,
                        struct block_check_result *ret_result, struct error *err)
{
    struct qed *q = node->opaque;
    struct qed_check c = {
        .node = node,
        .fixes = fix & BLOCK_CHECK_FIX_ERRORS,
        .clusters = div_round_up(block_edge_size(node->file), q->header.cluster_size),
        .result = ret_result,
    };
    AUTO_FREE uint8_t *used = NULL;
    int r;

    *ret_result = (struct block_check_result){0};
    if (c.clusters / 8 > MAP_MAX) {
        return error_set(err, EFBIG, "The file '%s' is too large to be checked",
                         block_node_display_name(node));
    }
    c.used = used = calloc(1, (size_t)c.clusters / 8 + 1);
    if (!used) {
        return error_out_of_memory(err);
    }
    take_clusters(&c, 0, q->header.header_clusters);
    take_clusters(&c, q->header.l1_offset, q->header.table_clusters);
    r = co_check_l1_locked(&c);
    ret_result->total_clusters = div_round_up(q->header.disk_size, q->header.cluster_size);
    if (r < 0) {
        ret_result->check_errors++;
        return error_set_errno(err, -r, "Could not check the tables of '%s'",
                               block_node_display_name(node));
    }
    ret_result->leaks = c.clusters - c.used_count;
    if (c.fixes && ret_result->corruptions == 0 && (q->header.features & QED_F_NEED_CHECK)) {
        r = co_clear_flag_locked(node);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not write the header of '%s'",
                                   block_node_display_name(node))
                 : 0;
}

int qed_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                 struct error *err)
{
    struct qed *q = node->opaque;
    int r;

    co_mutex_lock(&q->map.lock);
    r = qed_co_check_locked(node, fix, ret_result, err);
    co_mutex_unlock(&q->map.lock);
    return r;
}

/* --- the first write -------------------------------------------------------------------------- */

/* Once: guests try again. */
static void report_owners(const struct block_node *node)
{
    struct qed *q = node->opaque;

    if (!q->is_reported) {
        q->is_reported = true;
        log_report(
            LOG_LEVEL_ERROR,
            "Image '%s' was not closed in order, and has clusters with two owners: it can be "
            "read, and copied to another image, but is not written",
            block_node_display_name(node));
    }
}

int qed_co_begin_writing_locked(struct block_node *node)
{
    struct qed *q = node->opaque;
    struct block_check_result result;
    int r = 0;

    if (q->header.features & QED_F_NEED_CHECK) {
        r = qed_co_check_locked(node, BLOCK_CHECK_FIX_ERRORS, &result, NULL);
        if (r == 0 && result.corruptions > 0) {
            report_owners(node);
            r = -EIO;
        }
    } else if (q->header.autoclear != 0) {
        uint64_t old = q->header.autoclear;

        q->header.autoclear = 0;
        r = qed_co_write_header(node);
        UNLESS_FAILED(r, block_co_flush(node->file));
        q->header.autoclear = r < 0 ? old : 0;
    }
    return r;
}
