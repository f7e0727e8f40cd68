/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One copy at a time to a directory of an SSH server, which knows no locks: a file there names who
 * copies, and changes every few seconds while the copy is alive. A copy that was killed is noticed
 * at once on its own machine, elsewhere because its file does not change any more. Of two that
 * begin at one moment one goes on, by Fischer's algorithm: write, wait, see whose words are there.
 * All functions block, and run in the offload pool.
 */
#ifndef TIDEMARK_BACKUP_UPLOAD_LOCK_H
#define TIDEMARK_BACKUP_UPLOAD_LOCK_H

#include <signal.h>
#include <stdint.h>

#include "base/error.h"
#include "ssh/remote_dir.h"

#define UPLOAD_LOCK_SIZE 256u

struct upload_lock {
    struct remote_file *file; /* NULL: not taken */
    const char *address;      /* of the directory, for messages; borrowed */
    uint64_t beats;           /* changes of the file so far */
    int64_t beat_ns;          /* the time of the last one */
    char words[UPLOAD_LOCK_SIZE];
};

/*
 * Take the lock of a directory. -EBUSY: another copy is alive. -EINTR: *stop (may be NULL) became
 * true while the file of an unknown one was watched, for 10 s at most.
 */
int upload_lock_take(struct upload_lock *lock, struct remote_dir *dir, const char *address,
                     volatile sig_atomic_t *stop, struct error *err);
/* Show that the copy is alive. Cheap to call often. -EBUSY: another one has taken the lock. */
int upload_lock_keep(struct upload_lock *lock, struct error *err);
/* The same, and it is known now that no other one has taken it: before what can't be undone. */
int upload_lock_confirm(struct upload_lock *lock, struct error *err);
/* Release. A lock that is not taken is fine. */
void upload_lock_release(struct upload_lock *lock);

#endif
