/* SPDX-License-Identifier: Apache-2.0 */
#include "verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "joint.h"
#include "keys.h"
#include "parallels/image.h"
#include "random.h"
#include "verifier.h"

#define REPAIR_EVERY 8u /* states */
#define COMMIT_EVERY 4u
#define SECOND_EVERY 16u
#define SECOND_CRASHES 3u

/* What a check may find. */
struct allowance {
    bool copied;    /* wrong COPIED flags */
    uint64_t leaks; /* clusters */
};

static const struct allowance only_leaks = {.leaks = UINT64_MAX};

/* --- the image -------------------------------------------------------------------------------- */

/* A counter may be behind, or ahead, until the image is written again; the table counts. */
static bool counts_blocks(const struct block_node *node)
{
    return strcmp(node->driver->name, "vdi") == 0;
}

/* A crash leaves the mark "in use", which a check counts, and nothing else. */
static bool co_is_marked(struct block_node *node)
{
    uint8_t mark[4];

    return strcmp(node->driver->name, "parallels") == 0 &&
           block_co_pread(node->file, PARALLELS_AT_IN_USE, mark, sizeof(mark)) == 0 &&
           load_le32(mark) == PARALLELS_IN_USE;
}

static int co_check_image(struct block_node *node, const char *when,
                          const struct allowance *allowed, struct block_check_result *result,
                          struct error *err)
{
    int ret;

    memset(result, 0, sizeof(*result));
    if (!node->driver->co_check || counts_blocks(node)) {
        return 0;
    }
    ret = node->driver->co_check(node, 0, result, err);
    if (ret < 0) {
        error_prepend(err, "check %s: ", when);
        return ret;
    }
    if (result->corruptions > 0 && co_is_marked(node)) {
        result->corruptions--;
    }
    if (result->corruptions > (allowed->copied ? result->copied_flags : 0) ||
        result->check_errors > 0) {
        return error_set(err, EILSEQ, "check %s found %llu corruptions, %llu errors", when,
                         (unsigned long long)result->corruptions,
                         (unsigned long long)result->check_errors);
    }
    if (result->leaks > allowed->leaks) {
        return error_set(err, EILSEQ, "check %s found %llu leaks, not %llu", when,
                         (unsigned long long)result->leaks, (unsigned long long)allowed->leaks);
    }
    return 0;
}

static int co_repair(struct block_node *node, struct error *err)
{
    struct block_check_result result = {0};
    int ret;

    block_co_drain_begin(node);
    ret =
        node->driver->co_check(node, BLOCK_CHECK_FIX_LEAKS | BLOCK_CHECK_FIX_ERRORS, &result, err);
    block_drain_end(node);
    if (ret == 0 && (result.corruptions > 0 || result.leaks > 0 || result.check_errors > 0)) {
        ret = error_set(err, EILSEQ, "a repair left %llu corruptions, %llu leaks, %llu errors",
                        (unsigned long long)result.corruptions, (unsigned long long)result.leaks,
                        (unsigned long long)result.check_errors);
    }
    return ret;
}

/* Version 2 has no dirty bit that would tell that flags can't be trusted. */
static struct allowance allowed_after_crash(const struct verifier *v)
{
    return (struct allowance){
        .copied = image_version(v->disks, v->disks->top) == 2 &&
                  (model_changes_snapshots(&v->w->model, v->state->time) ||
                   (v->phase == VERIFY_SECOND && v->had_snapshot)),
        .leaks = UINT64_MAX,
    };
}

/* --- what it holds ---------------------------------------------------------------------------- */

static int co_look(struct verifier *v, struct error *err)
{
    int ret;

    if (!model_allows_size(&v->w->model, v->sectors, v->state->time)) {
        return error_set(err, EILSEQ, "the disk has a size that it can't have: %llu sectors",
                         (unsigned long long)v->sectors);
    }
    if (v->w->config.format) {
        return verify_co_data(v, err);
    }
    ret = verify_co_file_covers(v, err);
    ret = ret < 0 ? ret : verify_co_data(v, err);
    if (ret == 0 && v->w->config.data_file_raw) {
        ret = verify_raw_data_file(v, err);
    }
    ret = ret < 0 ? ret : verify_co_bitmaps(v, err);
    if (ret == 0 && !v->w->config.job) {
        ret = verify_bitmaps_found(v, err);
    }
    return ret < 0 ? ret : verify_co_snapshots(v, err);
}

static int co_with_root(struct verifier *v, unsigned perm,
                        int (*fn)(struct verifier *v, struct error *err), struct error *err)
{
    struct block_root *root;
    int ret = block_co_root_new(v->node, "verification", BLOCK_PERM_CONSISTENT_READ | perm,
                                BLOCK_PERM_ALL, &root, err);

    if (ret < 0) {
        return ret;
    }
    v->edge = block_root_edge(root);
    v->sectors = block_node_size(v->node) / MODEL_SECTOR;
    ret = fn(v, err);
    block_co_root_release(root);
    return ret;
}

/* Read-only. `check`: not NULL if it is to be checked, with what may be found. */
static int co_open_and_look(struct verifier *v, const char *when, const struct allowance *check,
                            struct block_check_result *result, struct error *err)
{
    int ret = image_co_open(v->disks, &v->w->config, 0, &v->node, err);

    memset(v->has_bitmap, 0, sizeof(v->has_bitmap));
    memset(v->has_consistent, 0, sizeof(v->has_consistent));
    if (ret == 0) {
        ret = check ? co_check_image(v->node, when, check, result, err) : 0;
        ret = ret < 0 ? ret : co_with_root(v, 0, co_look, err);
        block_co_unref(v->node);
    }
    if (ret == 0 && v->w->config.job) {
        ret = verify_co_chain(v, err);
    }
    if (ret == 0 && v->w->config.joint) {
        ret = joint_co_verify(v, err);
    }
    if (ret < 0) {
        error_prepend(err, "%s: ", when);
    }
    return ret;
}

static int co_open_and_write(struct verifier *v, bool repair, struct error *err)
{
    int ret = v->w->config.joint ? joint_co_settle_second(v, err) : 0;

    ret = ret < 0 ? ret : image_co_open(v->disks, &v->w->config, IMAGE_WRITABLE, &v->node, err);
    if (ret == 0) {
        ret = repair ? co_repair(v->node, err) : 0;
        v->sectors = block_node_size(v->node) / MODEL_SECTOR;
        /* Bits that nobody asked for stay in the image until they are stored with the new ones. */
        if (ret == 0 && v->state->index % 2 == 0) {
            ret = verify_co_bitmaps(v, err);
        }
        ret = ret < 0 ? ret : co_with_root(v, BLOCK_PERM_WRITE, aftermath_co_write, err);
        ret = ret < 0 ? ret : block_co_inactivate(v->node, err);
        block_co_unref(v->node);
    }
    if (ret < 0) {
        error_prepend(err, "for writing: ");
    }
    return ret;
}

static int co_open_and_repair(struct verifier *v, struct error *err)
{
    int ret = image_co_open(v->disks, &v->w->config, IMAGE_WRITABLE, &v->node, err);

    if (ret == 0) {
        ret = co_repair(v->node, err);
        ret = ret < 0 ? ret : block_co_inactivate(v->node, err);
        block_co_unref(v->node);
    }
    return ret;
}

/* --- the backing file ------------------------------------------------------------------------- */

/* It is an image, too. What is marked dirty is repaired by opening it for writing. */
static int co_check_base(struct verifier *v, struct error *err)
{
    bool dirty = image_is_marked_dirty(v->disks, IMAGE_BASE_FILE);
    struct block_check_result result;
    struct block_node *node;
    int ret = image_co_open(v->disks, &v->w->config, IMAGE_BASE | (dirty ? IMAGE_WRITABLE : 0),
                            &node, err);

    if (ret == 0) {
        ret = co_check_image(node, "of it", &only_leaks, &result, err);
        block_co_unref(node);
    }
    if (ret < 0) {
        error_prepend(err, "the backing file: ");
    }
    return ret;
}

/* --- another crash ---------------------------------------------------------------------------- */

static void show(const struct image_disks *disks, struct crash_state *state)
{
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        record_disk_show(disks->nodes[i], &state->disks[i]);
    }
}

static void begin_log(const struct image_disks *disks, struct record_log *log)
{
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        record_disk_set_log(disks->nodes[i], log, i, i == IMAGE_DATA_FILE);
    }
}

static void end_log(const struct image_disks *disks)
{
    for (unsigned i = 0; i < RECORD_DISKS; i++) {
        record_disk_end_log(disks->nodes[i]);
    }
}

/*
 * What was not touched since the first crash is there, and opening for writing leaves the image in
 * order again.
 */
static int co_look_at_second(struct verifier *v, struct error *err)
{
    const struct allowance allowed = allowed_after_crash(v);
    bool dirty = image_is_marked_dirty(v->disks, v->disks->top);
    struct block_check_result result;
    int ret = co_open_and_look(v, "a second crash", dirty ? NULL : &allowed, &result, err);

    ret = ret < 0 ? ret : image_co_open(v->disks, &v->w->config, IMAGE_WRITABLE, &v->node, err);
    if (ret == 0) {
        ret = block_co_inactivate(v->node, err);
        block_co_unref(v->node);
    }
    return ret < 0 ? ret : co_open_and_look(v, "after a second crash", &allowed, &result, err);
}

static size_t view_bytes(const struct verifier *v)
{
    return v->w->model.sectors * sizeof(*v->disk.values);
}

/* While the image was being repaired, written to and closed, which the log has. */
static int co_crash_again(struct verifier *v, struct record_log *log, struct error *err)
{
    uint64_t random = random_mix(v->state->hash + 2), time = 0;
    struct crash_state state = {0};
    struct crash_states states;
    int ret = 0;

    for (size_t i = 0; i < log->count && v->w->no_flush_after_crash; i++) {
        log->ops[i].ignored = true;
    }
    v->phase = VERIFY_SECOND;
    memcpy(v->disk.expected, v->disk.untouched, view_bytes(v));
    memcpy(v->raw.expected, v->raw.untouched, view_bytes(v));
    crash_states_init(&states, log, v->state->hash);
    for (unsigned i = 0; i < SECOND_CRASHES && log->clock > 0 && ret == 0; i++) {
        time += 1 + random_below(&random, 2 * log->clock / (SECOND_CRASHES + 1) + 1);
        crash_states_make(&states, i, MIN(time, log->clock), &state);
        show(v->disks, &state);
        ret = co_look_at_second(v, err);
    }
    show(v->disks, v->state); /* nothing lies on the state that goes now */
    crash_state_release(&state);
    crash_states_clear(&states);
    return ret;
}

/* --- all of it -------------------------------------------------------------------------------- */

/* After the image was written to, and once more after a repair. */
static int co_look_again(struct verifier *v, bool repair, struct error *err)
{
    const struct allowance allowed = allowed_after_crash(v), nothing = {0};
    struct block_check_result result = {0};
    int ret = 0;

    v->phase = VERIFY_AGAIN;
    if (v->w->config.commit && v->state->index % COMMIT_EVERY == 0) {
        ret = image_co_commit(v->disks, &v->w->config, err);
    }
    ret = ret < 0 ? ret : co_open_and_look(v, "after writing", &allowed, &result, err);
    if (ret == 0 && v->w->config.joint) {
        ret = joint_co_end(v, err);
    }
    if (ret == 0 && (repair || result.corruptions > 0)) {
        ret = co_open_and_repair(v, err);
        ret = ret < 0 ? ret : co_open_and_look(v, "after a repair", &nothing, &result, err);
    }
    return ret;
}

static int co_verify(struct verifier *v, struct error *err)
{
    const struct allowance allowed = allowed_after_crash(v);
    bool dirty = image_is_marked_dirty(v->disks, v->disks->top);
    bool repair = v->state->index % REPAIR_EVERY == 0 && !v->w->config.format;
    bool second = v->state->index % SECOND_EVERY == SECOND_EVERY / 2 + 1;
    struct record_log log = {.is_guest_data = model_is_guest_data};
    struct block_check_result result = {0};
    int ret = co_open_and_look(v, "read-only", dirty ? NULL : &allowed, &result, err);

    if (ret == 0 && (v->w->config.backing || v->w->config.joint)) {
        ret = co_check_base(v, err);
    }
    if (second) {
        begin_log(v->disks, &log);
    }
    ret = ret < 0 ? ret : co_open_and_write(v, repair, err);
    if (second) {
        end_log(v->disks);
    }
    ret = ret < 0 ? ret : co_look_again(v, repair, err);
    if (second) {
        ret = ret < 0 ? ret : co_crash_again(v, &log, err);
        show(v->disks, v->state); /* nor on the log */
        record_log_clear(&log);
    }
    return ret;
}

static void view_init(struct view *view, uint64_t sectors)
{
    view->values = malloc(sectors * sizeof(*view->values));
    view->expected = malloc(sectors * sizeof(*view->expected));
    view->untouched = malloc(sectors * sizeof(*view->untouched));
    if (!view->values || !view->expected || !view->untouched) {
        abort();
    }
    for (uint64_t i = 0; i < sectors; i++) {
        view->values[i] = MODEL_ZERO;
    }
}

static void view_release(struct view *view)
{
    free(view->values);
    free(view->expected);
    free(view->untouched);
}

/* The image that users had until now is still right in the moment in which they change it. */
static int co_look_at_last_top(struct verifier *v, struct image_disks *disks, struct error *err)
{
    const struct allowance allowed = allowed_after_crash(v);
    unsigned top = disks->top;
    struct block_check_result result;
    int ret;

    disks->top = model_top_at(&v->w->model, v->state->time);
    if (disks->top == top) {
        return 0;
    }
    ret =
        co_open_and_look(v, "the image that users had",
                         image_is_marked_dirty(disks, disks->top) ? NULL : &allowed, &result, err);
    disks->top = top;
    for (uint64_t i = 0; i < v->w->model.sectors; i++) {
        v->disk.values[i] = MODEL_ZERO;
    }
    return ret;
}

int verify_co_state(struct workload *w, struct crash_state *state,
                    const struct image_disks *given_disks, struct error *err)
{
    struct image_disks disks_ = *given_disks, *disks = &disks_;
    struct verifier v = {.w = w, .state = state, .disks = disks};
    int ret = 0;

    disks->top = w->config.job ? model_top_at(&w->model, state->time + 1) : IMAGE_FILE;
    v.stable = model_stable_until(&w->model, state->time);
    view_init(&v.disk, w->model.sectors);
    view_init(&v.raw, w->model.sectors);
    show(disks, state);
    if (w->config.job) {
        ret = co_look_at_last_top(&v, disks, err);
    }
    if (w->config.keys) {
        ret = keys_co_verify(&v, disks, err);
    }
    ret = ret < 0 ? ret : co_verify(&v, err);
    view_release(&v.disk);
    view_release(&v.raw);
    return ret;
}
