/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/writeback.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "loop/loop.h"

#define WRITEBACK_STEP (32 * MiB)

struct writeback_job {
    int fd;
    uint64_t offset, size;
};

/* Without the flags that wait, the call reports no failure of the storage, and takes none away. */
static int run_writeback(void *arg)
{
    const struct writeback_job *job = arg;

    sync_file_range(job->fd, (off_t)job->offset, (off_t)job->size, SYNC_FILE_RANGE_WRITE);
    return 0;
}

void writeback_co_push(struct writeback *w, uint64_t end)
{
    struct writeback_job job = {.fd = w->fd, .offset = w->begun};

    if (w->runs || end < w->begun || end - w->begun < WRITEBACK_STEP) {
        return;
    }
    job.size = end - w->begun;
    w->begun = end;
    w->runs = true;
    loop_co_offload(run_writeback, &job);
    w->runs = false;
}

void writeback_co_push_all(struct writeback *w)
{
    struct stat st;

    if (fstat(w->fd, &st) == 0) {
        writeback_co_push(w, (uint64_t)st.st_size);
    }
}
