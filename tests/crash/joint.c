/* SPDX-License-Identifier: Apache-2.0 */
#include "joint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/bitmaps.h"
#include "changes.h"
#include "qcow2/image.h"
#include "random.h"

#define GRANULARITY 4096u
#define SECOND_WRITES 3u

static struct {
    struct block_node *node;
    struct block_root *root;
} second;

/* --- the workload ----------------------------------------------------------------------------- */

int joint_co_open(const struct image_disks *d, const struct crash_config *c, struct error *err)
{
    int r = image_co_open(d, c, IMAGE_WRITABLE | IMAGE_BASE, &second.node, err);

    if (r < 0) {
        return r;
    }
    r = block_co_root_new(second.node, "second", BLOCK_PERM_CONSISTENT_READ | BLOCK_PERM_WRITE,
                          BLOCK_PERM_ALL, &second.root, err);
    if (r < 0) {
        block_co_unref(second.node);
    }
    return r;
}

int joint_co_close(struct error *err)
{
    int r;

    block_co_root_release(second.root);
    r = block_co_inactivate(second.node, err);
    block_co_unref(second.node);
    return r;
}

static int co_write_second(struct guest *g)
{
    uint8_t data[GRANULARITY];
    int r = 0;

    for (unsigned i = 0; i < SECOND_WRITES && r == 0; i++) {
        uint64_t granules = block_edge_size(block_root_edge(second.root)) / GRANULARITY;
        uint64_t offset = random_below(&g->random, granules) * GRANULARITY;

        model_stamp(data, sizeof(data), offset / MODEL_SECTOR, 0);
        r = block_co_pwrite(block_root_edge(second.root), offset, data, sizeof(data), 0);
    }
    return r < 0 ? error_set_errno(g->err, -r, "writing to the second image failed") : 0;
}

/* "joint-7" */
struct name {
    char text[24];
};

static struct name name_of(unsigned change)
{
    struct name name;

    snprintf(name.text, sizeof(name.text), "joint-%u", change);
    return name;
}

static int co_change_one(struct guest *g, struct block_node *node, unsigned n)
{
    struct block_bitmap *stopped = block_bitmap_find(node, name_of(n - 1).text);
    struct block_bitmap *removed = block_bitmap_find(node, name_of(n - 2).text);
    int r = block_co_bitmap_add(node, name_of(n).text, GRANULARITY, true, false, NULL, g->err);

    if (r == 0 && stopped) {
        r = block_co_bitmap_set_enabled(stopped, false, g->err);
    }
    if (r == 0 && removed) {
        block_co_bitmap_detach(removed);
        r = block_co_bitmap_remove_detached(removed, g->err);
    }
    return r;
}

/* Those that the change has removed, or everything else as it was. */
static void free_removed(struct block_bitmap *const *removed)
{
    for (unsigned i = 0; i < 2; i++) {
        if (removed[i]) {
            block_bitmap_free_detached(removed[i]);
        }
    }
}

int joint_co_change(struct guest *g, struct block_node *node)
{
    struct model *m = &g->w->model;
    unsigned n = m->joint_count;
    struct block_bitmap *removed[2];
    struct block_bitmap_commits commits;
    int r = co_write_second(g);

    if (r < 0 || n == MODEL_MAX_JOINTS) {
        return r;
    }
    removed[0] = n >= 2 ? block_bitmap_find(node, name_of(n - 2).text) : NULL;
    removed[1] = n >= 2 ? block_bitmap_find(second.node, name_of(n - 2).text) : NULL;
    m->joints[m->joint_count++] =
        (struct model_joint){.begin = record_tick(&g->w->log), .end = MODEL_PENDING};
    model_note_moment(m, record_tick(&g->w->log));
    block_bitmap_commits_begin(&commits);
    r = co_change_one(g, node, n);
    r = r < 0 ? r : co_change_one(g, second.node, n);
    r = r < 0 || random_below(&g->random, 2) ? r : changes_co_clear_any(g, node);
    r = block_co_bitmap_commits_finish(&commits, r, g->err);
    changes_end_clear(g);
    model_note_moment(m, record_tick(&g->w->log));
    m->joints[n].end = record_tick(&g->w->log);
    free_removed(removed);
    return r;
}

/* --- after a crash ---------------------------------------------------------------------------- */

/* What an image has of joint changes. */
struct found {
    bool has[MODEL_MAX_JOINTS], records[MODEL_MAX_JOINTS];
    int last; /* number of the last one; -1: none */
    bool in_doubt;
};

static int look_at(struct block_node *node, const struct model *m, struct found *f,
                   struct error *err)
{
    *f = (struct found){.last = -1, .in_doubt = qcow2_state(node)->joint.in_doubt};
    for (unsigned i = 0; i < m->joint_count; i++) {
        struct block_bitmap *b = block_bitmap_find(node, name_of(i).text);

        f->has[i] = b != NULL;
        f->records[i] = b && block_bitmap_enabled(b);
        f->last = b ? (int)i : f->last;
        if (b && b->inconsistent) {
            return error_set(err, EILSEQ, "bitmap '%s' is inconsistent", block_bitmap_name(b));
        }
    }
    return 0;
}

static int co_look(struct verifier *v, unsigned how, struct found *f, struct error *err)
{
    struct block_node *node;
    int r = image_co_open(v->disks, &v->w->config, how, &node, err);

    if (r == 0) {
        r = look_at(node, &v->w->model, f, err);
        block_co_unref(node);
    }
    return r;
}

static int check_last(const struct verifier *v, int last, struct error *err)
{
    const struct model *m = &v->w->model;
    uint64_t time = v->state->time;
    int least = -1, most = -1;

    for (unsigned i = 0; i < m->joint_count; i++) {
        least = m->joints[i].end <= time ? (int)i : least;
        most = m->joints[i].begin <= time ? (int)i : most;
    }
    return last < least || last > most
               ? error_set(err, EILSEQ, "the last joint change is %d, not %d to %d", last, least,
                           most)
               : 0;
}

int joint_co_verify(struct verifier *v, struct error *err)
{
    struct found first, other;
    int r = co_look(v, 0, &first, err);

    r = r < 0 ? r : co_look(v, IMAGE_BASE, &other, err);
    r = r < 0 ? r : check_last(v, first.last, err);
    if (r < 0) {
        return r;
    }
    if (first.in_doubt || other.in_doubt) {
        return error_set(err, EILSEQ, "the %s image is in doubt with the other one at hand",
                         first.in_doubt ? "first" : "second");
    }
    if (memcmp(first.has, other.has, sizeof(first.has)) != 0 ||
        memcmp(first.records, other.records, sizeof(first.records)) != 0) {
        return error_set(err, EILSEQ, "one image has made change %d, the other one change %d",
                         first.last, other.last);
    }
    return 0;
}

static int co_open_second(struct verifier *v, struct error *err)
{
    struct block_node *node;
    int r = image_co_open(v->disks, &v->w->config, IMAGE_WRITABLE | IMAGE_BASE, &node, err);

    if (r == 0) {
        r = block_co_inactivate(node, err);
        block_co_unref(node);
    }
    return r;
}

int joint_co_settle_second(struct verifier *v, struct error *err)
{
    return v->state->index % 2 ? co_open_second(v, err) : 0;
}

static int co_check_trace(struct verifier *v, unsigned how, struct error *err)
{
    struct block_node *node;
    int r = image_co_open(v->disks, &v->w->config, how, &node, err);

    if (r == 0) {
        if (qcow2_state(node)->joint.state != JOINT_NONE) {
            r = error_set(err, EILSEQ, "the %s image still has a joint change after a clean close",
                          how & IMAGE_BASE ? "second" : "first");
        }
        block_co_unref(node);
    }
    return r;
}

int joint_co_end(struct verifier *v, struct error *err)
{
    bool second_was_first = v->state->index % 2;
    int r = second_was_first ? 0 : co_open_second(v, err);

    r = r < 0 ? r : co_check_trace(v, IMAGE_BASE, err);
    return r < 0 || !second_was_first ? r : co_check_trace(v, 0, err);
}
