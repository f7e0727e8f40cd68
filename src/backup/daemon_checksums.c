/* SPDX-License-Identifier: Apache-2.0 */
/* The digests of a view, by the daemon that has it: its command x-blockdev-checksums. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/daemon_disk.h"
#include "backup/sums.h"
#include "base/base64.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/sha256.h"

#define COMMAND "x-blockdev-checksums"

/* Of an answer for `length` bytes, which may cover less. */
static int take_digests(struct json_object *answer, uint64_t length, uint8_t *ret_digests,
                        uint64_t *ret_count)
{
    struct json_object *of = NULL;
    char *text AUTO_FREE = strdup(source_string(answer, "sha256"));
    uint64_t done, count;
    size_t size;

    json_object_object_get_ex(answer, "length", &of);
    done = json_object_get_uint64(of);
    if (!text) {
        return -ENOMEM;
    }
    size = strlen(text);
    if (done == 0 || done > length || base64_decode(text, &size, NULL) < 0) {
        return -EPROTO;
    }
    count = done == length ? div_round_up(done, BACKUP_CLUSTER_SIZE) : done / BACKUP_CLUSTER_SIZE;
    if (size < count * SHA256_SIZE ||
        count < MIN(div_round_up(length, BACKUP_CLUSTER_SIZE), (uint64_t)PULL_CHUNK_CLUSTERS)) {
        return -EPROTO;
    }
    for (uint64_t i = 0; i < count; i++) {
        memcpy(ret_digests + i * SUMS_DIGEST_SIZE, text + i * SHA256_SIZE, SUMS_DIGEST_SIZE);
    }
    *ret_count = count;
    return 0;
}

int daemon_co_digests(struct daemon_disk *s, uint64_t offset, uint64_t length, uint8_t *ret_digests,
                      uint64_t *ret_count)
{
    struct json_object *args = qmp_with_string(qmp_object(), "node-name", s->snap), *answer = NULL;
    int r;

    qmp_with(args, "offset", json_object_new_uint64(offset));
    qmp_with(args, "length", json_object_new_uint64(length));
    qmp_with(args, "granularity", json_object_new_int(BACKUP_CLUSTER_SIZE));
    r = qmp_client_co_execute(s->qmp, COMMAND, args, &answer, NULL);
    UNLESS_FAILED(r, take_digests(answer, length, ret_digests, ret_count));
    json_object_put(answer);
    return r;
}
