/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/repair.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup/chain.h"
#include "backup/files.h"
#include "backup/image_header.h"
#include "backup/repair_sums.h"
#include "backup/set_root.h"
#include "backup/set_sign.h"
#include "backup/stored.h"
#include "base/cleanup.h"

struct repair {
    const struct repair_options *options;
    struct repository repository;
    struct repair_result *result;
};

static int add_item(struct repair *repair, const char *id, const char *file, const char *problem,
                    bool repaired)
{
    return repair_result_add(repair->result, id, file, problem, repaired);
}

/* --- a manifest that is lost --- */

static int co_read_repaired_image(const struct repair *repair, const char *id, struct manifest *m,
                                  struct error *err)
{
    const struct repository *r = &repair->repository;
    char *shown AUTO_FREE = repository_file(r, id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = repository_open_file(r, id, REPOSITORY_IMAGE, err);
    struct image_header header;
    struct stat st;
    int status;

    if (fd < 0 || !shown) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    status = image_header_read(fd, repository_seal(r), shown, &header, err);
    if (status < 0) {
        return status;
    }
    if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "Could not inspect '%s'", shown);
    }
    m->virtual_size = header.virtual_size;
    m->cluster_size = header.cluster_bits == BACKUP_FULL_CLUSTER_BITS ? BACKUP_FULL_CLUSTER_SIZE
                                                                      : BACKUP_CLUSTER_SIZE;
    m->image_size = (uint64_t)st.st_size;
    m->stored += (uint64_t)st.st_blocks * 512;
    memcpy(m->parent, header.parent, sizeof(m->parent));
    return digest_co_file(fd, shown, repair->options->stop, m->image_sha256, NULL, err);
}

static int co_read_sums(const struct repair *repair, const char *id, struct manifest *m,
                        struct error *err)
{
    const struct repository *r = &repair->repository;
    char *shown AUTO_FREE = repository_file(r, id, REPOSITORY_SUMS);
    int fd AUTO_CLOSE = repository_open_file(r, id, REPOSITORY_SUMS, err);
    struct stat st;

    if (fd < 0 || !shown) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    if (fstat(fd, &st) == 0) {
        m->stored += (uint64_t)st.st_blocks * 512;
    }
    return digest_co_file(fd, shown, repair->options->stop, m->sums_sha256, &m->sums_size, err);
}

/* The time in an id, as far as it has one; both moments of the checkpoint are set to it. */
static void guess_time(struct manifest *m)
{
    struct tm tm = {.tm_year = 70, .tm_mday = 1};

    strptime(m->id, "%Y%m%dT%H%M%SZ", &tm);
    strftime(m->begin.utc, sizeof(m->begin.utc), "%Y-%m-%dT%H:%M:%S.000000Z", &tm);
    m->end = m->begin;
}

/*
 * A sequence number after all backups with an earlier id and the parent, and before those that
 * build on this one. 0: there is none.
 */
static uint64_t find_sequence(const struct repository *r, const struct manifest *m)
{
    uint64_t after = 0, before = UINT64_MAX;

    for (size_t i = 0; i < r->count; i++) {
        const struct repository_entry *e = &r->entries[i];
        uint64_t sequence = e->manifest.sequence;

        if (e->problem) {
            continue;
        }
        if (strcmp(e->manifest.parent, m->id) == 0) {
            before = sequence < before ? sequence : before;
        } else if (strcmp(e->id, m->id) < 0 || strcmp(e->id, m->parent) == 0) {
            after = sequence > after ? sequence : after;
        }
    }
    return after + 1 < before ? after + 1 : before - 1 < UINT64_MAX ? before - 1 : 0;
}

static int guess_rest(const struct repository *r, struct manifest *m, struct error *err)
{
    const struct repository_entry *like = repository_get(r, m->parent);
    const char *node;

    if (!like || like->problem) {
        like = repository_last(r);
    }
    node = like ? like->manifest.node : "unknown";
    guess_time(m);
    m->sequence = find_sequence(r, m);
    m->rebuilt = true;
    memcpy(m->repository, r->id, sizeof(m->repository));
    m->node = strdup(node);
    m->bitmap = strdup("");
    m->reason = manifest_is_full(m) ? strdup("its manifest was made again") : NULL;
    if (like && like->manifest.disk) {
        m->disk = strdup(like->manifest.disk);
    }
    return m->node && m->bitmap && (m->reason || !manifest_is_full(m)) ? 0
                                                                       : error_out_of_memory(err);
}

/* Whether image and checksums agree about every cluster: the proof that they belong together. */
static int co_prove_layers(struct repair *repair, const struct manifest *m, struct error *err)
{
    struct repository_entry e = {.manifest = *m};

    memcpy(e.id, m->id, sizeof(e.id));
    return repair_co_prove_sums(&repair->repository, &e, repair->options->stop, err);
}

static int co_make_manifest(struct repair *repair, struct repository_entry *e, struct error *err)
{
    const struct repository *repository = &repair->repository;
    struct manifest m = {0};
    int r;

    memcpy(m.id, e->id, sizeof(m.id));
    r = co_read_repaired_image(repair, e->id, &m, err);
    UNLESS_FAILED(r, co_read_sums(repair, e->id, &m, err));
    UNLESS_FAILED(r, guess_rest(repository, &m, err));
    UNLESS_FAILED(r, co_prove_layers(repair, &m, err));
    UNLESS_FAILED(r, repository_rewrite_manifest(repository, &m, err));
    if (r < 0) {
        manifest_clear(&m);
        return r;
    }
    e->manifest = m;
    free(e->problem);
    e->problem = NULL;
    return 0;
}

static int co_repair_manifest(struct repair *repair, struct repository_entry *e)
{
    char *before AUTO_FREE = strdup(e->problem);
    ERROR_AUTO(why);
    int r = before ? co_make_manifest(repair, e, &why) : -ENOMEM;

    if (r == -ENOMEM || r == -EINTR) {
        return r;
    }
    return r == 0 ? add_item(repair, e->id, REPOSITORY_MANIFEST, before, true)
                  : add_item(repair, e->id, REPOSITORY_MANIFEST, error_message(&why), false);
}

/* --- the files of a backup with a sound manifest --- */

static int check_image(const struct repository *r, const struct repository_entry *e,
                       struct error *err)
{
    char *shown AUTO_FREE = repository_file(r, e->id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = repository_open_file(r, e->id, REPOSITORY_IMAGE, err);
    struct stat st;

    if (fd < 0 || !shown) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != e->manifest.image_size) {
        return error_set(err, EBADMSG, "'%s' has another size than its manifest says", shown);
    }
    return 0;
}

static int co_repair_sums(struct repair *repair, struct repository_entry *e)
{
    ERROR_AUTO(before);
    ERROR_AUTO(why);
    int r = chain_co_check_sums(&repair->repository, e, repair->options->stop, &before);

    if (r == 0 || r == -EINTR) {
        return r;
    }
    r = repair_co_make_sums(&repair->repository, e, repair->options->stop, &why);
    if (r == -ENOMEM || r == -EINTR) {
        return r;
    }
    return r == 0 ? add_item(repair, e->id, REPOSITORY_SUMS, error_message(&before), true)
                  : add_item(repair, e->id, REPOSITORY_SUMS, error_message(&why), false);
}

static int co_repair_backup(struct repair *repair, struct repository_entry *e)
{
    const struct repository_entry **chain AUTO_FREE = NULL;
    ERROR_AUTO(why);
    size_t count;

    if (e->problem) {
        return co_repair_manifest(repair, e);
    }
    if (check_image(&repair->repository, e, &why) < 0) {
        return add_item(repair, e->id, REPOSITORY_IMAGE, error_message(&why), false);
    }
    if (repository_chain(&repair->repository, e, &chain, &count, &why) < 0) {
        return add_item(repair, e->id, REPOSITORY_MANIFEST, error_message(&why), false);
    }
    return co_repair_sums(repair, e);
}

/* --- the whole --- */

/* Manifests first: the description is made from them, and links are checked with them. */
static int co_repair_backups(struct repair *repair, struct error *err)
{
    struct repository *repository = &repair->repository;
    int r = 0;

    for (int manifests = 1; r == 0 && manifests >= 0; manifests--) {
        for (size_t i = 0; r == 0 && i < repository->count; i++) {
            struct repository_entry *e = &repository->entries[i];

            if ((e->problem != NULL) == (manifests == 1)) {
                r = co_repair_backup(repair, e);
            }
        }
    }
    return r == -ENOMEM  ? error_out_of_memory(err)
           : r == -EINTR ? error_set(err, EINTR, "The repair was stopped")
                         : r;
}

static int repair_description(struct repair *repair, struct error *err)
{
    char *before AUTO_FREE = NULL;
    int r;

    if (!repair->repository.problem && !repair->options->new_id) {
        return 0;
    }
    before = strdup(repair->repository.problem ? repair->repository.problem : "");
    r = before ? 0 : error_out_of_memory(err);
    UNLESS_FAILED(r, repository_describe(&repair->repository, repair->options->new_id, err));
    if (r == 0 && before[0] && add_item(repair, "", REPOSITORY_DESCRIPTION, before, true) < 0) {
        r = error_out_of_memory(err);
    }
    return r;
}

/* Describe the repository in the result if all went well, and close it. */
static int end_repair(struct repair *repair, int r, struct error *err)
{
    struct repository *repository = &repair->repository;
    struct repair_result *result = repair->result;

    if (r == 0) {
        result->path = strdup(repository->path);
        memcpy(result->id, repository->id, sizeof(result->id));
        result->backups = repository->count;
        r = result->path ? 0 : error_out_of_memory(err);
    }
    repository_close(repository);
    return r;
}

static int repair_root(const struct repair_options *options, struct repair_result *ret_result,
                       struct error *err)
{
    if (!options->sign) {
        error_set(err, EINVAL, "'%s' holds sets of backups", options->dir);
        error_hint(err, "Name the directory of a disk. With --sign, sets without the code of the "
                        "key get one.");
        return -EINVAL;
    }
    return set_sign_all(options->dir, ret_result, err);
}

int repair_co_run(const struct repair_options *options, struct repair_result *ret_result,
                  struct error *err)
{
    struct repair repair = {
        .options = options, .repository = REPOSITORY_INIT, .result = ret_result};
    struct repository *repository = &repair.repository;
    int r;

    *ret_result = (struct repair_result){0};
    if (set_is_root(options->dir)) {
        return repair_root(options, ret_result, err);
    }
    if (options->sign) {
        r = repository_open_to_sign(options->dir, repository, err);
        UNLESS_FAILED(r, repository_may_change(repository, "no manifest is changed", err));
        UNLESS_FAILED(r, repository_sign(repository, err));
    } else {
        r = repository_open_to_repair(options->dir, repository, err);
    }
    if (options->append_only >= 0) {
        UNLESS_FAILED(r, repository_set_append_only(repository, options->append_only == 1, err));
        return end_repair(&repair, r, err);
    }
    UNLESS_FAILED(r, repository_may_change(repository, "nothing is repaired in it", err));
    UNLESS_FAILED(r, repair_description(&repair, err));
    UNLESS_FAILED(r, co_repair_backups(&repair, err));
    if (r == 0 && ret_result->count == 0 && !options->new_id && !options->sign) {
        error_set(err, EINVAL, "'%s' needs no repair", repository->path);
        error_hint(err, "--new-id gives a copy of a repository an id of its own; 'tidemark verify' "
                        "reads everything.");
        r = -EINVAL;
    }
    return end_repair(&repair, r, err);
}
