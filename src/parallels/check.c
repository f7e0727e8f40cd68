/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A check of the header and the BAT, with the messages of QEMU's, and a repair. What is repaired:
 *
 *      the mark "in use"           goes, when all the rest is in order, stably
 *      the begin of the data       is what the size of the BAT says
 *      an entry outside            becomes 0: nothing of the cluster is there. Where only the end
 *                                  of the cluster is missing the file becomes longer
 *      space at the end (a leak)   is cut off
 *      two entries for one place   the second one gets a copy
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "loop/loop.h"
#include "parallels/image.h"

enum {
    /* Entries of the BAT that are looked at, and written, at once. */
    PIECE = 16384,
    COPY_SIZE = 256 * 1024,
    /* Of one kind of errors; the rest is counted. */
    REPORTS_MAX = 1000,
    /* Clusters that a repair copies without being asked to. */
    AUTO_COPIES_MAX = 1000,
};

struct parallels_check {
    struct block_node *node;
    bool fixes_errors, fixes_leaks;
    /* As a part of a guest's request: nothing may be cut off the file. */
    bool in_request;
    /* Clusters of two owners that may be copied. */
    uint64_t copies_max;
    struct block_check_result *result;
    unsigned reports;
};

/* Report and count an error. */
static void __attribute__((format(printf, 2, 3)))
report_error(struct parallels_check *c, const char *format, ...)
{
    char text[100];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text), format, ap);
    va_end(ap);
    if (c->reports++ < REPORTS_MAX) {
        log_report(LOG_LEVEL_ERROR, "%s %s", c->fixes_errors ? "Repairing" : "ERROR", text);
    }
    *(c->fixes_errors ? &c->result->corruptions_fixed : &c->result->corruptions) += 1;
}

/* --- the header ------------------------------------------------------------------------------- */

static void check_fields(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;

    if (p->in_use == PARALLELS_IN_USE && !atomic_load(&p->map.is_writing)) {
        report_error(c, "image was not closed correctly");
    }
    if (!parallels_is_data_valid(c->node)) {
        report_error(c, "data_off field has incorrect value");
        if (c->fixes_errors) {
            p->data_sector = (uint32_t)(parallels_least_data(p) / PARALLELS_SECTOR);
        }
    }
}

/* The last step of a repair: all the rest is stable. */
static int co_end_repair(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;
    uint32_t old = p->in_use;
    int r = block_co_flush(c->node->file);

    if (r == 0 && p->in_use == PARALLELS_IN_USE && !atomic_load(&p->map.is_writing)) {
        p->in_use = 0;
    }
    UNLESS_FAILED(r, parallels_co_write_fields(c->node));
    UNLESS_FAILED(r, block_co_flush(c->node->file));
    if (r < 0) {
        p->in_use = old;
    } else {
        p->needs_repair = false;
        p->has_unlinked = false;
    }
    return r;
}

/* --- entries outside -------------------------------------------------------------------------- */

/* One piece of the BAT; *ret_changed: how it should be, in the order of the file. */
static bool check_bat_piece(struct parallels_check *c, uint32_t first, uint32_t count,
                            uint32_t *ret_changed)
{
    const struct parallels *p = c->node->opaque;
    uint64_t file = block_edge_size(c->node->file);
    bool changed = false;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t entry = p->bat[first + i];
        uint64_t place = parallels_place(p, entry);

        store_le32(&ret_changed[i], entry);
        if (entry == 0 ||
            (parallels_is_place(c->node, place) && range_fits(place, p->cluster_size, file))) {
            continue;
        }
        report_error(c, "cluster %" PRIu32 " is outside image", first + i);
        if (!parallels_is_place(c->node, place)) {
            store_le32(&ret_changed[i], 0);
            changed = true;
        }
    }
    return changed;
}

static int co_check_outside_locked(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;
    AUTO_FREE uint32_t *piece = malloc(PIECE * sizeof(*piece));
    int r = piece ? 0 : -ENOMEM;

    c->reports = 0;
    for (uint32_t first = 0; first < p->entries && r == 0; first += PIECE) {
        uint32_t count = MIN(p->entries - first, (uint32_t)PIECE);

        if (check_bat_piece(c, first, count, piece) && c->fixes_errors) {
            r = block_co_pwrite(c->node->file, parallels_bat_end(first), piece,
                                count * sizeof(*piece), 0);
            for (uint32_t i = 0; i < count && r == 0; i++) {
                __atomic_store_n(&p->bat[first + i], load_le32(&piece[i]), __ATOMIC_RELEASE);
            }
        }
        if (reactor_turn_expired()) {
            loop_co_give_way(); /* guests of other disks go on */
        }
    }
    return r;
}

/* What is in use now; in a repair the file becomes as long as that. */
static int co_find_end_locked(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;
    uint64_t end;
    int r = parallels_find_places(c->node);

    UNLESS_FAILED(r, parallels_co_read_extension(c->node, false, NULL));
    if (r < 0) {
        return r;
    }
    end = parallels_data_end(p);
    if (c->fixes_errors && block_edge_size(c->node->file) < end) {
        r = blockmap_co_make_room_locked(c->node->file, &p->room, end, NULL);
    }
    return r;
}

/* --- leaks ------------------------------------------------------------------------------------ */

static int co_check_leak_locked(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;
    uint64_t end = parallels_data_end(p), file = block_edge_size(c->node->file), clusters;
    int r = 0;

    /* What was added above for a cluster that is cut is no leak. */
    if (c->fixes_errors && !c->in_request) {
        blockmap_co_cut_room(c->node->file, &p->room, end);
        file = block_edge_size(c->node->file);
    }
    c->result->image_end_offset = end;
    /* A device is as long as it is, and what a writer has in advance is cut when it ends. */
    if (file <= end || !c->node->file->node->driver->keeps_zero_beyond_eof || c->in_request ||
        atomic_load(&p->map.is_writing)) {
        return 0;
    }
    clusters = div_round_up(file - end, p->cluster_size);
    log_report(LOG_LEVEL_ERROR, "%s space leaked at the end of the image %" PRIu64,
               c->fixes_leaks ? "Repairing" : "ERROR", file - end);
    *(c->fixes_leaks ? &c->result->leaks_fixed : &c->result->leaks) += clusters;
    if (c->fixes_leaks) {
        /* What was taken out of the BAT is stable first. */
        r = block_co_flush(c->node->file);
        UNLESS_FAILED(r, block_co_truncate(c->node->file, end, BLOCK_PREALLOC_OFF, NULL));
    }
    return r;
}

/* --- places of two owners --------------------------------------------------------------------- */

/* Entries, each above its index, so that they can be sorted. */
struct owners {
    const struct parallels *p;
    uint64_t *key;
    size_t count;
    /* A bit for each entry: its place is that of another one, too. */
    uint8_t *shares;
};

static int compare_keys(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static int find_shared(void *arg)
{
    struct owners *o = arg;
    uint64_t end = 0;

    qsort(o->key, o->count, sizeof(*o->key), compare_keys);
    for (size_t i = 0; i < o->count; i++) {
        uint64_t place = parallels_place(o->p, (uint32_t)(o->key[i] >> 32));
        uint32_t index = (uint32_t)o->key[i];

        if (place < end) {
            o->shares[index / 8] |= (uint8_t)(1u << index % 8);
        } else {
            end = place + o->p->cluster_size;
        }
    }
    return 0;
}

static int co_copy_cluster(struct block_node *node, uint64_t from, uint64_t to)
{
    const struct parallels *p = node->opaque;
    AUTO_FREE uint8_t *buf = NULL;
    int r = 0;

    if (posix_memalign((void **)&buf, 4096, COPY_SIZE) != 0) {
        return -ENOMEM;
    }
    for (uint64_t done = 0, n; done < p->cluster_size && r == 0; done += n) {
        n = MIN(p->cluster_size - done, (uint64_t)COPY_SIZE);
        r = block_co_pread(node->file, from + done, buf, n);
        UNLESS_FAILED(r, block_co_pwrite(node->file, to + done, buf, n, 0));
    }
    UNLESS_FAILED(r, block_co_flush(node->file));
    return r;
}

static int co_separate_locked(struct parallels_check *c, uint32_t index)
{
    struct parallels *p = c->node->opaque;
    struct blockmap_place place;
    int r = parallels_co_reserve_locked(c->node, 0, p->cluster_size, &place);

    if (r < 0) {
        return r;
    }
    r = co_copy_cluster(c->node, parallels_place(p, p->bat[index]), place.host);
    if (r < 0) {
        parallels_co_give_back_locked(c->node, &place);
        return r;
    }
    return parallels_co_set_entry_locked(c->node, index, (uint32_t)(place.host / p->unit));
}

static int co_check_owners_locked(struct parallels_check *c)
{
    struct parallels *p = c->node->opaque;
    AUTO_FREE uint64_t *key = malloc(MAX(p->entries, 1u) * sizeof(*key));
    AUTO_FREE uint8_t *shares = calloc(1, p->entries / 8 + 1);
    struct owners o = {.p = p, .key = key, .shares = shares};
    uint64_t copies = 0;
    int r = key && shares ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < p->entries && r == 0; i++) {
        if (p->bat[i] != 0 && parallels_is_place(c->node, parallels_place(p, p->bat[i]))) {
            key[o.count++] = (uint64_t)p->bat[i] << 32 | i;
        }
    }
    /* Elsewhere: there may be millions. */
    UNLESS_FAILED(r, loop_co_offload(find_shared, &o));
    c->reports = 0;
    for (uint32_t i = 0; i < p->entries && r == 0; i++) {
        if (!(shares[i / 8] & (1u << i % 8))) {
            continue;
        }
        if (c->fixes_errors && copies++ == c->copies_max) {
            return -EOVERFLOW;
        }
        r = c->fixes_errors ? co_separate_locked(c, i) : 0;
        if (r == 0) {
            report_error(c, "duplicate offset in BAT entry %" PRIu32, i);
        }
    }
    return r;
}

/* --- all -------------------------------------------------------------------------------------- */

static void count_bat_clusters(struct parallels_check *c)
{
    const struct parallels *p = c->node->opaque;
    uint64_t last = 0;

    c->result->total_clusters = p->entries;
    for (uint32_t i = 0; i < p->entries; i++) {
        uint64_t place = parallels_place(p, p->bat[i]);

        if (p->bat[i] != 0) {
            c->result->allocated_clusters++;
            c->result->fragmented_clusters += last && place != last + p->cluster_size;
        }
        last = p->bat[i] != 0 ? place : 0;
    }
}

static int co_check_all_locked(struct parallels_check *c)
{
    int r;

    check_fields(c);
    r = co_check_outside_locked(c);
    UNLESS_FAILED(r, co_find_end_locked(c));
    UNLESS_FAILED(r, co_check_leak_locked(c));
    UNLESS_FAILED(r, co_check_owners_locked(c));
    if (r == 0) {
        count_bat_clusters(c);
        c->result->image_end_offset = parallels_data_end(c->node->opaque);
    }
    if (r == 0 && c->fixes_errors) {
        struct parallels *p = c->node->opaque;

        if (!c->in_request) {
            /* The file has grown for copies in large steps. */
            blockmap_co_cut_room(c->node->file, &p->room, parallels_data_end(p));
        }
        r = co_end_repair(c);
    }
    return r;
}

int parallels_co_check(struct block_node *node, unsigned fix, struct block_check_result *ret_result,
                       struct error *err)
{
    struct parallels *p = node->opaque;
    struct parallels_check c = {
        .node = node,
        .fixes_errors = fix & BLOCK_CHECK_FIX_ERRORS,
        .fixes_leaks = fix & BLOCK_CHECK_FIX_LEAKS,
        .copies_max = UINT64_MAX,
        .result = ret_result,
    };
    int r;

    *ret_result = (struct block_check_result){0};
    if (fix && p->keeps_extension && !p->is_extension_read) {
        return error_set(err, ENOTSUP,
                         "The format extension of image '%s' can't be read, and a repair could "
                         "damage it",
                         block_node_display_name(node));
    }
    co_mutex_lock(&p->map.lock);
    r = co_check_all_locked(&c);
    co_mutex_unlock(&p->map.lock);
    if (r < 0) {
        ret_result->check_errors++;
        return error_set_errno(err, -r, "Could not check the BAT of '%s'",
                               block_node_display_name(node));
    }
    return 0;
}

int parallels_co_repair_locked(struct block_node *node, bool in_request, struct error *err)
{
    struct parallels *p = node->opaque;
    struct block_check_result result = {0};
    struct parallels_check c = {
        .node = node,
        .fixes_errors = true,
        .fixes_leaks = true,
        .in_request = in_request,
        .copies_max = AUTO_COPIES_MAX,
        .result = &result,
    };
    int r;

    CO_ASSERT_HELD(&p->map.lock);
    r = co_check_all_locked(&c);
    if (r == -EOVERFLOW && !p->is_reported && in_request) {
        p->is_reported = true;
        log_report(LOG_LEVEL_ERROR,
                   "Image '%s' has more than %d clusters with two owners, and is not written: it "
                   "can be read, and 'check -r all' repairs it",
                   block_node_display_name(node), AUTO_COPIES_MAX);
    }
    if (r == -EOVERFLOW) {
        return error_set(err, EIO,
                         "Image '%s' has more than %d clusters with two owners: 'check -r all' "
                         "repairs it",
                         block_node_display_name(node), AUTO_COPIES_MAX);
    }
    return r < 0 ? error_set_errno(err, -r, "Could not repair '%s'", block_node_display_name(node))
                 : 0;
}
