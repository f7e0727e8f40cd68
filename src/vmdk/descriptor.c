/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A descriptor is a text of lines:
 *
 *      # Disk DescriptorFile
 *      version=1
 *      CID=abf3556a
 *      parentCID=ffffffff
 *      createType="twoGbMaxExtentSparse"
 *      RW 4194304 SPARSE "disk-s001.vmdk"
 *      RW 4194304 FLAT "disk-f002.vmdk" 0
 *      ddb.adapterType = "ide"
 *
 * Lines that are none of these are skipped, as other programs add their own.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "vmdk/image.h"

#define MAGIC "# Disk DescriptorFile"

bool vmdk_is_descriptor(const uint8_t *head, size_t size)
{
    return size >= sizeof(MAGIC) - 1 &&
           strncasecmp((const char *)head, MAGIC, sizeof(MAGIC) - 1) == 0;
}

/* A line of the text, without its end. */
struct line {
    const char *text;
    size_t length;
};

static struct line next_line(const char *text, size_t size, size_t *at)
{
    struct line line = {.text = text + *at};
    const char *end = memchr(line.text, '\n', size - *at);

    line.length = end ? (size_t)(end - line.text) : strnlen(line.text, size - *at);
    *at += line.length + 1;
    while (line.length > 0 && isspace((unsigned char)line.text[line.length - 1])) {
        line.length--;
    }
    return line;
}

/* The value of `key=value`, without quotation marks and spaces around it. */
static bool get_value(struct line line, const char *key, struct line *ret_value)
{
    size_t length = strlen(key);
    struct line v;

    if (line.length < length || strncasecmp(line.text, key, length) != 0) {
        return false;
    }
    v = (struct line){line.text + length, line.length - length};
    while (v.length > 0 && *v.text == ' ') {
        v.text++;
        v.length--;
    }
    if (v.length == 0 || *v.text != '=') {
        return false;
    }
    do {
        v.text++;
        v.length--;
    } while (v.length > 0 && *v.text == ' ');
    if (v.length >= 2 && *v.text == '"' && v.text[v.length - 1] == '"') {
        v.text++;
        v.length -= 2;
    }
    *ret_value = v;
    return true;
}

static int copy_value(struct line value, const char *key, const char *name, char *out, size_t room,
                      struct error *err)
{
    if (value.length >= room || memchr(value.text, '\0', value.length)) {
        return error_set(err, EINVAL, "%s in the descriptor of '%s' is longer than %zu bytes", key,
                         name, room - 1);
    }
    memcpy(out, value.text, value.length);
    out[value.length] = '\0';
    return 0;
}

static int parse_cid(struct line value, const char *key, const char *name, uint32_t *ret_cid,
                     struct error *err)
{
    uint64_t cid = 0;

    for (size_t i = 0; i < value.length; i++) {
        int c = tolower((unsigned char)value.text[i]);

        if (!isxdigit(c) || cid > UINT32_MAX >> 4) {
            value.length = 0;
            break;
        }
        cid = cid << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
    }
    if (value.length == 0) {
        return error_set(err, EINVAL,
                         "Invalid %s in the descriptor of '%s', expected a hexadecimal number of "
                         "32 bits",
                         key, name);
    }
    *ret_cid = (uint32_t)cid;
    return 0;
}

/* --- extents ---------------------------------------------------------------------------------- */

static bool starts_extent(struct line line)
{
    static const char *const words[] = {"RW ", "RDONLY ", "NOACCESS "};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        if (line.length > strlen(words[i]) && strncmp(line.text, words[i], strlen(words[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* Take a word up to a space. False: it is empty, or too long. */
static bool take_word(struct line *line, char *out, size_t room)
{
    size_t n = 0;

    while (n < line->length && line->text[n] != ' ') {
        n++;
    }
    if (n == 0 || n >= room) {
        return false;
    }
    memcpy(out, line->text, n);
    out[n] = '\0';
    while (n < line->length && line->text[n] == ' ') {
        n++;
    }
    line->text += n;
    line->length -= n;
    return true;
}

/* Sectors, as bytes. */
static bool take_extent_sectors(struct line *line, uint64_t *ret_bytes)
{
    char word[24];
    uint64_t value = 0;

    if (!take_word(line, word, sizeof(word))) {
        return false;
    }
    for (const char *p = word; *p; p++) {
        if (!isdigit((unsigned char)*p) || value > INT64_MAX / VMDK_SECTOR / 10 - 1) {
            return false;
        }
        value = value * 10 + (uint64_t)(*p - '0');
    }
    *ret_bytes = value * VMDK_SECTOR;
    return true;
}

/* A name in quotation marks. */
static bool take_filename(struct line *line, char *out, size_t room)
{
    const char *end;
    size_t n;

    if (line->length < 2 || *line->text != '"') {
        return false;
    }
    end = memchr(line->text + 1, '"', line->length - 1);
    n = end ? (size_t)(end - line->text) - 1 : 0;
    if (n == 0 || n >= room || memchr(line->text + 1, '\0', n)) {
        return false;
    }
    memcpy(out, line->text + 1, n);
    out[n] = '\0';
    line->text += n + 2;
    line->length -= n + 2;
    while (line->length > 0 && *line->text == ' ') {
        line->text++;
        line->length--;
    }
    return true;
}

/* The type of a line; false: it is not known. */
static bool type_of(struct vmdk_extent_line *e)
{
    static const struct {
        const char *name;
        enum vmdk_extent_type type;
    } types[] = {
        {"FLAT", VMDK_FLAT}, {"VMFS", VMDK_FLAT}, {"SPARSE", VMDK_SPARSE}, {"ZERO", VMDK_ZERO}};

    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (strcmp(types[i].name, e->type_name) == 0) {
            e->type = types[i].type;
            return true;
        }
    }
    return false;
}

static bool parse_extent(struct line line, struct vmdk_extent_line *e)
{
    char access[16];

    if (!take_word(&line, access, sizeof(access)) || !take_extent_sectors(&line, &e->size) ||
        !take_word(&line, e->type_name, sizeof(e->type_name)) || e->size == 0) {
        return false;
    }
    if (!type_of(e)) {
        return true; /* refused later, with its name */
    }
    e->read_only = strcmp(access, "RW") != 0;
    if (e->type == VMDK_ZERO) {
        return line.length == 0;
    }
    if (!take_filename(&line, e->filename, sizeof(e->filename))) {
        return false;
    }
    /* FLAT has the offset in the file; VMFS, which is always a whole file, has none. */
    if (strcmp(e->type_name, "FLAT") == 0) {
        return take_extent_sectors(&line, &e->offset) && line.length == 0;
    }
    return line.length == 0;
}

static int add_described_extent(struct vmdk_descriptor *d, struct line line, const char *name,
                                struct error *err)
{
    struct vmdk_extent_line *e;

    if (d->extent_count == VMDK_EXTENTS_MAX) {
        return error_set(err, EINVAL, "The descriptor of '%s' has more than %d extents", name,
                         VMDK_EXTENTS_MAX);
    }
    if (is_power_of_2(d->extent_count) || d->extent_count == 0) {
        size_t room = d->extent_count == 0 ? 1 : 2 * (size_t)d->extent_count;

        e = realloc(d->extents, room * sizeof(*e));
        if (!e) {
            return error_out_of_memory(err);
        }
        d->extents = e;
    }
    e = &d->extents[d->extent_count++];
    *e = (struct vmdk_extent_line){.type = VMDK_ZERO};
    if (!parse_extent(line, e)) {
        return error_set(err, EINVAL, "Invalid extent line: %.*s", (int)MIN(line.length, 256),
                         line.text);
    }
    if (!type_of(e)) {
        return error_set(err, ENOTSUP, "Unsupported extent type '%s' in '%s'", e->type_name, name);
    }
    if (strncmp(line.text, "NOACCESS", 8) == 0) {
        return error_set(err, EACCES, "An extent of '%s' may not be accessed: %.*s", name,
                         (int)MIN(line.length, 256), line.text);
    }
    return 0;
}

static int parse_descriptor_line(struct vmdk_descriptor *d, const char *text, struct line line,
                                 const char *name, struct error *err)
{
    struct line value;

    if (starts_extent(line)) {
        return add_described_extent(d, line, name, err);
    }
    if (get_value(line, "CID", &value)) {
        d->cid_at = value.length == 8 ? (size_t)(value.text - text) : 0;
        return parse_cid(value, "CID", name, &d->cid, err);
    }
    if (get_value(line, "parentCID", &value)) {
        return parse_cid(value, "parentCID", name, &d->parent_cid, err);
    }
    if (get_value(line, "createType", &value)) {
        return copy_value(value, "createType", name, d->create_type, sizeof(d->create_type), err);
    }
    if (get_value(line, "parentFileNameHint", &value)) {
        return copy_value(value, "parentFileNameHint", name, d->parent_name, sizeof(d->parent_name),
                          err);
    }
    return 0;
}

int vmdk_parse_descriptor(const char *text, size_t size, const char *name,
                          struct vmdk_descriptor *d, struct error *err)
{
    size_t at = 0;
    int r = 0;

    d->parent_cid = VMDK_NO_PARENT;
    size = strnlen(text, size);
    while (at < size && r == 0) {
        r = parse_descriptor_line(d, text, next_line(text, size, &at), name, err);
    }
    if (r == 0 && !d->create_type[0]) {
        r = error_set(err, EINVAL, "The descriptor of '%s' has no createType", name);
    }
    return r;
}

void vmdk_descriptor_release(struct vmdk_descriptor *d)
{
    free(d->extents);
    d->extents = NULL;
    d->extent_count = 0;
}
