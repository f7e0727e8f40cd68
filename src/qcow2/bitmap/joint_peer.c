/* SPDX-License-Identifier: Apache-2.0 */
/* Joint changes: what the header of another image says. It may be in use, or not be an image. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/cleanup.h"
#include "qcow2/bitmap/joint.h"

/* Bytes of another header that are looked at. Ours have the extension in the first 4 KiB. */
#define PEER_HEADER_BYTES (64 * KiB)

/* Find the extension with that number in a header of `size` bytes. -ENODATA */
static int find_joint(const uint8_t *header, size_t size, const uint8_t *id,
                      enum qcow2_joint_state *ret_state)
{
    size_t at = size >= HDR_OUR_SIZE ? load_be32(header + HDR_LENGTH) : size;

    while (range_fits(at, 8, size)) {
        uint32_t type = load_be32(header + at), length = load_be32(header + at + 4);

        if (type == EXT_END || !range_fits(at + 8, length, size)) {
            break;
        }
        if (type == EXT_JOINT && length == EXT_JOINT_SIZE &&
            memcmp(header + at + 16, id, JOINT_ID_SIZE) == 0) {
            uint32_t state = load_be32(header + at + 12);

            *ret_state = (enum qcow2_joint_state)state;
            return state >= JOINT_PREPARED && state <= JOINT_UNDONE ? 0 : -ENODATA;
        }
        at += 8 + round_up((size_t)length, 8);
    }
    return -ENODATA;
}

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');

    return slash ? slash + 1 : name;
}

/*
 * Whether another image of the change has the same last part of its name: then a file of that name
 * next to this one can be the other one, or this one itself.
 */
static bool is_ambiguous(const struct qcow2_joint *j, const char *name)
{
    unsigned count = 0;

    for (uint32_t i = 0; i < j->name_count; i++) {
        count += strcmp(last_part(j->names[i]), last_part(name)) == 0;
    }
    return count > 1;
}

/* Whether the image is a file that can be found by its path, and finds others by theirs. */
static bool co_has_path(const struct block_node *file)
{
    AUTO_FREE char *path = qcow2_co_joint_path(file);

    return path && file->driver->co_read_other;
}

/* Whether this process has an image open whose file has that name. */
static bool has_open(const struct qcow2 *q, const char *name)
{
    struct block_node *node;

    for (node = block_node_next(NULL); node; node = block_node_next(node)) {
        AUTO_FREE char *own =
            node->driver == q->node->driver ? qcow2_joint_file_name(qcow2_state(node)) : NULL;

        if (own && strcmp(own, name) == 0) {
            return true;
        }
    }
    return false;
}

/* By its file. */
static int co_ask_file(struct qcow2 *q, const char *name, enum qcow2_joint_state *ret_state)
{
    struct block_node *file = block_node_skip_filters(q->node->file->node);
    AUTO_FREE uint8_t *header = malloc(PEER_HEADER_BYTES);
    int r = -ENOENT, found = header ? -ENOENT : -ENOMEM;

    unsigned place = is_ambiguous(&q->joint, name) ? 1 : 0;

    /* A file that is no image of the change is passed over for another one of that name. */
    for (; header; place++) {
        size_t size = PEER_HEADER_BYTES;

        r = file->driver->co_read_other(file, name, place, header, &size);
        if (r == -EINVAL) {
            break; /* that were all places */
        }
        if (r == 0) {
            r = size >= HDR_OUR_SIZE && load_be32(header + HDR_MAGIC) == QCOW2_MAGIC &&
                        load_be32(header + HDR_VERSION) >= 3
                    ? find_joint(header, size, q->joint.id, ret_state)
                    : -ENOENT;
        }
        if (r == 0) {
            return 0;
        }
        found = r != -ENOENT ? r : found;
    }
    return found;
}

int qcow2_co_joint_ask(struct qcow2 *q, uint32_t number, enum qcow2_joint_state *ret_state)
{
    const char *name = q->joint.names[number];
    int r = qcow2_joint_ask_known(q, number, ret_state);

    if (r != -ENOENT) {
        return r;
    }
    if (qcow2_joint_is_path(name) && co_has_path(block_node_skip_filters(q->node->file->node))) {
        return co_ask_file(q, name, ret_state);
    }
    return has_open(q, name) ? -ENODATA : -ENOTCONN;
}
