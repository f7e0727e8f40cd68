/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guest did, the answers it got, and from that what each sector may hold after a crash at
 * a given time.
 *
 * Guest data are stamped: a sector holds its own number and the number of the request that wrote
 * it, so what is read tells where it came from. Requests in flight at the same time don't overlap,
 * so the requests on one sector have an order.
 */
#ifndef TIDEMARK_TESTS_MODEL_H
#define TIDEMARK_TESTS_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MODEL_SECTOR 512u
#define MODEL_ZERO UINT32_MAX          /* value: reads as zeroes */
#define MODEL_GARBAGE (UINT32_MAX - 1) /* value: nothing that the guest wrote here */
#define MODEL_ANY (UINT32_MAX - 2)     /* value: not known, after a discard */
#define MODEL_PENDING UINT64_MAX       /* end of a request that has not been answered */

enum model_kind {
    MODEL_WRITE,
    MODEL_ZEROES,
    MODEL_DISCARD,
    MODEL_FLUSH,
    /* No other request is in flight, and these are stable when they are answered. */
    MODEL_RESIZE, /* `sector` is the new size; sectors behind it, if the disk had them, are lost */
    MODEL_SNAPSHOT_CREATE,
    MODEL_SNAPSHOT_APPLY, /* all sectors become what `values` says */
    MODEL_SNAPSHOT_DELETE,
    /* The disk reads the same all the time: */
    MODEL_COMMIT, /* to the backing file */
    MODEL_AMEND,
};

struct model_op {
    enum model_kind kind;
    uint64_t sector, sectors;
    uint64_t begin, end;    /* record_tick() before it was sent and after it was answered */
    const uint32_t *values; /* MODEL_SNAPSHOT_APPLY: by sector; of the snapshot */
};

/* The size of the disk from a time between begin and end on. */
struct model_size {
    uint64_t begin, end;
    uint64_t sectors;
};

struct model_snapshot {
    char name[16];
    uint64_t create_begin, create_end, delete_begin; /* MODEL_PENDING: never */
    uint64_t sectors;                                /* size of its disk */
    uint32_t *values;                                /* by sector, for all that the model has */
};

/* While it records: it covers what changes between the two times. */
struct model_epoch {
    uint64_t base;  /* end of the creation or clearing that it begins with */
    uint64_t until; /* when the next clearing, disabling or removal began; MODEL_PENDING: never */
};

#define MODEL_MAX_EPOCHS 16

/* From its creation to its removal; a name may come again. */
struct model_bitmap {
    char name[16];
    uint64_t create_end;
    uint64_t remove_begin; /* MODEL_PENDING: never */
    struct model_epoch epochs[MODEL_MAX_EPOCHS];
    unsigned epoch_count;
};

/*
 * An image is open from open_begin to close_end; what was changed then is stored when close_end has
 * passed.
 */
struct model_session {
    uint64_t open_begin, close_begin, close_end; /* close_end: MODEL_PENDING until then */
    uint64_t job_begin; /* a job that may move bitmaps to another image; MODEL_PENDING: none */
};

/* A change of the bitmaps of two images at once. Number n leaves bitmaps n and n - 1. */
struct model_joint {
    uint64_t begin, end; /* end: MODEL_PENDING until then */
};

/* A change of key slots. Bits: passphrases that open the disk. */
struct model_keys {
    uint64_t begin, end; /* end: MODEL_PENDING until then */
    unsigned before, after;
};

/* The disk that users had from a time on: the number of that of the image on top. */
struct model_top {
    uint64_t from; /* the first time at which they had it */
    unsigned disk;
};

#define MODEL_MAX_DISKS 8
#define MODEL_MAX_TOPS 16
#define MODEL_MAX_MOMENTS 64
#define MODEL_MAX_BITMAPS 32
#define MODEL_MAX_SESSIONS 32
#define MODEL_MAX_SIZES 128
#define MODEL_MAX_SNAPSHOTS 64
#define MODEL_MAX_JOINTS 128
#define MODEL_MAX_KEYS 64

struct model {
    uint64_t sectors; /* that the disk has at most */
    struct model_op *ops;
    size_t count, capacity;
    /*
     * Requests on each sector, in order: sector_ops[s][0 .. sector_counts[s]) are numbers of ops.
     */
    uint32_t **sector_ops;
    uint32_t *sector_counts;
    struct model_bitmap bitmaps[MODEL_MAX_BITMAPS];
    unsigned bitmap_count;
    struct model_session sessions[MODEL_MAX_SESSIONS];
    unsigned session_count;
    struct model_size sizes[MODEL_MAX_SIZES]; /* the first is that of the new image */
    unsigned size_count;
    struct model_snapshot snapshots[MODEL_MAX_SNAPSHOTS];
    unsigned snapshot_count;
    struct model_joint joints[MODEL_MAX_JOINTS];
    unsigned joint_count;
    struct model_keys keys[MODEL_MAX_KEYS];
    unsigned keys_count;
    struct model_top tops[MODEL_MAX_TOPS];
    unsigned top_count;
    uint64_t spoiled[MODEL_MAX_DISKS];   /* by disk; see model_spoil() */
    uint64_t moments[MODEL_MAX_MOMENTS]; /* around which crashes are worth looking at */
    unsigned moment_count;
};

void model_init(struct model *m, uint64_t size);
void model_clear(struct model *m);

/* The size changes: `begin` is now, `end` is to be set. */
struct model_size *model_add_size(struct model *m, uint64_t sectors, uint64_t now);
/* Sectors that the disk has, no resize being in flight. */
uint64_t model_sectors_now(const struct model *m);
/* Whether the disk may have that many sectors after a crash at `crash`. */
bool model_allows_size(const struct model *m, uint64_t sectors, uint64_t crash);

/* Users have the image of that disk from now on, if they had not yet. */
void model_set_top(struct model *m, unsigned disk, uint64_t now);
/* The disk that they had at a time. */
unsigned model_top_at(const struct model *m, uint64_t when);
/*
 * What lies below the image of that disk changes from now on, so that what it shows is of no use:
 * images above are committed through it into one below.
 */
void model_spoil(struct model *m, unsigned disk, uint64_t now);
bool model_is_spoiled(const struct model *m, unsigned disk, uint64_t when);
void model_note_moment(struct model *m, uint64_t now);

/* A request is sent; its number. */
uint32_t model_begin(struct model *m, enum model_kind kind, uint64_t sector, uint64_t sectors,
                     uint64_t now);
void model_end(struct model *m, uint32_t op, uint64_t now);
/* It failed and changed nothing; no other was sent since. */
void model_cancel(struct model *m, uint32_t op, uint64_t now);
/* Whether something is done to internal snapshots at that time. */
bool model_changes_snapshots(const struct model *m, uint64_t when);
const char *model_kind_name(enum model_kind kind);

/* Fill `size` bytes with the stamps that request `op` writes from `sector` on. */
void model_stamp(uint8_t *data, size_t size, uint64_t sector, uint32_t op);
/*
 * The value that 512 bytes read from `sector` show: the number of a request, MODEL_ZERO or
 * MODEL_GARBAGE.
 */
uint32_t model_value(const uint8_t *data, uint64_t sector);
bool model_is_guest_data(const uint8_t *data, size_t size);

/*
 * Requests answered by the time returned are stable after a crash at `crash`: the last flush
 * answered before that was sent then.
 */
uint64_t model_stable_until(const struct model *m, uint64_t crash);
/*
 * Whether `value` is allowed in `sector` after a crash at `crash`: the last request on it that was
 * answered by `stable` (model_stable_until()), or any later one that had been sent. What was
 * discarded may hold anything that it ever held.
 */
bool model_allows(const struct model *m, uint64_t sector, uint32_t value, uint64_t crash,
                  uint64_t stable);
/*
 * What `sector` held for the guest at time `when`, no request being in flight; MODEL_ZERO after a
 * discard.
 */
uint32_t model_value_at(const struct model *m, uint64_t sector, uint64_t when);
/*
 * Whether that is known: not after a request that failed for lack of room, which may have been done
 * in part.
 */
bool model_knows_value_at(const struct model *m, uint64_t sector, uint64_t when);
/* Whether a request on `sector` between the two times discarded it. */
bool model_discarded(const struct model *m, uint64_t sector, uint64_t since, uint64_t until);
/* "request 17 (write, sent 120, answered 140)" */
void model_describe(const struct model *m, uint32_t value, char *buf, size_t size);

#endif
