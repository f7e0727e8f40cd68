/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring of lines per thread. The thread writes, and whoever handles a crash reads, while other
 * threads may go on writing: a record has a serial, odd while it is written, by which the reader
 * finds out that its copy is torn.
 *
 * Rings are made when a thread has its first event, and never freed: the ring of a thread that
 * ended keeps its lines until another thread takes the ring over.
 */
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "trace/internal.h"
#include "trace/trace.h"

/* Threads beyond these have no ring. */
#define RINGS_MAX 256
#define RING_RECORDS 64u
#define RECORD_TEXT 232
/* Enough for a handler that writes one line after the other. */
#define SIGNAL_STACK_SIZE (32 * KiB)

/* The sanitizers have signal stacks of their own, which they free by asking which one is set. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_SIGNAL_STACK false
#else
#define OWN_SIGNAL_STACK true
#endif

struct record {
    atomic_uint serial;
    unsigned size;
    uint64_t time_us;
    char text[RECORD_TEXT];
};

struct ring {
    atomic_bool used; /* by a thread that runs */
    atomic_uint next; /* records written so far */
    struct record records[RING_RECORDS];
    uint8_t signal_stack[SIGNAL_STACK_SIZE] __attribute__((aligned(16)));
};

static struct ring *_Atomic rings[RINGS_MAX];
static pthread_key_t thread_end;
static pthread_once_t thread_end_once = PTHREAD_ONCE_INIT;

/* The calling thread's own. */
static __thread struct ring *own;
static __thread bool has_none; /* none is available */
static __thread char name[16];

/*
 * --- rings of threads ---------------------------------------------------------------------------
 */

static void set_signal_stack(struct ring *r)
{
    stack_t stack = {.ss_flags = SS_DISABLE};

    if (r) {
        stack = (stack_t){.ss_sp = r->signal_stack, .ss_size = SIGNAL_STACK_SIZE};
    }
    if (OWN_SIGNAL_STACK) {
        (void)sigaltstack(&stack, NULL);
    }
}

static void leave_ring(void *arg)
{
    struct ring *r = arg;

    set_signal_stack(NULL);
    own = NULL;
    has_none = true; /* what other destructors do is not recorded */
    atomic_store(&r->used, false);
}

static void make_thread_end(void)
{
    (void)pthread_key_create(&thread_end, leave_ring);
}

/* One that no thread uses, or a new one; NULL: there are RINGS_MAX, or no memory. */
static struct ring *claim_ring(void)
{
    struct ring *fresh = NULL;

    for (unsigned i = 0; i < RINGS_MAX; i++) {
        struct ring *r = atomic_load(&rings[i]);
        bool used = false;

        if (r && atomic_compare_exchange_strong(&r->used, &used, true)) {
            return r;
        }
        if (r) {
            continue;
        }
        fresh =
            mmap(NULL, sizeof(*fresh), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) {
            return NULL;
        }
        atomic_store(&fresh->used, true);
        if (atomic_compare_exchange_strong(&rings[i], &r, fresh)) {
            return fresh;
        }
        /* Another thread has put its ring here. */
        munmap(fresh, sizeof(*fresh));
    }
    return NULL;
}

static struct ring *own_ring(void)
{
    if (!own && !has_none) {
        pthread_once(&thread_end_once, make_thread_end);
        own = claim_ring();
        has_none = !own;
        if (own) {
            (void)pthread_setspecific(thread_end, own);
        }
    }
    return own;
}

void trace_thread_begin(const char *thread_name)
{
    struct ring *r = own_ring();
    size_t size = MIN(strlen(thread_name), sizeof(name) - 1);

    memcpy(name, thread_name, size);
    name[size] = '\0';
    if (r) {
        set_signal_stack(r);
    }
}

const char *trace_thread_name(void)
{
    return name[0] ? name : "thread";
}

/*
 * --- records ------------------------------------------------------------------------------------
 */

void trace_ring_add(uint64_t now_us, const char *line, size_t size)
{
    struct ring *r = own_ring();
    struct record *record;
    unsigned next, serial;

    if (!r) {
        return;
    }
    next = atomic_load_explicit(&r->next, memory_order_relaxed);
    record = &r->records[next % RING_RECORDS];
    serial = atomic_load_explicit(&record->serial, memory_order_relaxed);
    /* The exchange keeps the stores below after it. TSan does not support fences. */
    (void)atomic_exchange_explicit(&record->serial, serial + 1, memory_order_acq_rel);
    record->time_us = now_us;
    record->size = (unsigned)MIN(size, sizeof(record->text));
    memcpy(record->text, line, record->size);
    record->text[record->size - 1] = '\n';
    atomic_store_explicit(&record->serial, serial + 2, memory_order_release);
    atomic_store_explicit(&r->next, next + 1, memory_order_release);
}

/* Where a reader is in a ring. */
struct cursor {
    struct ring *ring;
    unsigned at, end; /* of records, counted from the ring's first one */
};

/* A whole copy of the record at the cursor. False: it was written meanwhile. */
static bool copy_record(const struct cursor *c, struct record *ret_record)
{
    struct record *record = &c->ring->records[c->at % RING_RECORDS];
    unsigned before = atomic_load_explicit(&record->serial, memory_order_acquire), after;

    ret_record->time_us = record->time_us;
    ret_record->size = record->size;
    memcpy(ret_record->text, record->text, sizeof(ret_record->text));
    /* Likewise the addition keeps the loads above before it. */
    after = atomic_fetch_add_explicit(&record->serial, 0, memory_order_acq_rel);
    return before == after && before % 2 == 0 && ret_record->size <= sizeof(ret_record->text);
}

static unsigned cursors_init(struct cursor *cursors)
{
    unsigned count = 0;

    for (unsigned i = 0; i < RINGS_MAX; i++) {
        struct ring *r = atomic_load(&rings[i]);
        unsigned end = r ? atomic_load(&r->next) : 0;

        if (end > 0) {
            cursors[count++] =
                (struct cursor){.ring = r, .at = end - MIN(end, RING_RECORDS), .end = end};
        }
    }
    return count;
}

/* The cursor whose record is the oldest; NULL: all are at their ends. */
static struct cursor *oldest(struct cursor *cursors, unsigned count)
{
    struct cursor *first = NULL;

    for (unsigned i = 0; i < count; i++) {
        struct cursor *c = &cursors[i];

        if (c->at != c->end &&
            (!first || c->ring->records[c->at % RING_RECORDS].time_us <
                           first->ring->records[first->at % RING_RECORDS].time_us)) {
            first = c;
        }
    }
    return first;
}

void trace_ring_each(void (*fn)(const char *line, size_t size))
{
    struct cursor cursors[RINGS_MAX], *c;
    unsigned count = cursors_init(cursors);
    struct record copy;

    while ((c = oldest(cursors, count))) {
        if (copy_record(c, &copy)) {
            fn(copy.text, copy.size);
        }
        c->at++;
    }
}
