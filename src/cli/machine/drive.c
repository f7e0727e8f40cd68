/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/machine/drive.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/cli.h"
#include "cli/image.h"
#include "cli/machine/bus.h"
#include "cli/machine/device.h"
#include "cli/machine/disk.h"
#include "cli/machine/limits.h"
#include "cli/machine/migrate.h"

struct interface {
    const char *name;
    int units;             /* on a bus; 0: no buses */
    int places;            /* that the machine has */
    const char *disk, *cd; /* the device that is made; NULL: none */
    bool has_actions;      /* werror and rerror */
};

static const struct interface interfaces[] = {
    {"none", 0, 0, NULL, NULL, true},
    {"ide", 2, 4, "ide-hd", "ide-cd", true},
    {"scsi", 7, 0, NULL, NULL, true},
    {"floppy", 0, 2, "floppy", "floppy", false},
    {"virtio", 0, INT_MAX, "virtio-blk-pci", "virtio-blk-pci", true},
};

struct machine_drive {
    struct machine_disk *disk;
    const struct interface *interface;
    uint64_t index; /* of the unit, over all buses */
};

/* snapshot= where an option does not say. */
static bool overlays_by_default;

void machine_drives_get_overlays(void)
{
    overlays_by_default = true;
}

/* What the text says that is not an option of the node. All text is owned. */
struct settings {
    char *interface, *id, *media, *file, *format, *cache, *aio, *werror, *rerror;
    uint64_t index, bus, unit; /* UINT64_MAX: not given */
    bool overlay, read_only, copy_on_read, writeback;
    struct machine_drive_limits limits;
};

static void clear_settings(struct settings *s)
{
    char *const texts[] = {s->interface, s->id,  s->media,  s->file,  s->format,
                           s->cache,     s->aio, s->werror, s->rerror};

    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        free(texts[i]);
    }
    machine_clear_drive_limits(&s->limits);
}

/* --- parsing ---------------------------------------------------------------------------------- */

/* The next `key=value` of the text; ",," is a comma in a value. NULL at the end. */
static char *next_pair(const char **text)
{
    const char *from = *text;
    char *pair = *from ? malloc(strlen(from) + 1) : NULL;
    size_t len = 0;

    if (!pair) {
        return NULL;
    }
    while (*from && (*from != ',' || from[1] == ',')) {
        pair[len++] = *from;
        from += *from == ',' ? 2 : 1;
    }
    pair[len] = '\0';
    *text = from + (*from == ',');
    return pair;
}

/*
 * The text as an object with dotted keys. `file` may be a name, next to options below `file`: it is
 * taken out.
 */
static struct json_object *parse_drive(const char *text, struct settings *s)
{
    struct json_object *o = json_object_new_object();
    char *pair;

    while ((pair = next_pair(&text))) {
        char *value = strchr(pair, '=');
        const char *key = pair;

        if (value) {
            *value++ = '\0';
        } else if (strncmp(pair, "no", 2) == 0) {
            key += 2;
        }
        if (strcmp(key, "file") == 0) {
            free(s->file);
            s->file = value ? strdup(value) : NULL;
        } else {
            json_object_object_add(o, key,
                                   json_object_new_string(value
                                                              ?: key == pair ? "on"
                                                                             : "off"));
        }
        free(pair);
    }
    return o;
}

/* Whether a word is in a list that ends with NULL. */
static int check_word(const char *word, const char *const *words, const char *complaint,
                      struct error *err)
{
    while (word && *words && strcmp(*words, word) != 0) {
        words++;
    }
    return !word || *words ? 0 : error_set(err, EINVAL, "'%s' %s", word, complaint);
}

/* Take what only a disk has, and check it. */
static int take_drive_settings(struct options *opts, struct settings *s, struct error *err)
{
    static const char *const actions[] = {"report", "ignore", "enospc", "stop", NULL};
    static const char *const media[] = {"disk", "cdrom", NULL};
    AUTO_FREE char *driver = NULL;
    int r;

    if ((r = options_take_str(opts, "if", &s->interface, err)) < 0 ||
        (r = options_take_str(opts, "id", &s->id, err)) < 0 ||
        (r = options_take_str(opts, "media", &s->media, err)) < 0 ||
        (r = options_take_str(opts, "format", &s->format, err)) < 0 ||
        (r = options_take_str(opts, "driver", &driver, err)) < 0 ||
        (r = options_take_str(opts, "aio", &s->aio, err)) < 0 ||
        (r = options_take_str(opts, "werror", &s->werror, err)) < 0 ||
        (r = options_take_str(opts, "rerror", &s->rerror, err)) < 0 ||
        (r = options_take_bool(opts, "snapshot", overlays_by_default, &s->overlay, err)) < 0 ||
        (r = options_take_bool(opts, "copy-on-read", false, &s->copy_on_read, err)) < 0 ||
        (r = options_take_uint(opts, "index", UINT64_MAX, INT32_MAX, &s->index, err)) < 0 ||
        (r = options_take_uint(opts, "bus", UINT64_MAX, INT32_MAX, &s->bus, err)) < 0 ||
        (r = options_take_uint(opts, "unit", UINT64_MAX, INT32_MAX, &s->unit, err)) < 0) {
        return r;
    }
    if (driver && s->format) {
        return error_set(err, EINVAL, "Cannot specify both 'driver' and 'format'");
    }
    s->format = s->format ?: TAKE_PTR(driver);
    if (s->aio && cli_check_aio_mode(s->aio, NULL) < 0) {
        return error_set(err, EINVAL, "invalid aio option");
    }
    r = check_word(s->media, media, "invalid media", err);
    UNLESS_FAILED(r, check_word(s->werror, actions, "invalid write error action", err));
    UNLESS_FAILED(r, check_word(s->rerror, actions, "invalid read error action", err));
    if (s->id) {
        UNLESS_FAILED(r, options_check_identifier("id", s->id, err));
    }
    return r;
}

/*
 * The cache mode: cache=MODE, and cache.direct, cache.no-flush, cache.writeback. The first two are
 * options of the node. Text `cache` and a group of that name exclude each other in a tree, so the
 * text has been taken out.
 */
static int take_cache(struct options *opts, struct settings *s, struct error *err)
{
    AUTO_OPTIONS struct options *group = NULL;
    AUTO_FREE char *text = NULL;
    int r = options_take_child(opts, "cache", &group, &text, err);

    if (r < 0) {
        return r;
    }
    s->writeback = true;
    if (!group && !(group = options_new())) {
        return error_out_of_memory(err);
    }
    r = options_take_bool(group, "writeback", !cli_cache_is_writethrough(s->cache), &s->writeback,
                          err);
    if (r < 0) {
        return error_set(err, EINVAL, "Parameter 'cache.writeback' expects 'on' or 'off'");
    }
    if (s->cache) {
        options_default_bool(group, "direct", cli_cache_is_direct(s->cache));
        options_default_bool(group, "no-flush", strcmp(s->cache, "unsafe") == 0);
    }
    if (!options_is_empty(group)) {
        options_set_child(opts, "cache", TAKE_PTR(group));
    }
    return 0;
}

/* The figures that the disk keeps: stats-intervals, stats-account-failed and -invalid. */
static int take_accounting(struct options *opts, struct accounting *a, struct error *err)
{
    struct json_object *list = NULL;
    int r = options_take_bool(opts, "stats-account-invalid", true, &a->account_invalid, err);

    UNLESS_FAILED(r,
                  options_take_bool(opts, "stats-account-failed", true, &a->account_failed, err));
    UNLESS_FAILED(r, options_take_list(opts, "stats-intervals", &list, err));
    for (size_t i = 0; r >= 0 && list && i < json_object_array_length(list); i++) {
        int64_t seconds = json_object_get_int64(json_object_array_get_idx(list, i));

        if (seconds <= 0 || a->interval_count == ACCOUNTING_INTERVALS_MAX) {
            r = error_set(err, EINVAL, "Invalid interval length: %s",
                          json_object_get_string(json_object_array_get_idx(list, i)));
        } else {
            a->intervals[a->interval_count++] = (uint64_t)seconds;
        }
    }
    json_object_put(list);
    return r;
}

/* --- names ------------------------------------------------------------------------------------ */

static const struct interface *find_interface(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(interfaces); i++) {
        if (strcmp(interfaces[i].name, name) == 0) {
            return &interfaces[i];
        }
    }
    return NULL;
}

static int choose_interface(const struct settings *s, const char *otherwise,
                            const struct interface **ret_interface, struct error *err)
{
    const struct interface *i = find_interface(s->interface ?: otherwise ?: "ide");

    if (!i) {
        return error_set(err, EINVAL, "unsupported bus type '%s'", s->interface);
    }
    if (!i->has_actions && (s->werror || s->rerror)) {
        return error_set(err, EINVAL, "%s is not supported by this bus type",
                         s->werror ? "werror" : "rerror");
    }
    *ret_interface = i;
    return 0;
}

/* The name of the unit number `index` of an interface. To be freed. */
static char *unit_name(const struct interface *i, const struct settings *s, uint64_t index)
{
    const char *media = s->media && strcmp(s->media, "cdrom") == 0 ? "-cd" : "-hd";
    char *name = NULL;
    int r;

    if (i->units > 0) {
        r = asprintf(&name, "%s%llu%s%llu", i->name, (unsigned long long)index / i->units, media,
                     (unsigned long long)index % i->units);
    } else {
        r = asprintf(&name, "%s%llu", i->name, (unsigned long long)index);
    }
    return r < 0 ? NULL : name;
}

/* The units that drives have taken. */
static struct unit {
    const struct interface *interface;
    uint64_t index;
} * taken;
static size_t taken_count;

static bool is_index_taken(const struct interface *i, uint64_t index)
{
    for (size_t k = 0; k < taken_count; k++) {
        if (taken[k].interface == i && taken[k].index == index) {
            return true;
        }
    }
    return false;
}

static int take_unit(const struct interface *i, uint64_t index, struct error *err)
{
    struct unit *more = realloc(taken, (taken_count + 1) * sizeof(*more));

    if (!more) {
        return error_out_of_memory(err);
    }
    taken = more;
    taken[taken_count++] = (struct unit){i, index};
    return 0;
}

/* Give the disk the name of the first unit that is free, or of the one that the text says. */
static int choose_name(const struct interface *i, struct settings *s, struct error *err)
{
    uint64_t units = i->units ? (uint64_t)i->units : 1;
    uint64_t index =
        s->index != UINT64_MAX ? s->index
        : s->bus != UINT64_MAX || s->unit != UINT64_MAX
            ? (s->bus == UINT64_MAX ? 0 : s->bus) * units + (s->unit == UINT64_MAX ? 0 : s->unit)
            : 0;
    bool is_given = s->index != UINT64_MAX || s->unit != UINT64_MAX;

    if (s->index != UINT64_MAX && (s->bus != UINT64_MAX || s->unit != UINT64_MAX)) {
        return error_set(err, EINVAL, "index cannot be used with bus and unit");
    }
    if (i->units > 0 && s->unit != UINT64_MAX && s->unit >= units) {
        return error_set(err, EINVAL, "unit %llu too big (max is %d)", (unsigned long long)s->unit,
                         i->units - 1);
    }
    while (!is_given && is_index_taken(i, index)) {
        index++;
    }
    if (is_index_taken(i, index)) {
        return error_set(err, EEXIST, "drive with bus=%llu, unit=%llu (index=%llu) exists",
                         (unsigned long long)(index / units), (unsigned long long)(index % units),
                         (unsigned long long)index);
    }
    s->index = index;
    s->id = s->id ?: unit_name(i, s, index);
    return s->id ? take_unit(i, index, err) : error_out_of_memory(err);
}

/* --- the image -------------------------------------------------------------------------------- */

static int co_open_drive(const struct settings *s, struct options *opts /* consumed */,
                         struct block_node **ret_node, struct error *err)
{
    unsigned flags = BLOCK_OPEN_RDWR | BLOCK_OPEN_PROBE;
    int r;

    options_default_bool(opts, "auto-read-only", true);
    if (machine_waits_for_migration()) {
        options_default_bool(opts, "active", false);
    }
    options_default_bool(opts, "read-only", s->overlay || s->read_only);
    if (s->file) {
        return block_co_open_filename(s->file, s->format, opts, flags, ret_node, err);
    }
    if (s->format) {
        if (!block_find_driver(s->format)) {
            options_free(opts);
            return error_set(err, EINVAL, "Unknown driver '%s'", s->format);
        }
        options_set_str(opts, "driver", s->format);
        r = block_co_open(opts, flags, ret_node, err);
    } else {
        struct json_object *json = options_to_json(opts);
        AUTO_FREE char *name = NULL;

        options_free(opts);
        if (asprintf(&name, "json:%s",
                     json_object_to_json_string_ext(json, JSON_C_TO_STRING_NOSLASHESCAPE)) < 0) {
            name = NULL;
        }
        json_object_put(json);
        r = name ? block_co_open_filename(name, NULL, NULL, flags, ret_node, err)
                 : error_out_of_memory(err);
    }
    return r;
}

static void warn_about_guess(const char *name, const struct block_node *node)
{
    struct block_node_settings settings = block_node_settings(node);

    if (settings.probed && !settings.read_only && strcmp(block_node_format(node), "raw") == 0) {
        fflush(stdout);
        fprintf(stderr,
                "WARNING: Image format was not specified for '%s' and probing guessed raw.\n"
                "         Automatically detecting the format is dangerous for raw images, write "
                "operations on block 0 will be restricted.\n"
                "         Specify the 'raw' format explicitly to remove the restrictions.\n",
                name);
    }
}

/* Open the image with what is put on it, and insert it. */
static int co_insert_image(struct machine_disk *disk, const struct settings *s,
                           struct options *opts /* consumed */, struct error *err)
{
    struct block_node *node = NULL;
    int r = co_open_drive(s, opts, &node, err);

    if (s->overlay) {
        UNLESS_FAILED(r, cli_co_add_overlay(&node, disk->read_only, err));
    }
    if (s->copy_on_read && r >= 0 && block_node_is_read_only(node)) {
        cli_warn("disabling copy-on-read on read-only drive");
    } else if (s->copy_on_read) {
        UNLESS_FAILED(r, cli_co_add_copy_on_read(&node, err));
    }
    UNLESS_FAILED(r, machine_disk_co_insert(disk, node, err));
    if (r >= 0) {
        warn_about_guess(s->file ?: "", node);
    }
    block_co_unref(node);
    return r;
}

/* Whether anything says what the medium is. */
static bool names_an_image(const struct settings *s, const struct options *opts)
{
    struct json_object *left;
    bool has_more = false;

    if ((s->file && *s->file) || s->format) {
        return true;
    }
    left = options_to_json(opts);
    json_object_object_foreach(left, key, value)
    {
        (void)value;
        has_more |= strcmp(key, "read-only") != 0 && strcmp(key, "cache") != 0 &&
                    strcmp(key, "discard") != 0 && strcmp(key, "detect-zeroes") != 0;
    }
    json_object_put(left);
    return has_more;
}

/* Make the disk of an option whose `interface` is known. */
static int co_make_disk(struct settings *s, struct options *opts_ /* consumed */,
                        struct machine_disk **ret_disk, struct error *err)
{
    AUTO_OPTIONS struct options *opts = opts_;
    struct machine_disk *disk;
    int r = machine_disk_new(s->id, &disk, err);

    if (r < 0) {
        return r;
    }
    disk->is_cdrom = s->media && strcmp(s->media, "cdrom") == 0;
    disk->stops_on_error = !s->werror || strcmp(s->werror, "enospc") == 0 ||
                           strcmp(s->werror, "stop") == 0 ||
                           (s->rerror && strcmp(s->rerror, "stop") == 0);
    s->read_only = disk->is_cdrom;
    r = take_accounting(opts, &disk->accounting, err);
    UNLESS_FAILED(r, take_cache(opts, s, err));
    UNLESS_FAILED(r, machine_take_drive_limits(opts, &s->limits, err));
    UNLESS_FAILED(r, machine_co_use_drive_limits(&s->limits, disk, err));
    disk->writethrough = !s->writeback;
    disk->read_only = disk->is_cdrom || options_is_text(opts, "read-only", "on");
    if (r >= 0 && names_an_image(s, opts)) {
        r = co_insert_image(disk, s, TAKE_PTR(opts), err);
    }
    if (r < 0) {
        machine_disk_co_free(disk);
        return r;
    }
    *ret_disk = disk;
    return 0;
}

/* Take the text of `cache` out of the object, where it would be next to a group of that name. */
static int take_cache_text(struct json_object *pairs, struct settings *s, struct error *err)
{
    struct json_object *cache;

    if (json_object_object_get_ex(pairs, "cache", &cache)) {
        s->cache = strdup(json_object_get_string(cache));
        json_object_object_del(pairs, "cache");
    }
    return s->cache && cli_check_cache_mode(s->cache, "cache", NULL) < 0
               ? error_set(err, EINVAL, "invalid cache option")
               : 0;
}

/* "readonly" is the old name of "read-only". */
static int rename_read_only(struct json_object *pairs, struct error *err)
{
    struct json_object *old;

    if (!json_object_object_get_ex(pairs, "readonly", &old)) {
        return 0;
    }
    if (json_object_object_get_ex(pairs, "read-only", NULL)) {
        return error_set(err, EINVAL,
                         "'read-only' and its alias 'readonly' can't be used at the same time");
    }
    json_object_object_add(pairs, "read-only", json_object_get(old));
    json_object_object_del(pairs, "readonly");
    return 0;
}

int machine_co_add_drive(const char *text, const char *interface, struct machine_drive **ret_drive,
                         struct error *err)
{
    __attribute__((cleanup(clear_settings))) struct settings s = {0};
    AUTO_OPTIONS struct options *opts = NULL;
    struct json_object *pairs = parse_drive(text, &s);
    struct machine_drive *drive = calloc(1, sizeof(*drive));
    int r = drive ? take_cache_text(pairs, &s, err) : error_out_of_memory(err);

    UNLESS_FAILED(r, rename_read_only(pairs, err));
    UNLESS_FAILED(r, options_from_json(pairs, &opts, err));
    json_object_put(pairs);
    UNLESS_FAILED(r, cli_name_drivers(&opts, err));
    UNLESS_FAILED(r, take_drive_settings(opts, &s, err));
    UNLESS_FAILED(r, choose_interface(&s, interface, &drive->interface, err));
    UNLESS_FAILED(r, choose_name(drive->interface, &s, err));
    if (r >= 0 && machine_disk_find(s.id)) {
        r = error_set(err, EEXIST, "Duplicate ID '%s' for drive", s.id);
    }
    UNLESS_FAILED(r, co_make_disk(&s, TAKE_PTR(opts), &drive->disk, err));
    if (r < 0) {
        free(drive);
        return r;
    }
    drive->index = s.index;
    *ret_drive = drive;
    return 0;
}

/* A place that the machine has nothing for. */
static int no_such_place(const struct machine_drive *drive, struct error *err)
{
    unsigned long long units = drive->interface->units ? (unsigned)drive->interface->units : 1;

    return error_set(err, EINVAL, "machine type does not support if=%s,bus=%llu,unit=%llu",
                     drive->interface->name, drive->index / units, drive->index % units);
}

static int co_connect(const struct machine_drive *drive, struct error *err)
{
    const struct interface *i = drive->interface;
    const char *type = drive->disk->is_cdrom ? i->cd : i->disk;
    char bus[16];

    if (strcmp(i->name, "none") == 0) {
        return 0;
    }
    if (drive->index >= (unsigned)i->places) {
        return no_such_place(drive, err);
    }
    if (strcmp(i->name, "ide") != 0) {
        return machine_co_add_device_on(
            type, NULL, strcmp(i->name, "floppy") == 0 ? drive->index : MACHINE_UNIT_FREE,
            drive->disk, err);
    }
    snprintf(bus, sizeof(bus), "ide.%d", (int)drive->index / i->units);
    return machine_co_add_device_on(type, bus, drive->index % (unsigned)i->units, drive->disk, err);
}

int machine_co_connect_drive(struct machine_drive *drive, struct error *err)
{
    int r = co_connect(drive, err);

    free(drive);
    return r;
}

void machine_drive_free(struct machine_drive *drive)
{
    free(drive);
}

bool machine_drive_is_on_board(const struct machine_drive *drive)
{
    return strcmp(drive->interface->name, "ide") == 0 &&
           drive->index < (unsigned)drive->interface->places;
}

/* --- help ------------------------------------------------------------------------------------- */

static void print_drivers(const char *title)
{
    const struct block_driver *d = NULL;

    printf("%s:", title);
    while ((d = block_next_driver(d))) {
        if (block_driver_is_usable(d)) {
            printf(" %s", block_driver_name(d));
        }
    }
    printf("\n");
}

bool machine_drive_help(const char *text)
{
    if (strcmp(text, "format=help") != 0 && strcmp(text, "format=?") != 0) {
        return false;
    }
    print_drivers("Supported formats");
    print_drivers("Supported formats (read-only)");
    return true;
}
