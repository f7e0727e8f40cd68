/* SPDX-License-Identifier: Apache-2.0 */
/* The file repository.json. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>

#include "backup/files.h"
#include "backup/repository.h"
#include "backup/stored.h"
#include "base/cleanup.h"

static char *describe_repository(const struct repository *r)
{
    struct json_object *o = json_object_new_object();
    char sha256[SHA256_HEX_SIZE], mac[SHA256_HEX_SIZE], *text = NULL;
    char *place AUTO_FREE = r->encrypted ? repository_seal_place(r) : NULL;

    json_object_object_add(o, "format", json_object_new_string(REPOSITORY_FORMAT));
    json_object_object_add(o, "version", json_object_new_int(r->encrypted ? 2 : 1));
    json_object_object_add(o, "id", json_object_new_string(r->id));
    if (r->former) {
        json_object_object_add(o, "former", json_object_new_string(r->former));
    }
    if (r->key_check[0]) {
        json_object_object_add(o, "key", json_object_new_string(r->key_check));
        backup_kdf_to_json(&r->kdf, o);
    }
    if (!r->encrypted) {
        json_object_object_add(o, "path", json_object_new_string(r->path));
    } else if (place) {
        json_object_object_add(o, "encryption", json_object_new_string(REPOSITORY_CIPHER));
        json_object_object_add(o, "place", json_object_new_string(place));
    }
    if (r->append_only) {
        json_object_object_add(o, "append-only", json_object_new_boolean(true));
    }
    if (r->encrypted && !place) {
        json_object_put(o);
        return NULL;
    }
    if (r->key && backup_key_authenticate(r->key, o, mac) == 0) {
        json_object_object_add(o, "mac", json_object_new_string(mac));
    }
    if (repository_description_sha256(o, sha256) == 0) {
        json_object_object_add(o, "sha256", json_object_new_string(sha256));
        if (asprintf(&text, "%s\n", json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN)) <
            0) {
            text = NULL;
        }
    }
    json_object_put(o);
    return text;
}

int repository_write_description(struct repository *repository, struct error *err)
{
    char *text AUTO_FREE = describe_repository(repository);
    char *shown AUTO_FREE = files_join(repository->path, REPOSITORY_DESCRIPTION);
    int r;

    if (!text || !shown) {
        return error_out_of_memory(err);
    }
    files_remove_at(repository->fd, REPOSITORY_NEW_DESCRIPTION);
    r = files_write_at(repository->fd, REPOSITORY_NEW_DESCRIPTION, text, shown, err);
    if (r == 0 && renameat(repository->fd, REPOSITORY_NEW_DESCRIPTION, repository->fd,
                           REPOSITORY_DESCRIPTION) < 0) {
        r = error_set_errno(err, errno, "Could not create '%s'", shown);
    }
    if (r < 0) {
        files_remove_at(repository->fd, REPOSITORY_NEW_DESCRIPTION);
    }
    return r < 0 ? r : files_sync(repository->fd, repository->path, err);
}

int repository_make_id(struct repository *r, struct error *err)
{
    uint32_t id;

    if (getrandom(&id, sizeof(id), 0) != sizeof(id)) {
        return error_set_errno(err, errno, "No random number for the repository's id");
    }
    snprintf(r->id, sizeof(r->id), "%08" PRIx32, id);
    return 0;
}
