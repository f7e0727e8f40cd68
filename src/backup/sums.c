/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/sums.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/digest.h"
#include "backup/manifest.h"
#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "loop/loop.h"

#define VERSION 1
#define RUN_SIZE 16
#define RUN_BATCH 4096
#define DIGESTS_AT_ONCE 16u

static const char magic[8] = "TIDESUMS";

void sums_runs_clear(struct sums_runs *r)
{
    free(r->list);
    *r = (struct sums_runs){0};
}

static struct sums_run *append_run(struct sums_runs *r)
{
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? 2 * r->capacity : 64;
        struct sums_run *list = realloc(r->list, capacity * sizeof(*list));

        if (!list) {
            return NULL;
        }
        r->list = list;
        r->capacity = capacity;
    }
    return &r->list[r->count++];
}

int sums_runs_add(struct sums_runs *r, uint64_t first, uint64_t count, enum sums_kind kind)
{
    while (count > 0) {
        struct sums_run *last = r->count ? &r->list[r->count - 1] : NULL;
        uint32_t n;

        if (last && last->kind == kind && last->first + last->count == first &&
            last->count < UINT32_MAX) {
            n = (uint32_t)MIN(count, UINT32_MAX - last->count);
            last->count += n;
        } else {
            last = append_run(r);
            if (!last) {
                return -ENOMEM;
            }
            n = (uint32_t)MIN(count, UINT32_MAX);
            *last = (struct sums_run){first, n, kind, r->digests};
        }
        r->digests += n;
        first += n;
        count -= n;
    }
    return 0;
}

size_t sums_runs_find(const struct sums_runs *runs, uint64_t cluster)
{
    size_t low = 0, high = runs->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct sums_run *run = &runs->list[middle];

        if (run->first + run->count <= cluster) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

bool sums_runs_overlap(const struct sums_runs *runs, uint64_t first, uint64_t end)
{
    size_t run = sums_runs_find(runs, first);

    return run < runs->count && runs->list[run].first < end;
}

int sums_write_digests(struct stored *file, uint64_t index, const uint8_t *digests, size_t count)
{
    return stored_write(file, digests, count * SUMS_DIGEST_SIZE,
                        SUMS_HEADER_SIZE + index * SUMS_DIGEST_SIZE);
}

int sums_write_finish(struct stored *file, const struct sums_runs *runs, uint64_t disk_size)
{
    uint8_t header[SUMS_HEADER_SIZE] = {0};
    uint8_t *batch AUTO_FREE = malloc((size_t)RUN_BATCH * RUN_SIZE);
    uint64_t offset = SUMS_HEADER_SIZE + runs->digests * SUMS_DIGEST_SIZE;
    int r;

    if (!batch) {
        return -ENOMEM;
    }
    for (size_t i = 0; i < runs->count;) {
        size_t n = MIN(runs->count - i, (size_t)RUN_BATCH);

        for (size_t k = 0; k < n; k++) {
            store_le64(batch + k * RUN_SIZE, runs->list[i + k].first);
            store_le32(batch + k * RUN_SIZE + 8, runs->list[i + k].count);
            store_le32(batch + k * RUN_SIZE + 12, runs->list[i + k].kind);
        }
        r = stored_write(file, batch, n * RUN_SIZE, offset);
        if (r < 0) {
            return r;
        }
        offset += n * RUN_SIZE;
        i += n;
    }
    memcpy(header, magic, sizeof(magic));
    store_le32(header + 8, VERSION);
    store_le32(header + 12, BACKUP_CLUSTER_BITS);
    store_le64(header + 16, disk_size);
    store_le64(header + 24, runs->digests);
    store_le64(header + 32, runs->count);
    r = stored_write(file, header, sizeof(header), 0);
    return r < 0 ? r : stored_finish(file);
}

/* Check the header against the size of the file and of the disk. */
static int check_sums_header(const uint8_t *header, uint64_t file_size, uint64_t disk_size,
                             uint64_t *ret_digests, uint64_t *ret_runs)
{
    uint64_t digests = load_le64(header + 24);
    uint64_t runs = load_le64(header + 32);
    uint64_t digest_bytes, run_bytes, total;

    if (memcmp(header, magic, sizeof(magic)) != 0 || load_le32(header + 8) != VERSION ||
        load_le32(header + 12) != BACKUP_CLUSTER_BITS || load_le64(header + 16) != disk_size) {
        return -EINVAL;
    }
    if (mul_overflows(digests, SUMS_DIGEST_SIZE, &digest_bytes) ||
        mul_overflows(runs, RUN_SIZE, &run_bytes) ||
        add_overflows(digest_bytes, run_bytes, &total) ||
        add_overflows(total, SUMS_HEADER_SIZE, &total) || total != file_size) {
        return -EINVAL;
    }
    *ret_digests = digests;
    *ret_runs = runs;
    return 0;
}

/* Check that runs are ascending, disjoint, and within the disk. */
static int read_runs(struct sums *s, uint64_t digests, uint64_t count)
{
    uint64_t clusters = div_round_up(s->disk_size, BACKUP_CLUSTER_SIZE);
    uint64_t offset = SUMS_HEADER_SIZE + digests * SUMS_DIGEST_SIZE;
    uint64_t next = 0;
    uint8_t *batch AUTO_FREE = malloc((size_t)RUN_BATCH * RUN_SIZE);

    if (!batch) {
        return -ENOMEM;
    }
    while (count > 0) {
        size_t n = (size_t)MIN(count, (uint64_t)RUN_BATCH);
        int r = stored_read(s->file, batch, n * RUN_SIZE, offset);

        for (size_t k = 0; r == 0 && k < n; k++) {
            uint64_t first = load_le64(batch + k * RUN_SIZE);
            uint32_t len = load_le32(batch + k * RUN_SIZE + 8);
            uint32_t kind = load_le32(batch + k * RUN_SIZE + 12);

            if (first < next || len == 0 || !range_fits(first, len, clusters) ||
                (kind != SUMS_DATA && kind != SUMS_ZERO)) {
                return -EINVAL;
            }
            r = sums_runs_add(&s->runs, first, len, (enum sums_kind)kind);
            next = first + len;
        }
        if (r < 0) {
            return r;
        }
        offset += n * RUN_SIZE;
        count -= n;
    }
    return s->runs.digests == digests ? 0 : -EINVAL;
}

int sums_open(int fd, const struct backup_key *seal, const char *shown, uint64_t disk_size,
              struct sums *ret_sums, struct error *err)
{
    struct sums s = {.fd = fd, .disk_size = disk_size};
    uint8_t header[SUMS_HEADER_SIZE];
    uint64_t digests, runs;
    int r = stored_open(fd, seal, STORED_SUMS, shown, &s.file, err);

    if (r < 0) {
        close(fd);
        return r;
    }
    r = stored_read(s.file, header, sizeof(header), 0);
    if (r == 0) {
        r = check_sums_header(header, stored_size(s.file), disk_size, &digests, &runs);
    }
    if (r == 0) {
        r = read_runs(&s, digests, runs);
    }
    if (r < 0) {
        sums_close(&s);
        if (r == -EINVAL) {
            return error_set(err, EINVAL, "'%s' is no valid checksum file for a disk of %llu bytes",
                             shown, (unsigned long long)disk_size);
        }
        return error_set_errno(err, -r, "Could not read '%s'", shown);
    }
    *ret_sums = s;
    return 0;
}

void sums_close(struct sums *s)
{
    stored_free(s->file);
    s->file = NULL;
    if (s->fd >= 0) {
        close(s->fd);
    }
    sums_runs_clear(&s->runs);
    s->fd = -1;
}

int sums_read_digests(const struct sums *s, uint64_t index, uint8_t *ret_digests, size_t count)
{
    if (!range_fits(index, count, s->runs.digests)) {
        return -EINVAL;
    }
    return stored_read(s->file, ret_digests, count * SUMS_DIGEST_SIZE,
                       SUMS_HEADER_SIZE + index * SUMS_DIGEST_SIZE);
}

int sums_digest_clusters(const uint8_t *data, size_t size, uint8_t *ret_digests)
{
    size_t count = size / BACKUP_CLUSTER_SIZE, n;
    uint8_t digests[DIGESTS_AT_ONCE][SHA256_SIZE];
    int r = 0;

    for (size_t i = 0; r == 0 && i < count; i += n) {
        n = MIN(count - i, (size_t)DIGESTS_AT_ONCE);
        r = sha256_of_each(data + i * BACKUP_CLUSTER_SIZE, BACKUP_CLUSTER_SIZE, n, digests);
        for (size_t k = 0; r == 0 && k < n; k++) {
            memcpy(ret_digests + (i + k) * SUMS_DIGEST_SIZE, digests[k], SUMS_DIGEST_SIZE);
        }
    }
    return r;
}

struct digest_job {
    const uint8_t *data;
    size_t size;
    uint8_t *ret_digests;
};

static int digest_job_run(void *arg)
{
    const struct digest_job *job = arg;

    return sums_digest_clusters(job->data, job->size, job->ret_digests);
}

int sums_co_digest_clusters(const uint8_t *data, size_t size, uint8_t *ret_digests)
{
    struct digest_job job = {.data = data, .size = size, .ret_digests = ret_digests};

    return loop_co_offload(digest_job_run, &job);
}
