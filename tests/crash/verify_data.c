/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "verifier.h"

#define CHUNK (64 * KiB)
#define CHUNK_SECTORS (CHUNK / MODEL_SECTOR)
#define BLOCK_SECTORS 8u
#define WHOLE_DISK_EVERY 16u /* states; else what is known to be zeroes is not read */

static int check_again(struct verifier *v, const struct view *view, uint64_t sector, uint32_t value,
                       struct error *err)
{
    char found[128], expected[128];

    if (view->expected[sector] == MODEL_ANY || view->expected[sector] == value) {
        return 0;
    }
    model_describe(&v->w->model, value, found, sizeof(found));
    model_describe(&v->w->model, view->expected[sector], expected, sizeof(expected));
    return error_set(err, EILSEQ, "sector %llu holds %s; before the writes that followed, %s",
                     (unsigned long long)sector, found, expected);
}

static int check_value(struct verifier *v, struct view *view, uint64_t sector, uint32_t value,
                       struct error *err)
{
    const struct model *m = &v->w->model;
    char found[128], expected[128];

    if (v->below) {
        view->values[sector] = value;
        return 0;
    }
    if (v->snapshot) {
        return value == v->snapshot->values[sector]
                   ? 0
                   : error_set(err, EILSEQ, "sector %llu of '%s' has changed",
                               (unsigned long long)sector, v->snapshot->name);
    }
    if (v->phase != VERIFY_CRASHED) {
        /*
         * Where a data file and the image differed after the crash, a write next to it brings them
         * together.
         */
        bool joined = view == &v->raw && value == v->disk.values[sector];

        view->values[sector] = value;
        return joined ? 0 : check_again(v, view, sector, value, err);
    }
    view->values[sector] = value;
    if (model_allows(m, sector, value, v->state->time, v->stable)) {
        return 0;
    }
    model_describe(m, value, found, sizeof(found));
    model_describe(m, model_value_at(m, sector, v->state->time), expected, sizeof(expected));
    return error_set(err, EILSEQ,
                     "sector %llu holds %s; the last sent was %s, stable is what was answered by "
                     "%llu",
                     (unsigned long long)sector, found, expected, (unsigned long long)v->stable);
}

static int check_zeroes(struct verifier *v, struct view *view, uint64_t first, uint64_t end,
                        struct error *err)
{
    int ret = 0;

    for (uint64_t i = first; i < end && ret == 0; i++) {
        ret = check_value(v, view, i, MODEL_ZERO, err);
    }
    return ret;
}

static int check_chunk(struct verifier *v, struct view *view, uint64_t first, uint64_t end,
                       const uint8_t *data, struct error *err)
{
    int ret = 0;

    for (uint64_t i = first, next; i < end && ret == 0; i = next) {
        const uint8_t *at = data + (i - first) * MODEL_SECTOR;

        /* Most of what is allocated was never written. */
        next = MIN(i + BLOCK_SECTORS, end);
        if (buffer_is_zero(at, (next - i) * MODEL_SECTOR)) {
            ret = check_zeroes(v, view, i, next, err);
            continue;
        }
        for (; i < next && ret == 0; i++, at += MODEL_SECTOR) {
            ret = check_value(v, view, i, model_value(at, i), err);
        }
    }
    return ret;
}

/* How far from `sector` on (at most to `end`) the disk says to be zeroes; 0: it does not. */
static int co_zero_sectors(struct verifier *v, uint64_t sector, uint64_t end, uint64_t *ret)
{
    struct block_status status;
    int r = block_co_status_above(v->edge, NULL, sector * MODEL_SECTOR,
                                  (end - sector) * MODEL_SECTOR, &status, NULL);

    *ret = r == 0 && (status.flags & BLOCK_STATUS_ZERO) ? status.length / MODEL_SECTOR : 0;
    return r;
}

int verify_co_data(struct verifier *v, struct error *err)
{
    uint8_t *data AUTO_FREE = malloc(CHUNK);
    bool all = v->state->index % WHOLE_DISK_EVERY == 0;
    int ret = data ? 0 : -ENOMEM;

    for (uint64_t first = 0, end; first < v->sectors && ret == 0; first = end) {
        uint64_t zeroes = 0;

        end = MIN(first + CHUNK_SECTORS, v->sectors);
        ret = all ? 0 : co_zero_sectors(v, first, v->sectors, &zeroes);
        if (ret == 0 && zeroes > 0) {
            end = first + zeroes;
            ret = check_zeroes(v, &v->disk, first, end, err);
            continue;
        }
        ret = ret < 0 ? ret
                      : block_co_pread(v->edge, first * MODEL_SECTOR, data,
                                       (end - first) * MODEL_SECTOR);
        if (ret < 0) {
            return error_set_errno(err, -ret, "reading at sector %llu failed",
                                   (unsigned long long)first);
        }
        ret = check_chunk(v, &v->disk, first, end, data, err);
    }
    return ret;
}

int verify_raw_data_file(struct verifier *v, struct error *err)
{
    const struct pages *file = record_disk_pages(v->disks->nodes[IMAGE_DATA_FILE]);
    uint8_t *data AUTO_FREE = malloc(CHUNK);
    int ret = data ? 0 : -ENOMEM;

    for (uint64_t first = 0, end; first < v->sectors && ret == 0; first = end) {
        end = MIN(first + CHUNK_SECTORS, v->sectors);
        pages_read(file, first * MODEL_SECTOR, data, (end - first) * MODEL_SECTOR);
        ret = check_chunk(v, &v->raw, first, end, data, err);
    }
    if (ret < 0) {
        error_prepend(err, "the data file alone: ");
    }
    return ret;
}
