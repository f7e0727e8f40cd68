/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/image_header.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/stored.h"
#include "base/byteorder.h"
#include "base/cleanup.h"

/* Fields of a qcow2 header, after QEMU's interop/qcow2. */
#define HEADER_READ 104
#define BACKING_OFFSET 8
#define BACKING_SIZE 16
#define CLUSTER_BITS 20
#define VIRTUAL_SIZE 24

/* The backup that an image names as its backing file; "": none. */
static int read_parent(struct stored *file, const uint8_t *header, const char *shown,
                       char ret_parent[static BACKUP_ID_SIZE], struct error *err)
{
    static const char before[] = "../", after[] = "/" REPOSITORY_IMAGE;
    size_t size = load_be32(header + BACKING_SIZE);
    size_t outside = sizeof(before) - 1 + sizeof(after) - 1;
    char name[BACKUP_ID_SIZE + sizeof(before) + sizeof(after)] = "";

    ret_parent[0] = '\0';
    if (!load_be64(header + BACKING_OFFSET)) {
        return 0;
    }
    if (size > outside && size < outside + BACKUP_ID_SIZE &&
        stored_read(file, name, size, load_be64(header + BACKING_OFFSET)) == 0 &&
        strncmp(name, before, sizeof(before) - 1) == 0 &&
        strcmp(name + size - (sizeof(after) - 1), after) == 0) {
        name[size - (sizeof(after) - 1)] = '\0';
        memcpy(ret_parent, name + sizeof(before) - 1, size - outside + 1);
    }
    return ret_parent[0] && backup_id_is_valid(ret_parent)
               ? 0
               : error_set(err, EINVAL, "'%s' does not name a backup as its backing file", shown);
}

int image_header_read(int fd, const struct backup_key *seal, const char *shown,
                      struct image_header *ret_header, struct error *err)
{
    uint8_t header[HEADER_READ];
    struct stored *file = NULL;
    int r = stored_open(fd, seal, STORED_IMAGE, shown, &file, err);

    if (r < 0) {
        return r;
    }
    r = stored_read(file, header, sizeof(header), 0);
    if (r < 0) {
        error_set(err, EINVAL, "'%s' %s", shown, r == -EBADMSG ? "was changed" : "is too short");
        r = -EINVAL;
    }
    if (r == 0) {
        ret_header->virtual_size = load_be64(header + VIRTUAL_SIZE);
        ret_header->cluster_bits = load_be32(header + CLUSTER_BITS);
        r = read_parent(file, header, shown, ret_header->parent, err);
    }
    stored_free(file);
    return r;
}

int image_header_read_of(const struct repository *r, const char *id,
                         struct image_header *ret_header, struct error *err)
{
    char *shown AUTO_FREE = repository_file(r, id, REPOSITORY_IMAGE);
    int fd AUTO_CLOSE = repository_open_file(r, id, REPOSITORY_IMAGE, err);

    if (fd < 0 || !shown) {
        return fd < 0 ? fd : error_out_of_memory(err);
    }
    return image_header_read(fd, repository_seal(r), shown, ret_header, err);
}
