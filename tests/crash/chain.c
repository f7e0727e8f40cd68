/* SPDX-License-Identifier: Apache-2.0 */
#include "chain.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "block/bitmaps.h"
#include "block/control.h"
#include "changes.h"
#include "guest.h"
#include "job/job.h"
#include "loop/loop.h"
#include "monitor.h"
#include "random.h"

#define NODE_PREFIX "img-"
#define CANCEL_SHARE 5u /* one of this number of jobs is cancelled */
#define CANCEL_TURNS 400u
#define WAIT_TURNS 4096u
#define BACKGROUND_MOST 4u /* times the requests of a session, while a job runs */
#define BATCH 8u           /* requests after which the guest looks whether it is to stop */
#define LIVE_CHANGES 6u
#define FILTER_NODE "guest-filter"

/* --- nodes ------------------------------------------------------------------------------------ */

/* "img-chain4" */
struct node_name {
    char text[32];
};

static struct node_name node_name(unsigned disk)
{
    struct node_name name;

    snprintf(name.text, sizeof(name.text), NODE_PREFIX "%s", image_disk_name(disk));
    return name;
}

static struct node_name guest_device(const struct chain *c)
{
    return c->filtered ? (struct node_name){FILTER_NODE} : node_name(c->top);
}

static struct block_node *find_node(unsigned disk)
{
    return block_node_find(node_name(disk).text);
}

/* RECORD_DISKS: it is none of ours. */
static unsigned disk_of(struct block_node *node)
{
    unsigned disk = IMAGE_BASE_FILE;

    node = block_node_skip_filters(node);
    while (disk < RECORD_DISKS && strcmp(block_node_name(node), node_name(disk).text) != 0) {
        disk++;
    }
    return disk;
}

/* The disks of a chain, as headers say, from the top down. */
struct links {
    unsigned disks[RECORD_DISKS];
    unsigned count;
};

static int find_links(const struct chain *c, struct links *links)
{
    unsigned disk = c->top;
    int r = 0;

    links->count = 0;
    while (r == 0 && disk < RECORD_DISKS && links->count < RECORD_DISKS) {
        links->disks[links->count++] = disk;
        r = image_backing_disk(c->disks, disk, &disk, c->err);
    }
    return r;
}

/* `below`: RECORD_DISKS for none. `more`: further options. */
static int co_add_node(struct chain *c, unsigned disk, unsigned below, const char *more)
{
    char options[512], backing[48] = "null";

    image_format_options(c->disks, &c->w->config, disk, options, sizeof(options));
    if (below < RECORD_DISKS) {
        snprintf(backing, sizeof(backing), "\"%s\"", node_name(below).text);
    }
    return monitor_co_run(c->err, "blockdev-add", "%s,\"node-name\":\"%s\",\"backing\":%s%s",
                          options, node_name(disk).text, backing, more);
}

/* A filter that the user has put above the image on top, in some sessions. */
static int co_add_filter(struct chain *c)
{
    static const char *const filters[] = {
        "\"driver\":\"throttle\",\"throttle-group\":\"" FILTER_NODE "-limits\"",
        "\"driver\":\"copy-on-read\"",
        "\"driver\":\"compress\"",
    };
    uint64_t random = random_mix(c->w->seed + 31 * c->w->model.session_count);
    uint64_t which = random_below(&random, 2 * ARRAY_SIZE(filters));
    int r = 0;

    c->filtered = which < ARRAY_SIZE(filters);
    c->limited = which == 0;
    if (!c->filtered) {
        return 0;
    }
    if (c->limited) {
        r = monitor_co_run(c->err, "object-add",
                           "\"qom-type\":\"throttle-group\",\"id\":\"" FILTER_NODE "-limits\"");
    }
    return r < 0 ? r
                 : monitor_co_run(c->err, "blockdev-add",
                                  "%s,\"node-name\":\"" FILTER_NODE "\",\"file\":\"%s\"",
                                  filters[which], node_name(c->top).text);
}

static int co_delete_filter(struct chain *c)
{
    int r = 0;

    if (c->filtered) {
        r = monitor_co_run(c->err, "blockdev-del", "\"node-name\":\"" FILTER_NODE "\"");
    }
    if (r == 0 && c->limited) {
        r = monitor_co_run(c->err, "object-del", "\"id\":\"" FILTER_NODE "-limits\"");
    }
    return r;
}

int chain_co_open(struct chain *c, struct block_node **ret_node)
{
    struct links links;
    int r = find_links(c, &links);

    for (unsigned i = links.count; i > 0 && r == 0; i--) {
        r = co_add_node(c, links.disks[i - 1], i < links.count ? links.disks[i] : RECORD_DISKS,
                        i > 1 ? ",\"read-only\":true" : "");
    }
    r = r < 0 ? r : co_add_filter(c);
    *ret_node = c->filtered ? block_node_find(FILTER_NODE) : find_node(c->top);
    return r;
}

/* From users to what they use. */
static int co_delete_nodes(struct chain *c)
{
    bool found = true;
    int r = 0;

    while (found && r == 0) {
        found = false;
        for (unsigned disk = IMAGE_BASE_FILE; disk < RECORD_DISKS && r == 0; disk++) {
            struct block_node *node = find_node(disk);

            if (node && !block_node_next_parent(node, NULL)) {
                found = true;
                r = monitor_co_run(c->err, "blockdev-del", "\"node-name\":\"%s\"",
                                   node_name(disk).text);
            }
        }
    }
    return r;
}

int chain_co_close(struct chain *c)
{
    int r = co_delete_filter(c);

    r = r < 0 ? r : block_co_inactivate(find_node(c->top), c->err);
    return r < 0 ? r : co_delete_nodes(c);
}

int chain_co_fill(struct chain *c)
{
    struct image_disks disks = *c->disks;
    int r = 0;

    for (unsigned i = 0; i < CHAIN_IMAGES && r == 0; i++) {
        struct guest g = {.w = c->w, .err = c->err, .random = random_next(&c->random)};
        struct block_root *root = NULL;
        struct block_node *node;

        disks.top = IMAGE_BASE_FILE + i;
        r = image_co_open(&disks, &c->w->config, IMAGE_WRITABLE, &node, c->err);
        if (r < 0) {
            return r;
        }
        r = block_co_root_new(node, "filling", BLOCK_PERM_WRITE, BLOCK_PERM_ALL, &root, c->err);
        if (r == 0) {
            g.edge = block_root_edge(root);
            r = guest_co_fill(&g);
            r = r < 0 ? error_set_errno(c->err, -r, "filling the images failed")
                      : block_co_inactivate(node, c->err);
        }
        block_co_root_release(root);
        block_co_unref(node);
    }
    c->top = IMAGE_BASE_FILE + CHAIN_IMAGES - 1;
    c->next = c->top + 1;
    return r;
}

/* --- a guest in the background ---------------------------------------------------------------- */

struct background {
    struct guest *g;
    unsigned batches; /* that are left */
    bool stop;
    struct co_group group;
};

static void co_run_background(void *arg)
{
    struct background *b = arg;

    while (b->batches > 0 && !b->stop && b->g->ret == 0) {
        b->batches--;
        guest_co_run(b->g, BATCH);
    }
    co_group_done(&b->group);
}

static void begin_background(struct background *b, struct guest *g, unsigned requests)
{
    *b = (struct background){.g = g, .batches = requests / BATCH};
    co_group_init(&b->group);
    co_group_add(&b->group);
    if (reactor_spawn(reactor_current(), co_run_background, b) < 0) {
        co_group_done(&b->group);
    }
}

static int co_end_background(struct background *b)
{
    co_group_wait(&b->group);
    co_group_destroy(&b->group);
    return b->g->ret;
}

/* --- jobs ------------------------------------------------------------------------------------- */

static void note_moment(struct chain *c)
{
    model_note_moment(&c->w->model, record_tick(&c->w->log));
}

/* In its last steps it is not, and ends soon. */
static bool is_cancellable(void)
{
    struct job *job = job_find(MONITOR_JOB);

    return job && job_get_info(job).status != JOB_PENDING;
}

static int co_cancel(struct chain *c)
{
    ERROR_AUTO(err);

    (void)monitor_co_wait_job((unsigned)random_below(&c->random, CANCEL_TURNS), false);
    note_moment(c);
    if (job_find(MONITOR_JOB) &&
        monitor_co_run(&err, "job-cancel", "\"id\":\"" MONITOR_JOB "\"") < 0 && is_cancellable()) {
        return error_set(c->err, EIO, "%s", error_message(&err));
    }
    return 0;
}

/* To its end, or to that of a cancel. `completed`: it waits to be. */
static int co_await_job(struct chain *c, bool completed)
{
    int r = 0;

    note_moment(c);
    if (random_below(&c->random, CANCEL_SHARE) == 0) {
        r = co_cancel(c);
        completed = false;
    }
    while (r == 0 && monitor_co_wait_job(WAIT_TURNS, completed)) {
        if (completed && job_get_info(job_find(MONITOR_JOB)).status == JOB_READY) {
            completed = false;
            note_moment(c);
            r = monitor_co_run(c->err, "job-complete", "\"id\":\"" MONITOR_JOB "\"");
        }
    }
    note_moment(c);
    return r < 0 ? r : monitor_job_result(c->err);
}

/* An overlay, whose header is written before the guest has it. */
static int co_snapshot(struct chain *c)
{
    unsigned overlay = c->next;
    struct block_node *node;
    int r;

    if (overlay == RECORD_DISKS) {
        return 0;
    }
    c->next++;
    r = co_add_node(c, overlay, RECORD_DISKS, "");
    node = find_node(overlay);
    r = r < 0 ? r : block_co_change_backing(node, image_disk_name(c->top), "qcow2", c->err);
    r = r < 0 ? r : block_co_inactivate(node, c->err);
    note_moment(c);
    r = r < 0 ? r
              : monitor_co_run(c->err, "blockdev-snapshot", "\"node\":\"%s\",\"overlay\":\"%s\"",
                               node_name(c->top).text, node_name(overlay).text);
    note_moment(c);
    return r;
}

static int co_stream(struct chain *c, const struct links *links)
{
    unsigned base = 2 + (unsigned)random_below(&c->random, MAX(links->count, 2) - 1);
    char more[128] = "";
    int r;

    if (links->count < 2) {
        return co_snapshot(c);
    }
    if (base < links->count) {
        snprintf(more, sizeof(more), ",\"base-node\":\"%s\",\"backing-file\":\"%s\"",
                 node_name(links->disks[base]).text, image_disk_name(links->disks[base]));
    }
    r = monitor_co_run(c->err, "block-stream", "\"job-id\":\"" MONITOR_JOB "\",\"device\":\"%s\"%s",
                       node_name(c->top).text, more);
    return r < 0 ? r : co_await_job(c, false);
}

/* Of the images of links `top` to `base`, those between. */
static void spoil(struct chain *c, const struct links *links, unsigned top, unsigned base)
{
    for (unsigned i = top + 1; i < base; i++) {
        model_spoil(&c->w->model, links->disks[i], record_tick(&c->w->log));
    }
}

static int co_commit_middle(struct chain *c, const struct links *links)
{
    unsigned top, base;
    int r;

    if (links->count < 3) {
        return co_snapshot(c);
    }
    top = 1 + (unsigned)random_below(&c->random, links->count - 2);
    base = top + 1 + (unsigned)random_below(&c->random, links->count - top - 1);
    spoil(c, links, top, base);
    r = monitor_co_run(c->err, "block-commit",
                       "\"job-id\":\"" MONITOR_JOB "\",\"device\":\"%s\",\"top-node\":\"%s\","
                       "\"base-node\":\"%s\",\"backing-file\":\"%s\"",
                       guest_device(c).text, node_name(links->disks[top]).text,
                       node_name(links->disks[base]).text, image_disk_name(links->disks[base]));
    return r < 0 ? r : co_await_job(c, false);
}

static int co_commit_active(struct chain *c, const struct links *links)
{
    unsigned base;
    int r;

    if (links->count < 2) {
        return co_snapshot(c);
    }
    base = 1 + (unsigned)random_below(&c->random, links->count - 1);
    spoil(c, links, 0, base);
    r = monitor_co_run(c->err, "block-commit",
                       "\"job-id\":\"" MONITOR_JOB "\",\"device\":\"%s\",\"top-node\":\"%s\","
                       "\"base-node\":\"%s\"",
                       guest_device(c).text, node_name(c->top).text,
                       node_name(links->disks[base]).text);
    return r < 0 ? r : co_await_job(c, true);
}

/* Bitmaps stay with the image that they are of, which the guest has left. */
static void end_bitmaps(struct chain *c)
{
    struct model *m = &c->w->model;
    uint64_t before = m->tops[m->top_count - 1].from - 1;

    for (unsigned i = 0; i < m->bitmap_count; i++) {
        struct model_bitmap *b = &m->bitmaps[i];

        for (unsigned k = 0; k < b->epoch_count; k++) {
            b->epochs[k].until = MIN(b->epochs[k].until, before);
        }
        b->remove_begin = MIN(b->remove_begin, before);
    }
}

static int co_mirror(struct chain *c, struct guest *g, const struct links *links)
{
    static const char *const modes[] = {"background", "write-blocking"};
    unsigned target = c->next, below = links->count > 1 ? links->disks[1] : RECORD_DISKS;
    bool top = below < RECORD_DISKS && random_below(&c->random, 3) == 0;
    int r;

    if (target == RECORD_DISKS) {
        return 0;
    }
    c->next++;
    r = co_add_node(c, target, top ? below : RECORD_DISKS, "");
    if (r == 0 && top) {
        r = block_co_change_backing(find_node(target), image_disk_name(below), "qcow2", c->err);
    }
    r = r < 0 ? r : block_co_inactivate(find_node(target), c->err);
    r = r < 0 ? r
              : monitor_co_run(c->err, "blockdev-mirror",
                               "\"job-id\":\"" MONITOR_JOB "\",\"device\":\"%s\",\"target\":\"%s\","
                               "\"sync\":\"%s\",\"copy-mode\":\"%s\"",
                               guest_device(c).text, node_name(target).text, top ? "top" : "full",
                               modes[random_below(&c->random, 2)]);
    r = r < 0 ? r : co_await_job(c, true);
    if (r == 0 && disk_of(block_edge_node(g->edge)) == target) {
        end_bitmaps(c);
    }
    return r;
}

/* --- changes of the image in use -------------------------------------------------------------- */

/* The guest keeps off what is not there before or after. */
static int co_resize(struct chain *c, struct guest *g)
{
    struct workload *w = c->w;
    struct model *m = &w->model;
    uint64_t old = model_sectors_now(m), sectors = changes_random_size(w, &c->random);
    uint64_t least = MIN(old, sectors), lost = old - least;
    struct model_size *size = NULL;
    struct range_entry entry;
    uint32_t op;
    int r;

    if (m->size_count == MODEL_MAX_SIZES || old == sectors) {
        return 0;
    }
    if (lost > 0) {
        size = model_add_size(m, sectors, record_tick(&w->log));
    }
    co_range_lock(&g->busy, &entry, least, MAX(old, sectors) - least, true);
    size = size ?: model_add_size(m, sectors, record_tick(&w->log));
    op = model_begin(m, MODEL_RESIZE, sectors, lost, record_tick(&w->log));
    /* A copy-on-read above the image does not let others resize it. */
    r = monitor_co_run(c->err, "block_resize", "\"node-name\":\"%s\",\"size\":%llu",
                       c->filtered ? FILTER_NODE : node_name(c->top).text,
                       (unsigned long long)sectors * MODEL_SECTOR);
    size->end = record_tick(&w->log);
    model_end(m, op, size->end);
    range_unlock(&g->busy, &entry);
    return r;
}

static int co_reopen(struct chain *c, const struct links *links)
{
    static const char *const values[] = {"false", "true"};
    unsigned i = (unsigned)random_below(&c->random, links->count), below = RECORD_DISKS;
    char options[512], backing[48] = "null", more[96] = "";

    if (i + 1 < links->count) {
        below = links->disks[i + 1];
        snprintf(backing, sizeof(backing), "\"%s\"", node_name(below).text);
    }
    image_format_options(c->disks, &c->w->config, links->disks[i], options, sizeof(options));
    if (c->w->config.version > 2 && random_below(&c->random, 2)) {
        snprintf(more, sizeof(more), ",\"lazy-refcounts\":%s", values[random_below(&c->random, 2)]);
    }
    return monitor_co_run(
        c->err, "blockdev-reopen",
        "\"options\":[{%s,\"node-name\":\"%s\",\"backing\":%s,\"read-only\":%s%s}]", options,
        node_name(links->disks[i]).text, backing,
        i == 0 ? "false" : values[random_below(&c->random, 2)], more);
}

static int co_change(struct chain *c, struct guest *g, const struct links *links)
{
    int r = 0;

    for (unsigned i = 0; i < LIVE_CHANGES && r == 0; i++) {
        note_moment(c);
        r = c->w->config.resize && random_below(&c->random, 2) ? co_resize(c, g)
                                                               : co_reopen(c, links);
        for (unsigned k = 0; k < CANCEL_TURNS / 4 && r == 0; k++) {
            co_reschedule();
        }
    }
    return r;
}

/* --- a session -------------------------------------------------------------------------------- */

/* Jobs that have more to do when the chain is longer. */
static bool is_about_chains(const struct chain *c)
{
    const enum crash_job job = c->w->config.job;

    return job == CRASH_STREAM || job == CRASH_COMMIT || job == CRASH_COMMIT_ACTIVE;
}

static int co_run_job(struct chain *c, struct guest *g)
{
    struct model *m = &c->w->model;
    struct links links = {.count = 0};
    int r = is_about_chains(c) && random_below(&c->random, 2) ? co_snapshot(c) : 0;

    if (r == 0) {
        c->top = model_top_at(m, c->w->log.clock);
        r = find_links(c, &links);
    }
    if (r < 0) {
        return r;
    }
    m->sessions[m->session_count - 1].job_begin = record_tick(&c->w->log);
    switch (c->w->config.job) {
    case CRASH_STREAM:
        return co_stream(c, &links);
    case CRASH_COMMIT:
        return co_commit_middle(c, &links);
    case CRASH_COMMIT_ACTIVE:
        return co_commit_active(c, &links);
    case CRASH_MIRROR:
        return co_mirror(c, g, &links);
    case CRASH_SNAPSHOT:
        return co_snapshot(c);
    case CRASH_LIVE:
        return co_change(c, g, &links);
    case CRASH_NO_JOB:
        break;
    }
    return 0;
}

static void note_top(void *arg, uint64_t now)
{
    struct guest *g = arg;
    unsigned disk = disk_of(block_edge_node(g->edge));

    if (disk < RECORD_DISKS) {
        model_set_top(&g->w->model, disk, now);
    }
}

static int co_batch(struct chain *c, struct guest *g, unsigned requests)
{
    int r = c->w->config.bitmaps ? changes_co_bitmaps(g, find_node(c->top)) : 0;

    if (r == 0) {
        guest_co_run(g, requests);
        r = g->ret;
    }
    return r;
}

int chain_co_work(struct chain *c, struct guest *g, unsigned requests)
{
    struct record_log *log = &c->w->log;
    struct background background;
    int r, r2;

    model_set_top(&c->w->model, c->top, record_tick(log));
    log->on_tick_arg = g;
    log->on_tick = note_top;
    r = co_batch(c, g, requests / 4);
    if (r == 0) {
        begin_background(&background, g, BACKGROUND_MOST * requests);
        r = co_run_job(c, g);
        background.stop = true;
        r2 = co_end_background(&background);
        r = r < 0 ? r : r2;
    }
    (void)record_tick(log);
    c->top = model_top_at(&c->w->model, log->clock);
    r = r < 0 ? r : co_batch(c, g, requests / 4);
    log->on_tick = NULL;
    return r;
}
