/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: long work on images that a user starts, watches and ends (QAPI schema of QEMU: JobInfo,
 * JobStatus, JobVerb; docs/interop/live-block-operations).
 *
 * A job is driven by a struct job_driver ("backup"). Its work is a coroutine of the main reactor.
 * States, with the function that makes each transition:
 *
 *      (none)
 *        | job_new()
 *      CREATED -- job_co_discard() ------------------------------------------------> NULL
 *        | job_start()
 *        v        job_co_pause_point(), job_start_drained()
 *      RUNNING <----------------------> PAUSED
 *        | job_set_ready()
 *        v        job_co_pause_point()
 *      READY <------------------------> STANDBY
 *        | the driver's co_run returns 0
 *        v
 *      WAITING   until all jobs of the transaction are here
 *        | co_txn_pend()
 *        v
 *      PENDING   until job_co_finalize(), or at once with auto-finalize
 *        | conclude_job(): co_prepare of all jobs, then co_commit and co_clean of each. One
 *        | that waits in co_prepare for storage that hangs may be cancelled (`cancels_prepare`)
 *        v
 *      CONCLUDED -- job_dismiss(), or at once with auto-dismiss --> NULL
 *
 *      any before CONCLUDED -- an error, a cancel, or that of another job of the transaction -->
 *      ABORTING -- conclude_job(): co_abort, co_clean --> CONCLUDED
 *      (of a job in CREATED: job_co_undo(), which goes on to NULL)
 *
 * RUNNING goes on to WAITING as READY does, if the driver never is ready. Every transition is an
 * event. The result of a job is final before the first event of its end.
 *
 * Jobs of one struct job_txn end together: all with success, or none. The one exception: of several
 * whose co_prepare is final, a later one may fail. The earlier ones have taken effect then, and end
 * with success, as they show to be.
 *
 * Pauses. A user's pause takes effect at the next pause point of the driver, after its requests in
 * flight. A drain of a node that a job uses is none of the job's business: its requests wait at the
 * gate as those of every user do, and no event is sent; except that a job which begins in a drained
 * section (job_start_drained()) is shown as paused until the section ends, as by QEMU.
 *
 * Locks. With the control lock held, a driver makes no request through a root of its own: a drain
 * of another command, which may wait for the lock, would hold the request back for good. It flushes
 * by block_co_flush_node(), and copies through edges of its filter with that drained.
 *
 * The control lock (block/control_lock.h) is held when a job is made, started, discarded, or
 * a verb is carried out, and in the functions of the driver that end a job. co_run is called
 * without the lock.
 *
 * Main reactor only. `co_` functions run in a coroutine and yield; the others do not yield.
 */
#ifndef TIDEMARK_JOB_JOB_H
#define TIDEMARK_JOB_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct block_node;
struct block_root;
struct job;
struct job_txn;

enum job_status {
    JOB_CREATED,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_READY,
    JOB_STANDBY,
    JOB_WAITING,
    JOB_PENDING,
    JOB_ABORTING,
    JOB_CONCLUDED,
    JOB_NULL,
    JOB_STATUS_COUNT
};

/* By the names of QEMU's JobStatus: "running". */
const char *job_status_name(enum job_status status);

/* What a job does after an error of a node; BlockdevOnError without "auto". */
enum job_on_error {
    JOB_ON_ERROR_REPORT,
    JOB_ON_ERROR_IGNORE,
    JOB_ON_ERROR_ENOSPC,
    JOB_ON_ERROR_STOP
};

enum job_io_status { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };

/* --- drivers ---------------------------------------------------------------------------------- */

/*
 * A kind of job. `state` is job_state() of the job. Functions that are NULL do nothing. An end
 * calls co_prepare and co_commit, or co_abort; co_clean follows in any case, also for a job that is
 * discarded, after co_abort.
 */
struct job_driver {
    /* Of QEMU's JobType: "backup". */
    const char *type;
    /* Bytes of job_state(), which begins as zeroes. */
    size_t state_size;
    /* It works on nodes: shown by query-block-jobs, and the subject of BLOCK_JOB_ events. */
    bool block_job;
    /*
     * The work. -ECANCELED: the job was cancelled, and job_co_pause_point() said so. Other errors
     * fill `err`. Without the control lock.
     */
    int (*co_run)(struct job *job, void *state, struct error *err);
    /*
     * The last steps that may fail, of a job that has done its work. `cancels_prepare`: it can be
     * cancelled until it calls job_begin_last_step(); -ECANCELED then.
     */
    bool cancels_prepare;
    /*
     * co_prepare cannot be undone (users have moved to other nodes): it is called when those of all
     * other jobs of the transaction have succeeded, and from then on the job has succeeded, too.
     */
    bool prepare_is_final;
    int (*co_prepare)(struct job *job, void *state, struct error *err);
    /* The end of a job that succeeds, or that does not; can't fail. */
    void (*co_commit)(struct job *job, void *state);
    void (*co_abort)(struct job *job, void *state);
    /* Give back what the job holds. */
    void (*co_clean)(struct job *job, void *state);
    /* The verb complete, of a job that is ready. NULL: refused. */
    int (*complete)(struct job *job, void *state, struct error *err);
    /*
     * A cancel that is not forced, of a job that is ready: true if the job ends with success by
     * itself then. NULL: such a cancel is forced.
     */
    bool (*cancel_softly)(struct job *job, void *state);
    /* The job will be cancelled by force: end waits that job_wake() does not end. */
    void (*cancelled)(struct job *job, void *state);
    /*
     * Called again and again while a job that was cancelled by force does not end: the node whose
     * requests hold it up, and which nobody needs any more; NULL: there is none. Its server is left
     * if it does not answer (block_co_give_up()).
     */
    struct block_node *(*given_up)(const void *state);
    /* The verb change. `args`: a struct of the driver. NULL: refused. */
    int (*change)(struct job *job, void *state, const void *args, struct error *err);
    /* The limit has changed: job_speed(). For drivers that do not use job_co_pace(). */
    void (*speed_changed)(struct job *job, void *state);
    /*
     * The root through which the job reads `node`, one of its nodes, which it never writes; NULL:
     * it may write it.
     */
    const struct block_root *(*reader)(const void *state, const struct block_node *node);
    /* For query-block-jobs of a mirror: whether source and target agree, and stay so. */
    bool (*is_synced)(const struct job *job, const void *state);
};

/* --- making a job ----------------------------------------------------------------------------- */

struct job_config {
    /* A letter, then letters, digits, '-', '.', '_'; at most 255 bytes. NULL: -EINVAL. */
    const char *id;
    /* Bytes per second; 0: no limit; above INT64_MAX: -EINVAL. */
    uint64_t speed;
    bool auto_finalize;
    bool auto_dismiss;
    /* NULL: the job ends alone. The job takes a reference of its own. */
    struct job_txn *txn;
};

#define JOB_CONFIG_INIT ((struct job_config){.auto_finalize = true, .auto_dismiss = true})

/* -EINVAL: malformed id, or none; -EEXIST: the id is in use; -ENOMEM, -EAGAIN of co_spawn(). */
int job_new(const struct job_driver *driver, const struct job_config *config, struct job **ret_job,
            struct error *err);
/* Let a job run that was made. */
void job_start(struct job *job);
/*
 * The same in two steps, for a job that is started while its disk is drained: it is paused from the
 * first to the second, which follows without the control lock having been released.
 */
void job_start_drained(struct job *job);
void job_end_drained_start(struct job *job);
/* Undo job_new() of a job that was not started: the driver's co_abort and co_clean are called. */
void job_co_discard(struct job *job);
/* The same for a job that was made well, and that a transaction undoes: clients see it abort. */
void job_co_undo(struct job *job);

/* A transaction of jobs that end together. The caller owns a reference; NULL: no memory. */
struct job_txn *job_txn_new(void);
/* Give the reference back; NULL is fine. */
void job_txn_unref(struct job_txn *txn);

/*
 * The job uses `node` until its end (after co_clean): a reference is taken, and
 * job_check_node() refuses the node to others. -ENOMEM
 */
int job_add_node(struct job *job, struct block_node *node, struct error *err);
/* -EBUSY, with a sentence that names the kind of job, if a job uses the node. */
int job_check_node(const struct block_node *node, struct error *err);
/*
 * The node is a filter that the job takes out of the graph at its end: no job may freeze a link to
 * it. Until job_forget_filter(), or the end of the job; no reference is taken. `used`: as
 * job_add_node(). -ENOMEM
 */
int job_add_filter(struct job *job, struct block_node *filter, bool used, struct error *err);
void job_forget_filter(struct job *job, const struct block_node *filter);
/*
 * A node in a chain that a running job needs as it is: neither may its backing node or filtered
 * child be exchanged. `node` and what is below it, down to `base` (not included; NULL: the end).
 * Frozen until the end of the job. It changes none of these links, or has called job_check_chain().
 * -ENOMEM; -EBUSY and -EPERM as there, because of jobs.
 */
int job_freeze_chain(struct job *job, struct block_node *node, struct block_node *base,
                     struct error *err);
/*
 * Whether these links can be frozen. -EBUSY, with a sentence: another job has frozen one of them,
 * or a node above needs it (a copy-on-read with a bottom); -EPERM: a job will take out a filter
 * that it leads to.
 */
int job_check_chain(const struct block_node *node, const struct block_node *base,
                    struct error *err);
/*
 * -EBUSY, with a sentence, if the link from the node downwards is frozen by a job, or needed by a
 * node above.
 */
int job_check_frozen(const struct block_node *node, struct error *err);
/*
 * -EBUSY, with a sentence, if a node above needs its chain as it is, and the node in it: nothing
 * can be put above the node, nor take its place.
 */
int job_check_links_to(const struct block_node *node, struct error *err);
/* For a node that has just been added: whether it, and those below it, can have such a chain. */
int job_check_new_node(struct block_node *node, struct error *err);

/* --- for drivers, at work --------------------------------------------------------------------- */

/* The driver's state. */
void *job_state(struct job *job);
/* "backup". */
const char *job_type(const struct job *job);
const char *job_id(const struct job *job);

/* Whether the job is to end: cancelled by force, or by the end of another of its transaction. */
bool job_is_cancelled(const struct job *job);
/*
 * Between two pieces of work, with no request in flight: wait while the user has paused the job.
 * 0, or -ECANCELED.
 */
int job_co_pause_point(struct job *job);
/* For co_prepare: true if the job was not cancelled meanwhile. From then on it can't be. */
bool job_begin_last_step(struct job *job);
/* Whether a pause point would wait, or return an error: pieces in flight should come to an end. */
bool job_should_stop(const struct job *job);
/*
 * For the end of a job: drain nodes of it. A guest's request may hang, so the control lock is
 * released meanwhile; not for a job that is discarded, whose nodes are drained, in a graph change.
 * No guest waits for the lock. The caller ends the drain of each. Yields.
 */
void job_co_drain(const struct job *job, struct block_node *const *nodes, size_t count);
/*
 * Release the state of a job, with the node below its filter drained likewise; `filter` NULL: there
 * is none any more. Yields.
 */
void job_co_release_drained(const struct job *job, struct block_node *filter,
                            void (*co_release)(void *state), void *state);
/* Flush a node of the job, without the control lock likewise. 0 or -errno; yields. */
int job_co_flush_node(struct block_node *node);
/* Sleep for `ns` (negative: without limit), until job_wake() at most. Several coroutines may. */
void job_co_sleep(struct job *job, int64_t ns);
/* End all sleeps of the job. Verbs do so by themselves. */
void job_wake(struct job *job);
/*
 * Take part of the job's limit for `bytes` of work: waits until they may be moved, or the limit
 * changes. False: the job was paused or cancelled meanwhile. They were not taken then, and are not
 * to be moved.
 */
bool job_co_pace(struct job *job, uint64_t bytes);
/* `bytes` were moved already, since they could not wait: what comes after them waits the longer. */
void job_pace_after(struct job *job, uint64_t bytes);
/* Bytes per second; 0: no limit. */
uint64_t job_speed(const struct job *job);

/* The work that is done, and all work, in bytes. Done work only grows. */
void job_progress_add(struct job *job, uint64_t bytes);
void job_progress_set_total(struct job *job, uint64_t bytes);

/* RUNNING becomes READY: the event says so, and the verb complete is accepted from now on. */
void job_set_ready(struct job *job);

/* What job_handle_error() decided. */
enum job_error_action { JOB_ERROR_FAIL, JOB_ERROR_RETRY, JOB_ERROR_PAUSE };
/*
 * A request has failed with `r` (-errno): reading the source, or writing the target. Emits the
 * event, at most one in 100 ms of those that are ignored. PAUSE: the job is paused as by a user;
 * the driver goes to its pause point, then tries the same again. RETRY: the driver tries again, and
 * sleeps before it does.
 */
enum job_error_action job_handle_error(struct job *job, enum job_on_error policy, bool reading,
                                       int r);

/* --- verbs: each error text is QEMU's --------------------------------------------------------- */

/* NULL: there is none of that id. Borrowed. */
struct job *job_find(const char *id);
/* Iterate, oldest first: NULL begins, NULL ends. */
struct job *job_next(struct job *job);
/* Likewise, newest first, as QEMU lists them. */
struct job *job_previous(struct job *job);

/* Whether a node of the job, or of its transaction, is joined with `node` (block/node.h). */
bool job_is_joined(const struct job *job, const struct block_node *node);

/*
 * Each verb: -EPERM in a state that does not accept it. Pause and resume: -EINVAL, twice. Complete:
 * -EINVAL, the job is being cancelled; errors of the driver. Change: `args` is a struct of the
 * driver of that type; -ENOTSUP for other types.
 */
int job_pause(struct job *job, struct error *err);
int job_resume(struct job *job, struct error *err);
int job_set_speed(struct job *job, uint64_t bytes_per_second, struct error *err);
int job_complete(struct job *job, struct error *err);
int job_change(struct job *job, const void *args, const char *type, struct error *err);
/* Whether it has done its work, and its end has not begun: a verb may end it. Does not yield. */
bool job_awaits_end(const struct job *job);
/*
 * A job that takes effect, so that a cancel comes too late: wait for its end, for a second at most.
 * It may be dismissed then. The control lock is released meanwhile. Yields.
 */
void job_co_await_effect(struct job *job);
/*
 * The whole transaction, in PENDING. An error of a driver's co_prepare is the job's error. Waits
 * for the end of the jobs, but not for longer than a second, since storage may hang.
 */
int job_co_finalize(struct job *job, struct error *err);
int job_dismiss(struct job *job, struct error *err);
/*
 * `force`: end as soon as requests in flight have ended; the result is an error. Else a job that is
 * ready may end with success by itself. Waits only for a job that has done its work, likewise.
 */
int job_co_cancel(struct job *job, bool force, struct error *err);
/* Whether the user has paused it. */
bool job_is_user_paused(const struct job *job);
/*
 * Cancel all by force, and wait until none has work to do. The control lock is not held. No new
 * ones may be made from now on. False: some hang; none has ended for JOB_PATIENCE_MS.
 */
#define JOB_PATIENCE_MS 2000
bool job_co_cancel_all(void);
/* The number of jobs that have not ended. */
size_t job_count_unfinished(void);
/*
 * Whether one of them uses `node`, or a node above it. *ret_reader: the root by which it only reads
 * it; NULL: it may write it, or several jobs use it.
 */
bool job_is_using(struct block_node *node, const struct block_root **ret_reader);

/* --- watching --------------------------------------------------------------------------------- */

struct job_info {
    const char *id, *type;
    enum job_status status;
    bool block_job;
    bool auto_finalize, auto_dismiss;
    bool paused; /* by the user */
    bool busy;   /* not waiting for anything but its requests */
    bool ready;
    bool has_synced, synced;
    uint64_t current, total, speed;
    enum job_io_status io_status;
    const char *error; /* NULL: none */
};

/* Strings are borrowed until the next change. */
struct job_info job_get_info(const struct job *job);

enum job_event_kind {
    JOB_EVENT_STATUS,
    JOB_EVENT_READY,
    JOB_EVENT_PENDING,
    JOB_EVENT_COMPLETED,
    JOB_EVENT_CANCELLED,
    JOB_EVENT_ERROR,
};

struct job_event {
    enum job_event_kind kind;
    struct job_info info;
    /* JOB_EVENT_ERROR: the failed operation, and what is done: "report", "ignore", "stop". */
    bool reading;
    const char *action;
};

/* Set the one listener; NULL: none. It must not yield. */
void job_set_event_fn(void (*fn)(const struct job_event *event));

#endif
