/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The verifying writer. `write` keeps writing stamped blocks to an area of an NBD export and notes
 * in a journal when each write was submitted and when it was acknowledged. `check` proves from the
 * journal that an image of that area is the state of one moment within a window: every block holds
 * the last write acknowledged before the window began, or a later one of which none was submitted
 * after the window ended.
 *
 * A block has one write in flight at most, so its sequence numbers say which write came later.
 *
 * Journal, in the byte order of the machine: struct header, then a struct record for each sequence
 * number from 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/iov.h"
#include "base/size.h"
#include "co/sync.h"
#include "loop/loop.h"
#include "nbd/client.h"

#define BLOCK_SIZE 4096u
#define WORDS (BLOCK_SIZE / 8)
#define JOURNAL_MAGIC 0x314c4e52554f4a54ULL
#define STAMP_MAGIC 0x504d415453454d54ULL
#define CONNECT_TIMEOUT_NS (20 * NS_PER_SECOND)

struct header {
    uint64_t magic;
    uint64_t offset; /* of the area, in bytes */
    uint64_t blocks;
};

struct record {
    uint64_t block;
    int64_t submitted_ns;    /* CLOCK_MONOTONIC, right before the request was made */
    int64_t acknowledged_ns; /* right after the answer; 0: none yet */
};

struct options {
    const char *uri, *journal, *image;
    uint64_t offset, length; /* bytes */
    uint64_t rate;           /* writes per second */
    uint64_t depth;          /* in flight */
    uint64_t seed;
    int64_t begin_ns, end_ns;
};

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ULL;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ULL;
    return x ^ (x >> 32);
}

/*
 * Every word of the block depends on block and sequence number, so that a mix of two writes is
 * noticed.
 */
static void stamp(uint64_t *words, uint64_t block, uint64_t seq)
{
    words[0] = STAMP_MAGIC;
    words[1] = block;
    words[2] = seq;
    for (unsigned i = 3; i < WORDS; i++) {
        words[i] = mix(seq * WORDS + i) ^ block;
    }
}

/* The sequence number a block holds: 0 if it was never written, -1 if it is no block of ours. */
static int64_t read_stamp(const uint64_t *words, uint64_t block)
{
    uint64_t expected[WORDS];

    if (buffer_is_zero(words, BLOCK_SIZE)) {
        return 0;
    }
    if (words[0] != STAMP_MAGIC || words[2] > INT64_MAX) {
        return -1;
    }
    stamp(expected, block, words[2]);
    return memcmp(words, expected, BLOCK_SIZE) == 0 ? (int64_t)words[2] : -1;
}

/* --- write --- */

struct writer {
    const struct options *options;
    struct nbd_client *client;
    int journal;
    uint64_t blocks;
    bool *busy; /* by block: a write is in flight */
    uint64_t random;
    uint64_t next_seq;
    uint64_t acknowledged;
    int64_t started_ns;
    int status;
    struct co_group group;
};

static volatile sig_atomic_t stop;

static void on_signal(int number)
{
    stop = 1;
}

static int put(int fd, const void *data, size_t size, uint64_t offset)
{
    ssize_t n = pwrite(fd, data, size, (off_t)offset);

    return n < 0 ? -errno : (size_t)n == size ? 0 : -EIO;
}

static int put_record(struct writer *w, uint64_t seq, const struct record *r)
{
    return put(w->journal, r, sizeof(*r), sizeof(struct header) + (seq - 1) * sizeof(*r));
}

static uint64_t pick_block(struct writer *w)
{
    uint64_t block;

    do {
        w->random = mix(w->random + 0x9e3779b97f4a7c15ULL);
        block = w->random % w->blocks;
    } while (w->busy[block]);
    return block;
}

static int co_write_one(struct writer *w, uint64_t *words)
{
    uint64_t seq = w->next_seq++;
    struct record r = {.block = pick_block(w)};
    struct iovec vec;
    int rc;

    w->busy[r.block] = true;
    stamp(words, r.block, seq);
    r.submitted_ns = loop_now_ns();
    rc = put_record(w, seq, &r);
    if (rc == 0) {
        rc = nbd_client_co_pwritev(w->client, w->options->offset + r.block * BLOCK_SIZE,
                                   iov_from_buf(&vec, words, BLOCK_SIZE), false);
    }
    if (rc == 0) {
        r.acknowledged_ns = loop_now_ns();
        rc = put_record(w, seq, &r);
        w->acknowledged++;
    }
    w->busy[r.block] = false;
    if (rc < 0) {
        fprintf(stderr, "verifying_writer: write %" PRIu64 " failed: %s\n", seq, strerror(-rc));
    }
    return rc;
}

static void write_entry(void *arg)
{
    struct writer *w = arg;
    uint64_t words[WORDS];

    while (!stop && w->status == 0) {
        int64_t due = w->started_ns +
                      (int64_t)((double)w->next_seq / (double)w->options->rate * NS_PER_SECOND);
        int64_t now = loop_now_ns();

        if (due > now) {
            loop_co_sleep(MIN(due - now, NS_PER_SECOND / 20));
            continue;
        }
        int rc = co_write_one(w, words);
        w->status = w->status ? w->status : rc;
    }
    co_group_done(&w->group);
}

static int co_connect(struct writer *w)
{
    struct socket_address address = {0};
    char *name AUTO_FREE = NULL;
    ERROR_AUTO(err);
    int rc = nbd_address_parse(w->options->uri, &address, &name, &err);

    rc = rc < 0 ? rc
                : nbd_client_co_connect(&address, NULL, name, NULL, 0, CONNECT_TIMEOUT_NS,
                                        &w->client, &err);
    socket_address_clear(&address);
    if (rc == 0 &&
        !range_fits(w->options->offset, w->options->length, nbd_client_size(w->client))) {
        rc = error_set(&err, EINVAL, "The area lies outside of the export");
    }
    if (rc < 0) {
        fprintf(stderr, "verifying_writer: %s\n", error_message(&err));
    }
    return rc;
}

static int co_write_all(struct writer *w)
{
    co_group_init(&w->group);
    for (uint64_t i = 0; i < w->options->depth; i++) {
        co_group_add(&w->group);
        if (co_spawn(reactor_home(reactor_main()), write_entry, w) < 0) {
            co_group_done(&w->group);
            w->status = -EAGAIN;
            break;
        }
    }
    co_group_wait(&w->group);
    co_group_destroy(&w->group);
    if (w->status == 0) {
        w->status = nbd_client_co_flush(w->client);
    }
    return w->status;
}

static void writer_main(void *arg)
{
    struct writer *w = arg;
    const struct options *o = w->options;
    struct header header = {JOURNAL_MAGIC, o->offset, o->length / BLOCK_SIZE};

    w->blocks = header.blocks;
    w->busy = calloc(w->blocks, sizeof(*w->busy));
    w->journal = open(o->journal, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    w->status = !w->busy ? -ENOMEM : w->journal < 0 ? -errno : 0;
    w->status = w->status ? w->status : put(w->journal, &header, sizeof(header), 0);
    w->status = w->status ? w->status : co_connect(w);
    if (w->status == 0) {
        w->started_ns = loop_now_ns();
        co_write_all(w);
        nbd_client_co_close(w->client);
    } else if (!w->client) {
        fprintf(stderr, "verifying_writer: could not start: %s\n", strerror(-w->status));
    }
    free(w->busy);
    if (w->journal >= 0) {
        close(w->journal);
    }
}

static int run_write(const struct options *o)
{
    struct writer w = {.options = o, .journal = -1, .next_seq = 1, .random = o->seed};
    struct sigaction action = {.sa_handler = on_signal};
    ERROR_AUTO(err);
    int rc;

    if (o->length / BLOCK_SIZE <= o->depth || o->rate == 0 || o->depth == 0) {
        fprintf(stderr, "verifying_writer: the area needs more blocks than writes in flight\n");
        return 1;
    }
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (reactor_init_main(&err) < 0) {
        fprintf(stderr, "verifying_writer: %s\n", error_message(&err));
        return 1;
    }
    rc = reactor_run_until_done(writer_main, &w);
    reactor_exit_main();
    printf("%" PRIu64 " writes submitted, %" PRIu64 " acknowledged\n", w.next_seq - 1,
           w.acknowledged);
    return rc < 0 || w.status < 0 ? 1 : 0;
}

/* --- check --- */

struct check {
    const struct options *options;
    struct header header;
    struct record *records; /* of sequence number i + 1 */
    uint64_t count;
    uint64_t *must; /* by block: last sequence number acknowledged before the window; 0: none */
    uint64_t required, found, newer, wrong;
};

static int read_journal(struct check *c)
{
    int fd AUTO_CLOSE = open(c->options->journal, O_RDONLY | O_CLOEXEC);
    struct stat st;
    size_t size;

    if (fd < 0 || fstat(fd, &st) < 0 || (size_t)st.st_size < sizeof(c->header) ||
        pread(fd, &c->header, sizeof(c->header), 0) != sizeof(c->header) ||
        c->header.magic != JOURNAL_MAGIC) {
        fprintf(stderr, "verifying_writer: no journal: '%s'\n", c->options->journal);
        return -EINVAL;
    }
    c->count = ((size_t)st.st_size - sizeof(c->header)) / sizeof(*c->records);
    size = c->count * sizeof(*c->records);
    c->records = calloc(c->count + 1, sizeof(*c->records));
    c->must = calloc(c->header.blocks + 1, sizeof(*c->must));
    if (!c->records || !c->must) {
        return -ENOMEM;
    }
    for (size_t done = 0; done < size;) {
        ssize_t n =
            pread(fd, (char *)c->records + done, size - done, (off_t)(sizeof(c->header) + done));
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += (size_t)n;
    }
    return 0;
}

static void collect(struct check *c)
{
    for (uint64_t i = 0; i < c->count; i++) {
        const struct record *r = &c->records[i];

        if (r->block < c->header.blocks && r->acknowledged_ns != 0 &&
            r->acknowledged_ns < c->options->begin_ns) {
            c->must[r->block] = i + 1;
            c->required++;
        }
    }
}

static void complain(struct check *c, uint64_t block, const char *what)
{
    if (c->wrong++ < 10) {
        fprintf(stderr, "block %" PRIu64 ": %s\n", block, what);
    }
}

static void check_block(struct check *c, uint64_t block, const uint64_t *words)
{
    int64_t seq = read_stamp(words, block);
    const struct record *r;

    if (seq < 0) {
        complain(c, block, "holds something that was never written there, or half of it");
        return;
    }
    if ((uint64_t)seq < c->must[block]) {
        complain(c, block, "lacks a write that was acknowledged before the window began");
        return;
    }
    if (seq == 0) {
        return;
    }
    if ((uint64_t)seq > c->count || c->records[seq - 1].block != block) {
        complain(c, block, "holds a write that is not in the journal");
        return;
    }
    r = &c->records[seq - 1];
    if (r->submitted_ns > c->options->end_ns) {
        complain(c, block, "holds a write that was submitted after the window ended");
        return;
    }
    c->found++;
    c->newer += (uint64_t)seq > c->must[block];
}

static int check_image(struct check *c)
{
    int fd AUTO_CLOSE = open(c->options->image, O_RDONLY | O_CLOEXEC);
    uint64_t words[WORDS];

    if (fd < 0) {
        fprintf(stderr, "verifying_writer: '%s': %s\n", c->options->image, strerror(errno));
        return -errno;
    }
    for (uint64_t block = 0; block < c->header.blocks; block++) {
        if (pread(fd, words, BLOCK_SIZE, (off_t)(c->header.offset + block * BLOCK_SIZE)) !=
            BLOCK_SIZE) {
            fprintf(stderr, "verifying_writer: '%s' is too short\n", c->options->image);
            return -EIO;
        }
        check_block(c, block, words);
    }
    return 0;
}

static int run_check(const struct options *o)
{
    struct check c = {.options = o};
    int rc = read_journal(&c);

    if (rc == 0) {
        collect(&c);
        rc = check_image(&c);
    }
    free(c.records);
    free(c.must);
    if (rc < 0) {
        return 1;
    }
    printf("%" PRIu64 " writes acknowledged before the checkpoint%s; %" PRIu64
           " blocks stamped, %" PRIu64 " of them by writes that were under way; %" PRIu64
           " wrong\n",
           c.required, c.wrong ? "" : ", all there or replaced by later ones", c.found, c.newer,
           c.wrong);
    if (c.required == 0) {
        fprintf(stderr, "verifying_writer: nothing was acknowledged before the window: this "
                        "proves nothing\n");
        return 1;
    }
    return c.wrong ? 1 : 0;
}

/* --- command line --- */

static const char usage[] =
    "usage: verifying_writer write --uri URI --journal FILE --offset N --length N [--rate N] "
    "[--depth N] [--seed N]\n"
    "       verifying_writer check --journal FILE --image RAW --begin NS --end NS\n"
    "\n"
    "write: stamp blocks of 4 KiB in an area of an NBD export until SIGTERM, then flush.\n"
    "check: prove that an image is the state of one moment of the window. NS is CLOCK_MONOTONIC.\n";

static bool parse_number(const char *text, uint64_t *ret)
{
    return text && size_parse(text, "number", ret, NULL) == 0;
}

static bool parse(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"uri", 1, NULL, 'u'},    {"journal", 1, NULL, 'j'}, {"image", 1, NULL, 'i'},
        {"offset", 1, NULL, 'o'}, {"length", 1, NULL, 'l'},  {"rate", 1, NULL, 'r'},
        {"depth", 1, NULL, 'd'},  {"seed", 1, NULL, 's'},    {"begin", 1, NULL, 'b'},
        {"end", 1, NULL, 'e'},    {NULL, 0, NULL, 0}};
    uint64_t begin = 0, end = 0;
    bool ok = true;
    int c;

    while (ok && (c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (c) {
        case 'u':
            o->uri = optarg;
            break;
        case 'j':
            o->journal = optarg;
            break;
        case 'i':
            o->image = optarg;
            break;
        default:
            ok = parse_number(optarg, c == 'o'   ? &o->offset
                                      : c == 'l' ? &o->length
                                      : c == 'r' ? &o->rate
                                      : c == 'd' ? &o->depth
                                      : c == 's' ? &o->seed
                                      : c == 'b' ? &begin
                                                 : &end);
            break;
        }
    }
    o->begin_ns = (int64_t)begin;
    o->end_ns = (int64_t)end;
    return ok && o->journal;
}

int main(int argc, char **argv)
{
    struct options o = {.rate = 1000, .depth = 8, .seed = 1};
    bool ok = argc >= 2 && parse(argc - 1, argv + 1, &o);

    if (ok && strcmp(argv[1], "write") == 0 && o.uri && o.length) {
        return run_write(&o);
    }
    if (ok && strcmp(argv[1], "check") == 0 && o.image && o.end_ns) {
        return run_check(&o);
    }
    fputs(usage, stderr);
    return 1;
}
