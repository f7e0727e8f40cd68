/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2/check/reference_counts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* Clusters of a chunk. */
#define CHUNK_BITS 15
#define CHUNK (1u << CHUNK_BITS)
/* Pointers of a node. */
#define NODE_BITS 9
#define NODE (1u << NODE_BITS)
/* Bits of one element of chunk.bits. */
#define WORD_BITS 64u

enum chunk_state { EVEN, BITS, BYTES, WORDS };

struct chunk {
    enum chunk_state state;
    uint32_t base;     /* EVEN and BITS: the lower number */
    uint32_t set_bits; /* BITS: how many bits are set */
    union {
        uint64_t *bits;
        uint8_t *bytes;
        uint32_t *words;
        void *data;
    };
};

struct reference_counts {
    /* Below `levels` levels of nodes lie the chunks. NULL: everything below has the count 0. */
    void *root;
    unsigned levels;
    /* The largest count. */
    uint64_t max;
    /* Bytes that may still be allocated. */
    uint64_t memory;
    /* Some count is above 1. */
    bool shared;
    /* The chunk that was used last, and its index; NULL: none yet. */
    struct chunk *recent;
    uint64_t recent_index;
};

/* --- memory ----------------------------------------------------------------------------------- */

/* Zeroed; NULL if the memory limit or the system refuses. */
static void *alloc_within_limit(struct reference_counts *c, size_t count, size_t size)
{
    void *data = NULL;

    if (c->memory >= count * size) {
        data = calloc(count, size);
        c->memory -= data ? count * size : 0;
    }
    return data;
}

static void free_within_limit(struct reference_counts *c, void *data, size_t size)
{
    free(data);
    c->memory += size;
}

struct reference_counts *reference_counts_new(uint64_t clusters, uint64_t max, uint64_t memory)
{
    struct reference_counts *c = calloc(1, sizeof(*c));

    if (c) {
        c->max = MIN(max, UINT32_MAX);
        c->memory = memory;
        while (CHUNK_BITS + NODE_BITS * c->levels < 64 &&
               clusters >> (CHUNK_BITS + NODE_BITS * c->levels)) {
            c->levels++;
        }
    }
    return c;
}

static void free_tree(void *node, unsigned levels)
{
    struct chunk *chunk = node;
    void **children = node;

    if (!node) {
        return;
    }
    if (levels == 0) {
        free(chunk->data);
    }
    for (unsigned i = 0; levels > 0 && i < NODE; i++) {
        free_tree(children[i], levels - 1);
    }
    free(node);
}

void reference_counts_free(struct reference_counts *c)
{
    if (c) {
        free_tree(c->root, c->levels);
        free(c);
    }
}

/* --- finding chunks --------------------------------------------------------------------------- */

/*
 * The pointer, in a node at `level`, that leads to a chunk. The nodes of level 1 point to chunks.
 */
static unsigned child_index(uint64_t chunk_index, unsigned level)
{
    return (unsigned)(chunk_index >> (NODE_BITS * (level - 1))) & (NODE - 1);
}

/* The chunk at `index`, made if it does not exist. NULL: no memory. */
static struct chunk *make_chunk(struct reference_counts *c, uint64_t index)
{
    void **place = &c->root;

    if (c->recent && c->recent_index == index) {
        return c->recent;
    }
    for (unsigned level = c->levels; level > 0; level--) {
        if (!*place && !(*place = alloc_within_limit(c, NODE, sizeof(void *)))) {
            return NULL;
        }
        place = (void **)*place + child_index(index, level);
    }
    if (!*place && !(*place = alloc_within_limit(c, 1, sizeof(struct chunk)))) {
        return NULL;
    }
    c->recent = *place;
    c->recent_index = index;
    return c->recent;
}

/*
 * The chunk at `index`, or NULL if it does not exist. Then the counts of *ret_clusters clusters
 * from the first one of this chunk are 0.
 */
static const struct chunk *find_chunk(const struct reference_counts *c, uint64_t index,
                                      uint64_t *ret_clusters)
{
    const void *node = c->root;
    unsigned level = c->levels;

    for (; level > 0 && node; level--) {
        node = ((void *const *)node)[child_index(index, level)];
    }
    if (!node) {
        unsigned bits = NODE_BITS * level;
        uint64_t chunks = bits + CHUNK_BITS < 64 ? (1ULL << bits) - (index & ((1ULL << bits) - 1))
                                                 : UINT64_MAX >> CHUNK_BITS;

        *ret_clusters = chunks << CHUNK_BITS;
    }
    return node;
}

/* --- bits ------------------------------------------------------------------------------------- */

/* `n` > 0 bits from bit `at`. */
static uint64_t bit_mask(unsigned at, unsigned n)
{
    return (n == WORD_BITS ? UINT64_MAX : (1ULL << n) - 1) << at;
}

/* Sets bits from `at`, at most `n`, and stops before one that is set already. Returns how many. */
static unsigned set_clear_bits(uint64_t *bits, unsigned at, unsigned n)
{
    unsigned done = 0;

    while (done < n) {
        unsigned in_word = (at + done) % WORD_BITS, part = MIN(WORD_BITS - in_word, n - done);
        uint64_t *word = &bits[(at + done) / WORD_BITS];
        uint64_t set = *word & bit_mask(in_word, part);

        if (set) {
            part = (unsigned)__builtin_ctzll(set) - in_word;
        }
        if (part > 0) {
            *word |= bit_mask(in_word, part);
        }
        done += part;
        if (set) {
            break;
        }
    }
    return done;
}

/* How many of `n` > 0 bits from `at` equal the first one. */
static unsigned equal_bits(const uint64_t *bits, unsigned at, unsigned n)
{
    uint64_t invert = bits[at / WORD_BITS] >> (at % WORD_BITS) & 1 ? UINT64_MAX : 0;
    unsigned done = 0;

    while (done < n) {
        unsigned in_word = (at + done) % WORD_BITS, part = MIN(WORD_BITS - in_word, n - done);
        uint64_t other = (bits[(at + done) / WORD_BITS] ^ invert) & bit_mask(in_word, part);

        if (other) {
            return done + (unsigned)__builtin_ctzll(other) - in_word;
        }
        done += part;
    }
    return n;
}

/* --- chunks ----------------------------------------------------------------------------------- */

static uint32_t number_at(const struct chunk *k, unsigned at)
{
    switch (k->state) {
    case EVEN:
        return k->base;
    case BITS:
        return k->base + (k->bits[at / WORD_BITS] >> (at % WORD_BITS) & 1);
    case BYTES:
        return k->bytes[at];
    default:
        return k->words[at];
    }
}

static size_t state_bytes(enum chunk_state state)
{
    static const size_t sizes[] = {0, CHUNK / 8, CHUNK, CHUNK * sizeof(uint32_t)};

    return sizes[state];
}

/* Gives a chunk a state with wider numbers. */
static int widen(struct reference_counts *c, struct chunk *k, enum chunk_state to)
{
    struct chunk wide = {
        .state = to, .base = k->base, .data = alloc_within_limit(c, 1, state_bytes(to))};

    if (!wide.data) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < CHUNK && to > BITS; i++) {
        if (to == BYTES) {
            wide.bytes[i] = (uint8_t)number_at(k, i);
        } else {
            wide.words[i] = number_at(k, i);
        }
    }
    free_within_limit(c, k->data, state_bytes(k->state));
    *k = wide;
    return 0;
}

/* BITS: adds 1 to clusters that have the lower number, up to the first one that does not. */
static unsigned add_bits(struct reference_counts *c, struct chunk *k, unsigned at, unsigned n)
{
    unsigned done = set_clear_bits(k->bits, at, n);

    k->set_bits += done;
    if (k->set_bits == CHUNK) {
        free_within_limit(c, k->bits, state_bytes(BITS));
        *k = (struct chunk){.state = EVEN, .base = k->base + 1};
    }
    return done;
}

/* Adds what the present state can hold. -ERANGE: the next count would exceed the maximum. */
static int add_in_state(struct reference_counts *c, struct chunk *k, unsigned at, unsigned n,
                        uint64_t times, unsigned *ret_done)
{
    unsigned done = 0;

    switch (k->state) {
    case EVEN:
        if (k->base + times <= c->max && n == CHUNK) {
            k->base += (uint32_t)times;
            done = n;
        }
        break;
    case BITS:
        done = k->base < c->max && times == 1 ? add_bits(c, k, at, n) : 0;
        break;
    case BYTES:
        while (done < n && k->bytes[at + done] + times <= MIN(c->max, UINT8_MAX)) {
            k->bytes[at + done++] += (uint8_t)times;
        }
        break;
    default:
        while (done < n && k->words[at + done] + times <= c->max) {
            k->words[at + done++] += (uint32_t)times;
        }
    }
    *ret_done = done;
    return done < n && number_at(k, at + done) + times > c->max ? -ERANGE : 0;
}

static int add_in_chunk(struct reference_counts *c, struct chunk *k, unsigned at, unsigned n,
                        uint64_t times, unsigned *ret_done)
{
    unsigned part;
    int r = 0;

    for (*ret_done = 0; *ret_done < n && r == 0; *ret_done += part) {
        unsigned here = at + *ret_done;

        r = add_in_state(c, k, here, n - *ret_done, times, &part);
        if (part > 0) {
            /* If another cluster of the part has more than this one, `shared` was set before. */
            c->shared |= number_at(k, here) > 1;
        } else if (r == 0) {
            bool wide = k->state == BYTES || number_at(k, here) + times > UINT8_MAX;

            r = widen(c, k, k->state == EVEN && times == 1 ? BITS : wide ? WORDS : BYTES);
        }
    }
    return r;
}

/* --- numbers ---------------------------------------------------------------------------------- */

int reference_counts_add(struct reference_counts *c, uint64_t first, uint64_t n, uint64_t *ret_done)
{
    return reference_counts_add_times(c, first, n, 1, ret_done);
}

int reference_counts_add_times(struct reference_counts *c, uint64_t first, uint64_t n,
                               uint32_t times, uint64_t *ret_done)
{
    int r = 0;

    for (*ret_done = 0; *ret_done < n && r == 0;) {
        uint64_t cluster = first + *ret_done;
        struct chunk *k = make_chunk(c, cluster >> CHUNK_BITS);
        unsigned at = cluster % CHUNK, done = 0;

        r = k ? add_in_chunk(c, k, at, (unsigned)MIN(n - *ret_done, CHUNK - at), times, &done)
              : -ENOMEM;
        *ret_done += done;
    }
    return r;
}

uint32_t reference_counts_get(const struct reference_counts *c, uint64_t cluster)
{
    const struct chunk *k;
    uint64_t none;

    k = find_chunk(c, cluster >> CHUNK_BITS, &none);
    return k ? number_at(k, cluster % CHUNK) : 0;
}

uint64_t reference_counts_run(const struct reference_counts *c, uint64_t first, uint64_t n,
                              uint32_t *ret_count)
{
    unsigned at = first % CHUNK, most, same = 1;
    const struct chunk *k;
    uint64_t none;

    k = find_chunk(c, first >> CHUNK_BITS, &none);
    if (!k) {
        *ret_count = 0;
        return MIN(n, none - at);
    }
    *ret_count = number_at(k, at);
    most = (unsigned)MIN(n, CHUNK - at);
    if (k->state == EVEN) {
        return most;
    }
    if (k->state == BITS) {
        return equal_bits(k->bits, at, most);
    }
    while (same < most && number_at(k, at + same) == *ret_count) {
        same++;
    }
    return same;
}

bool reference_counts_any_shared(const struct reference_counts *c)
{
    return c->shared;
}
