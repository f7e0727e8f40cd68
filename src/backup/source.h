/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a backup comes from: one interface, several kinds. Every kind keeps the same promises:
 *
 *   point in time        what the view reads is the disk as it was at the checkpoint, all disks of
 *                        one checkpoint at the same moment, whatever is written meanwhile
 *   only what changed    with a bitmap that recorded since the last backup, only what it marks is
 *                        read; a bitmap of which anything is doubtful is not used
 *   nothing left behind  source_co_settle() makes the source agree with the newest complete backup;
 *                        every backup begins and ends with it, whether the one before succeeded,
 *                        failed or was killed. What has to stay is a bitmap that records
 *   no harm              no write of a guest fails or waits without limit because of a backup
 *
 * A source is one disk. Everything that a backup makes in it has a name with the repository's id,
 * so that a later run finds it. The steps of a run:
 *
 *     open -> inspect -> settle -> prepare -> checkpoint -> open_view, watch -> end -> close
 *
 * Main reactor, in a coroutine; all `co_` functions yield, the others do not. They return 0 or
 * -errno, and fill `err` on failure.
 */
#ifndef TIDEMARK_BACKUP_SOURCE_H
#define TIDEMARK_BACKUP_SOURCE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backup/pull_input.h"
#include "backup/repository.h"
#include "base/error.h"
#include "nbd/client.h"

#define SOURCE_PREFIX "tidemark-"

struct qmp_client;

/* What the user says about the source. All strings are borrowed. */
struct source_options {
    const char *qmp_socket;               /* address: see qmp_client_co_connect() */
    const struct nbd_client_tls *qmp_tls; /* to reach it; NULL: in the clear */
    const char *const *nodes;             /* names of disks */
    size_t node_count;                    /* 0: all disks of the machine that can be written */
    /* Instead of those: a file, a block device, a URI, json:{...}; and its format, NULL: raw. */
    const char *image, *format;
    /* Instead of those: a domain of libvirt; `nodes` are targets of its disks ("vda"). */
    const char *libvirt_uri, *domain;
    bool freeze;                      /* the guest, by libvirt and its guest agent */
    unsigned freeze_timeout_s;        /* for each answer of the agent */
    const char *fleece_dir;           /* for the temporary image; NULL: see backup/fleece.h */
    const char *nbd_uri;              /* of the daemon's NBD server; NULL: ask the daemon */
    const struct nbd_client_tls *tls; /* to reach it; NULL: in the clear */
    /* Limit of the time that a guest's write waits for the temporary image; 0: none. */
    unsigned cbw_timeout_s;
    bool asks_cbw_timeout;       /* the user has given it: refused where it has no effect */
    volatile sig_atomic_t *stop; /* becomes true when the user wants to stop; may be NULL */
};

struct source_bitmap {
    char *name;
    bool recording, busy, persistent, inconsistent;
};

/* The disk, as it was last inspected. */
struct source_disk {
    uint64_t size;
    const char *file; /* canonical path of its image or device; NULL: not known */
    bool tracks;      /* a bitmap can begin at the checkpoint */
    bool encrypted;   /* on its storage */
    const struct source_bitmap *bitmaps; /* of this repository */
    size_t bitmap_count;
};

struct source;

struct source_ops {
    bool one_bitmap; /* the disks of a checkpoint have one bitmap name: that of the first */
    /*
     * Find the disk, and fill source->disk. Changes nothing. -ENOENT: there is no such disk;
     * -EBUSY: a run to this repository, or to a copy of it, lives.
     */
    int (*co_inspect)(struct source *source, struct error *err);
    /*
     * End what earlier runs have left: of this repository everything but the bitmaps, which are put
     * in order for `last`, the bitmap of the newest complete backup (NULL: none), which stays and
     * records. If a later run had frozen it, what was recorded since is merged into it. Of dead
     * runs to other repositories, what is in the way. -EBUSY: a run to another repository lives.
     * Then source->disk is filled again.
     */
    int (*co_settle)(struct source *source, const char *last, struct error *err);
    /*
     * Make what the checkpoint needs outside the source, such as a temporary image; its place is
     * recorded in the draft first.
     */
    int (*co_prepare)(struct source *source, const struct repository_draft *draft,
                      struct error *err);
    /*
     * The checkpoint of `count` sources of one kind and connection, at one moment: bitmaps
     * source->started begin, source->frozen are frozen. *begin and *end are the moments right
     * before and after. On failure nothing has changed. NULL for a kind: only one source.
     */
    int (*co_checkpoint)(struct source *const *sources, size_t count, struct backup_moment *begin,
                         struct backup_moment *end, struct error *err);
    /*
     * Offer the point in time for reading, with the bitmap source->frozen. The caller closes
     * *ret_input before co_end().
     */
    int (*co_open_view)(struct source *source, struct pull_input **ret_input, struct error *err);
    /*
     * End the run in the source: as co_settle(), for a run that holds all of it. `last` is the
     * bitmap of the new backup if that is complete.
     */
    int (*co_end)(struct source *source, const char *last, struct error *err);
    /* Called a few times a second while the view is read: whether the run has to end. */
    int (*watch)(struct source *source, struct error *err);
    /* Add to an error what is likely to be its cause. `view_failed`: the view cannot be read. */
    void (*co_explain)(struct source *source, bool view_failed, struct error *err);
    /* Thaw a guest that a killed run has left frozen. NULL: this kind freezes none. */
    int (*co_thaw)(struct source *source, struct error *err);
    /* A description of the machine, malloc'ed; NULL: there is none. NULL for a kind: never. */
    char *(*definition)(struct source *source);
    /* Release everything. */
    void (*co_close)(struct source *source);
};

/* Embedded in the struct of each kind. */
struct source {
    const struct source_ops *ops;
    char *name; /* of the disk, as the user gave it; owned */
    char repository[REPOSITORY_ID_SIZE];
    struct source_disk disk;
    /* Bitmaps of the checkpoint, borrowed: the caller sets them before it. */
    const char *started; /* begins; NULL: none, since the disk does not track */
    const char *frozen;  /* of the last backup; NULL: everything is read */
    /* The view shows everything, and not only what `frozen` marks. */
    bool whole;
};

/*
 * Open what the options say: the disks of one daemon over one connection, or an image. `options`
 * are borrowed. *ret_list is malloc'ed; each of its *ret_count sources, at least one, is to be
 * closed by the caller.
 */
int source_co_open(const struct source_options *options, struct source ***ret_list,
                   size_t *ret_count, struct error *err);

/* Close the source. NULL is ignored. */
void source_co_close(struct source *source);

/* The bitmap of this name on the disk; NULL: there is none. */
const struct source_bitmap *source_bitmap(const struct source *source, const char *name);

/*
 * A name for the bitmap that begins with backup `id`, malloc'ed; NULL: no memory. The name ends in
 * random characters, since copies of a repository share its id, and clocks may be set back.
 */
char *source_new_bitmap_name(const char *repository, const char *id);

/* --- for source_open.c: the kinds --- */

struct source_list {
    struct source **list;
    size_t count;
};

/* Append a source, which the list owns then. 0 or -ENOMEM. */
int source_list_add(struct source_list *list, struct source *source);

/*
 * Open the disks of a daemon. *list, empty at first, gets the sources; also after a failure they
 * are to be closed, and the list is to be freed, by the caller.
 */
int source_daemon_co_open(const struct source_options *options, struct source_list *list,
                          struct error *err);
/* The same for disks of a libvirt domain; does not yield. */
int source_libvirt_open(const struct source_options *options, struct source_list *list,
                        struct error *err);
/* An image that no program writes to; nothing is opened before co_inspect(). */
int source_image_new(const struct source_options *options, struct source **ret_source,
                     struct error *err);

/* --- what backups to any repository have in a daemon --- */

struct source_leftover {
    char repository[REPOSITORY_ID_SIZE];
    char *node;       /* of the disk; NULL if not known */
    bool filter;      /* a run lives, or was killed */
    char *temp_image; /* of that run; NULL if it has none */
    size_t bitmaps;
    uint64_t dirty; /* bytes that the bitmaps mark, all together */
};

struct source_leftovers {
    struct source_leftover *list;
    size_t count;
};

/* Release what `l` holds, and make it empty. */
void source_leftovers_clear(struct source_leftovers *l);
/*
 * What backups to any directory have in the daemon: an entry for each pair of repository and disk.
 * `node`: only on that node; NULL: on all.
 */
int source_co_leftovers(struct qmp_client *qmp, const char *node,
                        struct source_leftovers *ret_leftovers, struct error *err);
/* Remove all of an entry, bitmaps included. -EBUSY: a run lives; -ENOENT: its disk is not known. */
int source_co_forget(struct qmp_client *qmp, const struct source_leftover *leftover,
                     struct error *err);

#endif
