/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parent of a differencing disk: the locator that names it ([MS-VHDX] 2.6.2.6), and its check.
 * A locator is a header of 20 bytes, entries of 12 bytes, each for a key and its value, and the
 * texts of these, in UTF-16.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/byteorder.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "blockmap/windows_path.h"
#include "vhdx/image.h"

#define LOCATOR_MAX (64 * KiB)
#define LOCATOR_HEADER 20
#define LOCATOR_ENTRY 12
#define TEXT_UNITS_MAX 1024

static const struct vhdx_guid locator_type = {{0xb7, 0xef, 0x4a, 0xb0, 0x9e, 0xd1, 0x81, 0x4a, 0xb7,
                                               0x89, 0x25, 0xb8, 0xe9, 0x44, 0x59, 0x13}};

struct locator_text {
    char bytes[4 * TEXT_UNITS_MAX + 1];
};

/* The text at a place of the locator. False: it is not there, too long, or no text. */
static bool get_text(const uint8_t *locator, size_t size, uint32_t offset, uint16_t length,
                     struct locator_text *ret_text)
{
    return range_fits(offset, length, size) && length <= 2 * TEXT_UNITS_MAX &&
           text_from_utf16(locator + offset, length / 2, false, ret_text->bytes);
}

static int hex_digit(char c)
{
    char lower = (char)(c | 0x20);

    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/* "{00112233-4455-6677-8899-aabbccddeeff}", whose first three parts are little-endian numbers. */
static bool parse_guid(const char *text, struct vhdx_guid *ret_guid)
{
    static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
    size_t n = 0;

    for (const char *p = text; *p && n < sizeof(order); p++) {
        int high = hex_digit(p[0]), low = high < 0 ? -1 : hex_digit(p[1]);

        if (high < 0) {
            continue; /* a brace or a hyphen */
        }
        if (low < 0) {
            return false;
        }
        ret_guid->bytes[order[n++]] = (uint8_t)(high << 4 | low);
        p++;
    }
    return n == sizeof(order);
}

static int keep_value(struct vhdx *d, const char *key, char *value, struct error *err)
{
    bool relative = strcmp(key, "relative_path") == 0;

    if (strcmp(key, "parent_linkage") == 0) {
        d->has_linkage[0] = parse_guid(value, &d->linkage[0]);
    } else if (strcmp(key, "parent_linkage2") == 0) {
        d->has_linkage[1] = parse_guid(value, &d->linkage[1]);
    } else if (relative || (strcmp(key, "absolute_win32_path") == 0 && !d->parent_path)) {
        windows_path_convert(value);
        free(d->parent_path);
        d->parent_path = strdup(value);
        return d->parent_path ? 0 : error_out_of_memory(err);
    }
    return 0;
}

int vhdx_co_read_locator(struct block_node *node, uint64_t offset, uint32_t length,
                         struct error *err)
{
    struct vhdx *d = node->opaque;
    size_t size = MIN(length, LOCATOR_MAX);
    AUTO_FREE uint8_t *b = malloc(MAX(size, 1u));
    AUTO_FREE struct locator_text *text = malloc(2 * sizeof(*text));
    unsigned count;
    int r = b && text ? vhdx_co_read(node, offset, b, size, "locator of the parent", err)
                      : error_out_of_memory(err);

    if (r < 0) {
        return r;
    }
    if (size < LOCATOR_HEADER || !vhdx_guid_equals(b, &locator_type)) {
        return 0; /* of another program: the user has to name the parent */
    }
    count = load_le16(b + 18);
    for (size_t i = 0; i < count && r == 0; i++) {
        const uint8_t *e = b + LOCATOR_HEADER + i * LOCATOR_ENTRY;

        if (LOCATOR_HEADER + (i + 1) * LOCATOR_ENTRY > size ||
            !get_text(b, size, load_le32(e), load_le16(e + 8), &text[0]) ||
            !get_text(b, size, load_le32(e + 4), load_le16(e + 10), &text[1])) {
            return error_set(err, EINVAL, "The locator of the parent of '%s' is not valid",
                             block_node_display_name(node));
        }
        r = keep_value(d, text[0].bytes, text[1].bytes, err);
    }
    return r;
}

/* The parent has not been written since: the GUID of its last change is the one that was noted. */
static int check_vhdx_parent(struct block_node *node, struct error *err)
{
    const struct vhdx *d = node->opaque;
    const struct block_node *parent = node->backing ? node->backing->node : NULL;
    const struct vhdx *p;

    if (!parent || strcmp(parent->driver->name, "vhdx") != 0) {
        return 0; /* the user chose it */
    }
    p = parent->opaque;
    for (size_t i = 0; i < ARRAY_SIZE(d->linkage); i++) {
        if (d->has_linkage[i] && vhdx_guid_equals(p->header.data_write.bytes, &d->linkage[i])) {
            return 0;
        }
    }
    return error_set(err, EINVAL,
                     "The parent '%s' of image '%s' was changed since, or is another one: its GUID "
                     "is not the one that the image expects",
                     block_node_display_name(parent), block_node_display_name(node));
}

int vhdx_co_open_parent(struct block_node *node, struct options *opts, enum other_files allowed,
                        struct error *err)
{
    const struct vhdx *d = node->opaque;
    AUTO_FREE char *path = NULL;
    const char *name = NULL;
    int r = 0;

    if (!options_has(opts, "backing") && !(node->open_flags & BLOCK_OPEN_NO_BACKING)) {
        name = d->parent_path ? d->parent_path : "";
        r = other_files_co_resolve(node, allowed, name, "parent", &path, err);
        UNLESS_FAILED(r, other_files_pass_on(opts, allowed, err));
    }
    UNLESS_FAILED(r, block_co_open_backing(node, opts, name, "vhdx", err));
    return r < 0 ? r : check_vhdx_parent(node, err);
}
