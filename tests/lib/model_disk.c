/* SPDX-License-Identifier: Apache-2.0 */
#include "model_disk.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define VERIFY_CHUNK (1 * MiB)

uint64_t model_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ULL;

    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static void *must(void *memory)
{
    if (!memory) {
        abort();
    }
    return memory;
}

void model_disk_init(struct model_disk *m, uint64_t size)
{
    memset(m, 0, sizeof(*m));
    m->size = size;
    m->bytes = must(calloc(1, size));
    range_lock_init(&m->busy);
}

void model_disk_release(struct model_disk *m)
{
    range_lock_destroy(&m->busy);
    free(m->bytes);
}

static void fail(struct model_disk *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void fail(struct model_disk *m, const char *fmt, ...)
{
    va_list ap;

    if (atomic_fetch_add(&m->failures, 1) == 0) {
        va_start(ap, fmt);
        vsnprintf(m->why, sizeof(m->why), fmt, ap);
        va_end(ap);
    }
}

/* --- one request ------------------------------------------------------------------------------ */

struct request {
    struct model_disk *m;
    struct block_edge *edge;
    uint64_t offset, length;
    uint64_t *random;
    uint64_t cluster_size;
};

static void compare(struct model_disk *m, const char *what, uint64_t offset, const uint8_t *buf,
                    uint64_t length)
{
    for (uint64_t i = 0; i < length; i++) {
        if (buf[i] != m->bytes[offset + i]) {
            fail(m, "%s of %" PRIu64 "+%" PRIu64 ": byte %" PRIu64 " is %02x, expected %02x", what,
                 offset, length, offset + i, buf[i], m->bytes[offset + i]);
            return;
        }
    }
}

/*
 * After something that may have landed in part, or need not change anything: what is there now
 * counts.
 */
static void co_accept(struct request *rq, const char *what, const uint8_t *wanted)
{
    uint8_t *buf = must(malloc(rq->length));
    uint8_t *old = rq->m->bytes + rq->offset;
    int r = block_co_pread(rq->edge, rq->offset, buf, rq->length);

    if (r < 0 && !rq->m->faults) {
        fail(rq->m, "read after %s: %s", what, strerror(-r));
    }
    for (uint64_t i = 0; i < rq->length && r == 0; i++) {
        if (buf[i] != old[i] && buf[i] != (wanted ? wanted[i] : 0)) {
            fail(rq->m, "%s of %" PRIu64 "+%" PRIu64 " left %02x at byte %" PRIu64, what,
                 rq->offset, rq->length, buf[i], rq->offset + i);
            break;
        }
    }
    if (r == 0) {
        memcpy(old, buf, rq->length);
    }
    free(buf);
}

static void co_read(struct request *rq)
{
    uint8_t *buf = must(malloc(rq->length));
    int r = block_co_pread(rq->edge, rq->offset, buf, rq->length);

    if (r == 0) {
        compare(rq->m, "read", rq->offset, buf, rq->length);
    } else if (!rq->m->faults) {
        fail(rq->m, "read: %s", strerror(-r));
    }
    free(buf);
}

/* Half of them compress well. */
static void fill(struct request *rq, uint8_t *buf)
{
    uint64_t x = model_random(rq->random);

    memset(buf, (int)(x >> 8), rq->length);
    for (uint64_t i = 0; (x & 1) && i < rq->length; i += sizeof(x)) {
        uint64_t word = model_random(rq->random);

        memcpy(buf + i, &word, MIN(sizeof(word), rq->length - i));
    }
}

static void co_write(struct request *rq, unsigned flags)
{
    uint8_t *buf = must(malloc(rq->length));
    int r;

    fill(rq, buf);
    r = block_co_pwrite(rq->edge, rq->offset, buf, rq->length, flags);
    if (r == 0) {
        memcpy(rq->m->bytes + rq->offset, buf, rq->length);
    } else if (rq->m->faults) {
        co_accept(rq, "failed write", buf);
    } else {
        fail(rq->m, "write: %s", strerror(-r));
    }
    free(buf);
}

static void co_zero(struct request *rq, unsigned flags)
{
    int r = block_co_write_zeroes(rq->edge, rq->offset, rq->length, flags);

    if (r == 0) {
        memset(rq->m->bytes + rq->offset, 0, rq->length);
    } else if (rq->m->faults) {
        co_accept(rq, "failed write_zeroes", NULL);
    } else {
        fail(rq->m, "write_zeroes: %s", strerror(-r));
    }
}

static void co_discard(struct request *rq)
{
    int r = block_co_discard(rq->edge, rq->offset, rq->length);

    if (r < 0 && !rq->m->faults) {
        fail(rq->m, "discard: %s", strerror(-r));
    }
    co_accept(rq, "discard", NULL);
}

static void choose_range(struct request *rq, bool whole_clusters)
{
    uint64_t c = rq->cluster_size, size = rq->m->size, x = model_random(rq->random);
    uint64_t span = x % 8 == 0 ? 8 * c : x % 8 < 4 ? 2 * c : MIN(c, 8192u);

    rq->offset = model_random(rq->random) % size;
    rq->length = 1 + model_random(rq->random) % span;
    if (whole_clusters || x % 16 == 1) {
        rq->offset = round_down(rq->offset, c);
        rq->length = round_up(rq->length, c);
    } else if (x % 16 < 6) {
        rq->offset = round_down(rq->offset, 512);
        rq->length = round_up(rq->length, 512);
    }
    rq->length = MIN(rq->length, size - rq->offset);
}

static void co_one_request(const struct model_guests *g, uint64_t *random)
{
    struct request rq = {
        .m = g->disk, .edge = g->edge, .random = random, .cluster_size = g->cluster_size};
    unsigned kind = (unsigned)(model_random(random) % 100);
    bool compressed = g->compressed && kind < 15;
    struct range_entry entry;

    if (kind >= 97) {
        int r = block_co_flush(g->edge);

        if (r < 0 && !g->disk->faults) {
            fail(g->disk, "flush: %s", strerror(-r));
        }
        return;
    }
    choose_range(&rq, compressed);
    co_range_lock(&g->disk->busy, &entry, rq.offset, rq.length, kind < 75);
    if (kind < 50) {
        co_write(&rq, compressed ? BLOCK_REQ_COMPRESSED : kind == 40 ? BLOCK_REQ_FUA : 0);
    } else if (kind < 65) {
        co_zero(&rq, kind % 2 ? BLOCK_REQ_MAY_UNMAP : 0);
    } else if (kind < 75) {
        co_discard(&rq);
    } else {
        co_read(&rq);
    }
    range_unlock(&g->disk->busy, &entry);
}

/* --- guests ----------------------------------------------------------------------------------- */

struct guest {
    const struct model_guests *guests;
    uint64_t random;
    struct co_group *group;
};

static void guest_main(void *arg)
{
    struct guest *guest = arg;

    for (unsigned i = 0; i < guest->guests->ops; i++) {
        if (atomic_load(&guest->guests->disk->failures) > 0) {
            break;
        }
        co_one_request(guest->guests, &guest->random);
        atomic_fetch_add(&guest->guests->disk->done_ops, 1);
    }
    co_group_done(guest->group);
}

void model_disk_co_run(const struct model_guests *g)
{
    unsigned count = g->reactor_count * g->per_reactor;
    struct guest *guests = must(calloc(count, sizeof(*guests)));
    struct co_group group;

    co_group_init(&group);
    for (unsigned i = 0; i < count; i++) {
        guests[i] = (struct guest){.guests = g, .random = g->seed * 1000 + i, .group = &group};
        co_group_add(&group);
        if (reactor_spawn(g->reactors[i % g->reactor_count], guest_main, &guests[i]) < 0) {
            abort();
        }
    }
    co_group_wait(&group);
    co_group_destroy(&group);
    free(guests);
}

void model_disk_co_verify(struct model_disk *m, struct block_edge *edge)
{
    uint8_t *buf = must(malloc(VERIFY_CHUNK));

    for (uint64_t at = 0; at < m->size; at += VERIFY_CHUNK) {
        uint64_t n = MIN(VERIFY_CHUNK, m->size - at);
        int r = block_co_pread(edge, at, buf, n);

        if (r < 0) {
            fail(m, "read of %" PRIu64 "+%" PRIu64 ": %s", at, n, strerror(-r));
            break;
        }
        compare(m, "final read", at, buf, n);
    }
    free(buf);
}
