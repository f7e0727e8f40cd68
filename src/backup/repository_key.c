/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a repository is what somebody with its key has made. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/repository.h"
#include "backup/stored.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/hmac.h"

static const char *code_of(struct json_object *o)
{
    struct json_object *v;

    return json_object_object_get_ex(o, "mac", &v) ? json_object_get_string(v) : NULL;
}

bool repository_code_is_right(const struct backup_key *key, struct json_object *o)
{
    const char *found = code_of(o);
    char *stored AUTO_FREE = found ? strdup(found) : NULL;
    char actual[SHA256_HEX_SIZE];

    return stored && strlen(stored) == sizeof(actual) - 1 &&
           backup_key_authenticate(key, o, actual) == 0 &&
           hmac_equals(stored, actual, sizeof(actual));
}

int repository_check_code(const struct backup_key *key, const char *text, const char *shown,
                          struct error *err)
{
    struct json_object *o = json_tokener_parse(text);
    bool right = o && repository_code_is_right(key, o);

    json_object_put(o);
    return right
               ? 0
               : error_set(err, EINVAL,
                           "Manifest '%s' was made or changed by somebody without the key", shown);
}

static const char name_the_key[] =
    "Name its file with --key-file, or in TIDEMARK_KEY_FILE; or the passphrase, or a command: see "
    "tidemark-backup(1).";

int repository_judge_encryption(const struct repository *r, bool described, struct error *err)
{
    if (!r->key) {
        error_set(err, ENOKEY, "Repository '%s' is encrypted, and needs its key", r->path);
        error_hint(err, "%s", name_the_key);
        return -ENOKEY;
    }
    if (described && strcmp(r->key->check, r->key_check) != 0) {
        return error_set(err, EKEYREJECTED,
                         "Repository '%s' is encrypted with another key than the given one",
                         r->path);
    }
    return 0;
}

char *repository_seal_place(const struct repository *r)
{
    uint8_t *data AUTO_FREE = NULL;
    size_t size;

    return stored_seal_text(r->key, STORED_PLACE, r->path, strlen(r->path), &data, &size) < 0
               ? NULL
               : base64_encode(data, size);
}

char *repository_open_place(const struct repository *r, const char *sealed)
{
    char *data AUTO_FREE = strdup(sealed), *text = NULL;
    size_t size = data ? strlen(data) : 0;

    if (!data || base64_decode(data, &size, NULL) < 0 ||
        stored_open_text(r->key, STORED_PLACE, data, size, "", &text, &size, NULL) < 0) {
        return NULL;
    }
    return text;
}

int repository_judge_key(const struct repository *r, bool write, struct error *err)
{
    if (r->key && r->problem) {
        return 0; /* The manifests have to prove themselves. */
    }
    if (!r->key && r->key_check[0] && write) {
        error_set(err, ENOKEY, "Repository '%s' has a key, which is needed to change it", r->path);
        error_hint(err, "%s", name_the_key);
        return -ENOKEY;
    }
    if (r->key && !r->key_check[0]) {
        error_set(err, EKEYREJECTED, "Repository '%s' has no key: anybody may have changed it",
                  r->path);
        error_hint(err, "'tidemark repair --sign' gives it the key, as it is now.");
        return -EKEYREJECTED;
    }
    if (r->key && strcmp(r->key->check, r->key_check) != 0) {
        return error_set(err, EKEYREJECTED, "Repository '%s' has another key than the given one",
                         r->path);
    }
    return 0;
}
