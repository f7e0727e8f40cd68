/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source that is a disk of a libvirt domain, by its backup interface in pull mode (libvirt.org:
 * formatbackup, formatcheckpoint): one backup job for all disks of a run, with a checkpoint in
 * libvirt in the place of a bitmap. The last checkpoint is what the next backup is incremental to.
 * libvirt makes and removes scratch images, and an NBD server whose socket is in the directory of
 * the run (backup/fleece.h), by whose lock others see whether the run lives.
 *
 * After a move to another host the bitmaps are still in the images, but libvirt does not know its
 * checkpoints: the last one is defined again. Calls of libvirt block: nothing else runs meanwhile.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backup/files.h"
#include "backup/fleece.h"
#include "backup/libvirt_lazy.h"
#include "backup/libvirt_xml.h"
#include "backup/source.h"
#include "backup/stored.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/strbuf.h"
#include "base/time_units.h"
#include "loop/loop.h"

#define JOB_GONE_TRIES 600
#define JOB_GONE_POLL_NS (50 * NS_PER_MS)
#define THAW_TRIES 5

/* Shared by the disks of one domain. */
struct libvirt_domain {
    struct vir_connect *connection;
    struct vir_domain *domain;
    char *xml;
    struct fleece fleece;
    size_t users;
};

struct libvirt_source {
    struct source source;
    const struct source_options *options;
    struct libvirt_domain *owner;
    char *file;
    struct socket_address address;
    char *bitmap; /* of the export */
    struct source_bitmap *bitmaps;
};

static struct libvirt_source *libvirt_source_of(struct source *source)
{
    return container_of(source, struct libvirt_source, source);
}

static int fail_libvirt(struct error *err, const char *what)
{
    const char *why = virGetLastErrorMessage();

    return error_set(err, EIO, "%s: %s", what, why ? why : "no reason given");
}

static void ignore_libvirt_error(void *data, void *error)
{
}

/* --- inspecting --- */

static int wrap_error(int r, struct error *err)
{
    return r == -ENOMEM ? error_out_of_memory(err) : r;
}

static void clear_checkpoints(struct libvirt_source *s)
{
    for (size_t i = 0; i < s->source.disk.bitmap_count; i++) {
        free(s->bitmaps[i].name);
    }
    free(s->bitmaps);
    free(s->file);
    s->bitmaps = NULL;
    s->file = NULL;
    s->source.disk = (struct source_disk){0};
}

/* A checkpoint whose bitmaps are broken cannot say how much has changed. */
static bool is_sound(struct vir_checkpoint *c)
{
    char *xml AUTO_FREE = virDomainCheckpointGetXMLDesc(c, VIR_CHECKPOINT_XML_SIZE);

    return xml != NULL;
}

static int add_checkpoint_of(struct libvirt_source *s, struct vir_checkpoint *c)
{
    size_t count = s->source.disk.bitmap_count;
    const char *name = virDomainCheckpointGetName(c);
    struct source_bitmap *list;

    if (!name || strncmp(name, SOURCE_PREFIX, strlen(SOURCE_PREFIX)) != 0) {
        return 0;
    }
    list = realloc(s->bitmaps, (count + 1) * sizeof(*list));
    if (!list) {
        return -ENOMEM;
    }
    s->bitmaps = list;
    list[count] =
        (struct source_bitmap){.name = strdup(name), .recording = true, .persistent = true};
    list[count].inconsistent = !is_sound(c);
    s->source.disk.bitmap_count += list[count].name != NULL;
    return list[count].name ? 0 : -ENOMEM;
}

static int list_checkpoints(struct libvirt_source *s, struct error *err)
{
    struct vir_checkpoint **list = NULL;
    int count = virDomainListAllCheckpoints(s->owner->domain, &list, 0), r = 0;

    if (count < 0) {
        return fail_libvirt(err, "Could not list checkpoints");
    }
    for (int i = 0; i < count; i++) {
        UNLESS_FAILED(r, add_checkpoint_of(s, list[i]));
        virDomainCheckpointFree(list[i]);
    }
    free(list);
    return wrap_error(r, err);
}

/* The socket of the backup job that runs, malloc'ed; NULL: there is none, "" if it has none. */
static char *socket_of_job(struct libvirt_source *s)
{
    char *xml AUTO_FREE = virDomainBackupGetXMLDesc(s->owner->domain, 0), *socket;

    socket = xml ? libvirt_xml_attribute(xml, xml + strlen(xml), "socket") : NULL;
    return !xml ? NULL : socket ? socket : strdup("");
}

static int check_job(struct libvirt_source *s, struct error *err)
{
    char *socket AUTO_FREE = socket_of_job(s);

    if (socket && (!fleece_is_socket(socket) || fleece_owner(socket) == FLEECE_ALIVE)) {
        return error_set(err, EBUSY, "Another backup of domain '%s' is under way",
                         s->options->domain);
    }
    return 0;
}

static int co_inspect_libvirt(struct source *source, struct error *err)
{
    struct libvirt_source *s = libvirt_source_of(source);
    struct vir_block_info info;
    const char *start, *end;
    int r;

    clear_checkpoints(s);
    if (!libvirt_xml_find_disk(s->owner->xml, source->name, &start, &end)) {
        return error_set(err, ENOENT, "Domain '%s' has no disk '%s'", s->options->domain,
                         source->name);
    }
    s->file = libvirt_xml_of_element(start, end, "<source ", "file");
    s->file = s->file ? s->file : libvirt_xml_of_element(start, end, "<source ", "dev");
    if (virDomainGetBlockInfo(s->owner->domain, source->name, &info, 0) < 0) {
        return fail_libvirt(err, "Could not inspect the disk");
    }
    r = list_checkpoints(s, err);
    UNLESS_FAILED(r, check_job(s, err));
    source->disk.size = info.capacity;
    source->disk.file = s->file && manifest_name_is_valid(s->file) ? s->file : NULL;
    source->disk.bitmaps = s->bitmaps;
    /* Only qcow2 has checkpoints. */
    source->disk.tracks = memmem(start, (size_t)(end - start), " type='qcow2'", 13) != NULL;
    return r;
}

/* --- settling --- */

static int co_end_job_of_domain(struct libvirt_source *s, struct error *err)
{
    for (int i = 0; i < JOB_GONE_TRIES; i++) {
        char *socket AUTO_FREE = socket_of_job(s);

        if (!socket) {
            return 0;
        }
        if (i == 0 && virDomainAbortJob(s->owner->domain) < 0) {
            return fail_libvirt(err, "Could not end the backup job");
        }
        loop_co_sleep(JOB_GONE_POLL_NS);
    }
    return error_set(err, ETIMEDOUT, "The backup job of domain '%s' does not end",
                     s->options->domain);
}

/* Define a checkpoint again that libvirt does not know, if its bitmap is in the image. */
static void redefine_checkpoint(struct libvirt_source *s, const char *name)
{
    STRBUF_AUTO(xml);
    struct vir_checkpoint *c;

    strbuf_printf(&xml,
                  "<domaincheckpoint><name>%s</name><creationTime>1</creationTime><disks>"
                  "<disk name='%s' checkpoint='bitmap' bitmap='%s'/></disks>%s</domaincheckpoint>",
                  name, s->source.name, name, s->owner->xml);
    c = virDomainCheckpointCreateXML(s->owner->domain, strbuf_str(&xml),
                                     VIR_CHECKPOINT_REDEFINE | VIR_CHECKPOINT_REDEFINE_VALIDATE);
    if (c) {
        virDomainCheckpointFree(c);
    }
}

static bool is_own_checkpoint(const struct source *source, const char *name)
{
    const char *id = name + strlen(SOURCE_PREFIX);
    size_t digits = strlen(source->repository);

    return strncmp(id, source->repository, digits) == 0 && id[digits] == '-';
}

/* libvirt merges the bitmaps of a checkpoint into that of the one before. */
static int delete_checkpoint(struct libvirt_source *s, const char *name, struct error *err)
{
    struct vir_checkpoint *c = virDomainCheckpointLookupByName(s->owner->domain, name, 0);
    int r = c && virDomainCheckpointDelete(c, 0) < 0
                ? fail_libvirt(err, "Could not delete a checkpoint")
                : 0;

    if (c) {
        virDomainCheckpointFree(c);
    }
    return r;
}

static int co_settle_libvirt(struct source *source, const char *last, struct error *err)
{
    struct libvirt_source *s = libvirt_source_of(source);
    char *socket AUTO_FREE = socket_of_job(s);
    int r = socket ? co_end_job_of_domain(s, err) : 0;

    if (r == 0 && socket) {
        fleece_remove_of_file(socket);
    }
    UNLESS_FAILED(r, co_inspect_libvirt(source, err));
    for (size_t i = 0; r == 0 && i < source->disk.bitmap_count; i++) {
        const char *name = s->bitmaps[i].name;

        if (is_own_checkpoint(source, name) && (!last || strcmp(name, last) != 0)) {
            r = delete_checkpoint(s, name, err);
        }
    }
    if (r == 0 && last && last[0] && !source_bitmap(source, last)) {
        redefine_checkpoint(s, last);
    }
    return r < 0 ? r : co_inspect_libvirt(source, err);
}

/* --- the run --- */

/* The user that the machine runs as: "<label>+64055:+64055</label>" of the security model dac. */
static void find_owner(const char *xml, uid_t *ret_uid, gid_t *ret_gid)
{
    const char *model = strstr(xml, "model='dac'");
    const char *label = model ? strstr(model, "<label>") : NULL;
    char *end = NULL;
    unsigned long uid, gid;

    *ret_uid = 0;
    *ret_gid = 0;
    if (!label || label[strlen("<label>")] != '+') {
        return;
    }
    uid = strtoul(label + strlen("<label>+"), &end, 10);
    if (end[0] != ':' || end[1] != '+') {
        return;
    }
    gid = strtoul(end + 2, &end, 10);
    if (end[0] == '<' && uid <= UINT32_MAX && gid <= UINT32_MAX) {
        *ret_uid = (uid_t)uid;
        *ret_gid = (gid_t)gid;
    }
}

/* One directory for all disks. */
static int co_prepare_libvirt(struct source *source, const struct repository_draft *draft,
                              struct error *err)
{
    struct libvirt_source *s = libvirt_source_of(source);
    struct fleece *f = &s->owner->fleece;
    char *shown AUTO_FREE = files_join(draft->path, REPOSITORY_FLEECE);
    uid_t uid;
    gid_t gid;
    int r;

    if (f->fd >= 0) {
        return 0;
    }
    find_owner(s->owner->xml, &uid, &gid);
    r = shown ? fleece_init(f, s->options->fleece_dir, s->file, source->repository, err)
              : error_out_of_memory(err);
    UNLESS_FAILED(r, stored_write_at(draft->fd, REPOSITORY_FLEECE, f->dir, draft->seal,
                                     STORED_TEMPORARY, shown, err));
    return r < 0 ? r : fleece_co_make(f, source->disk.size, false, uid, gid, err);
}

static void print_backup_disk(struct strbuf *xml, const struct libvirt_source *s)
{
    const char *name = s->source.name, *frozen = s->source.frozen;

    strbuf_printf(xml, "<disk name='%s' backup='yes' type='file' backupmode='%s'", name,
                  frozen ? "incremental" : "full");
    if (frozen) {
        strbuf_printf(xml, " incremental='%s' exportbitmap='%s'", frozen, frozen);
    }
    strbuf_printf(xml, " exportname='%s'><scratch file='%s/%s.scratch'/></disk>", name,
                  s->owner->fleece.dir, name);
}

/* Disks that are not named are left out. */
static void print_other_disks(struct strbuf *xml, struct source *const *sources, size_t count,
                              const char *format)
{
    const char *pos = libvirt_source_of(sources[0])->owner->xml, *start, *end;

    while (libvirt_xml_next_disk(&pos, &start, &end)) {
        char *name AUTO_FREE = libvirt_xml_of_element(start, end, "<target ", "dev");
        bool named = !name;

        for (size_t i = 0; !named && i < count; i++) {
            named = strcmp(sources[i]->name, name) == 0;
        }
        if (!named) {
            /* NOLINTNEXTLINE(clang-diagnostic-format-nonliteral): one of two below */
            strbuf_printf(xml, format, name);
        }
    }
}

static int thaw_domain(struct libvirt_source *s, struct error *err)
{
    for (int i = 0; i < THAW_TRIES; i++) {
        if (virDomainFSThaw(s->owner->domain, NULL, 0, 0) >= 0) {
            return 0;
        }
    }
    return fail_libvirt(err, "The guest may still be frozen");
}

static int begin_job(struct libvirt_source *s, const char *backup, const char *checkpoint,
                     struct backup_moment *begin, struct backup_moment *end, struct error *err)
{
    int r;

    if (s->options->freeze) {
        virDomainAgentSetResponseTimeout(s->owner->domain, (int)s->options->freeze_timeout_s, 0);
        if (virDomainFSFreeze(s->owner->domain, NULL, 0, 0) < 0) {
            r = fail_libvirt(err, "The guest agent does not freeze");
            thaw_domain(s, NULL);
            return r;
        }
    }
    backup_moment_now(begin);
    r = virDomainBackupBegin(s->owner->domain, backup, checkpoint, 0);
    backup_moment_now(end);
    if (r < 0) {
        r = fail_libvirt(err, "Could not begin a backup");
    }
    return s->options->freeze ? error_first(r, thaw_domain(s, r < 0 ? NULL : err)) : r;
}

static int co_checkpoint_libvirt(struct source *const *sources, size_t count,
                                 struct backup_moment *begin, struct backup_moment *end,
                                 struct error *err)
{
    struct libvirt_source *first = libvirt_source_of(sources[0]);
    const char *started = NULL;
    STRBUF_AUTO(backup);
    STRBUF_AUTO(checkpoint);

    strbuf_printf(&backup,
                  "<domainbackup mode='pull'><server transport='unix' socket='%s'/><disks>",
                  first->owner->fleece.socket);
    for (size_t i = 0; i < count; i++) {
        print_backup_disk(&backup, libvirt_source_of(sources[i]));
        started = sources[i]->started ? sources[i]->started : started;
    }
    print_other_disks(&backup, sources, count, "<disk name='%s' backup='no'/>");
    strbuf_printf(&backup, "</disks></domainbackup>");
    if (started) {
        strbuf_printf(&checkpoint, "<domaincheckpoint><name>%s</name><disks>", started);
        for (size_t i = 0; i < count; i++) {
            strbuf_printf(&checkpoint, "<disk name='%s' checkpoint='%s'/>", sources[i]->name,
                          sources[i]->started ? "bitmap" : "no");
        }
        print_other_disks(&checkpoint, sources, count, "<disk name='%s' checkpoint='no'/>");
        strbuf_printf(&checkpoint, "</disks></domaincheckpoint>");
    }
    return begin_job(first, strbuf_str(&backup), started ? strbuf_str(&checkpoint) : NULL, begin,
                     end, err);
}

static int co_open_view_libvirt(struct source *source, struct pull_input **ret_input,
                                struct error *err)
{
    struct libvirt_source *s = libvirt_source_of(source);
    const struct pull_nbd_config config = {
        .address = &s->address,
        .export_name = source->name,
        .bitmap = source->frozen,
        .connections = 2,
    };

    socket_address_clear(&s->address);
    s->address.path = strdup(s->owner->fleece.socket);
    return s->address.path ? pull_nbd_new(&config, ret_input, err) : error_out_of_memory(err);
}

static int watch_libvirt(struct source *source, struct error *err)
{
    const struct fleece *f = &libvirt_source_of(source)->owner->fleece;

    return fleece_is_short_of_space(f, true)
               ? error_set(err, ENOSPC, "Too little space is left in '%s'", f->place)
               : 0;
}

/* The job is the same for all disks: it is ended with the first one. */
static int co_end_libvirt(struct source *source, const char *last, struct error *err)
{
    return co_settle_libvirt(source, last, err);
}

static void co_explain_libvirt(struct source *source, bool view_failed, struct error *err)
{
}

static void close_domain(struct libvirt_domain *d)
{
    if (--d->users > 0) {
        return;
    }
    if (d->domain) {
        virDomainFree(d->domain);
    }
    if (d->connection) {
        virConnectClose(d->connection);
    }
    fleece_clear(&d->fleece);
    free(d->xml);
    free(d);
}

static void co_close_libvirt(struct source *source)
{
    struct libvirt_source *s = libvirt_source_of(source);

    clear_checkpoints(s);
    socket_address_clear(&s->address);
    close_domain(s->owner);
    free(s->source.name);
    free(s);
}

static int co_thaw_libvirt(struct source *source, struct error *err)
{
    return thaw_domain(libvirt_source_of(source), err);
}

static char *definition_of_libvirt(struct source *source)
{
    return strdup(libvirt_source_of(source)->owner->xml);
}

static const struct source_ops libvirt_source_ops = {
    .one_bitmap = true,
    .co_inspect = co_inspect_libvirt,
    .co_settle = co_settle_libvirt,
    .co_prepare = co_prepare_libvirt,
    .co_checkpoint = co_checkpoint_libvirt,
    .co_open_view = co_open_view_libvirt,
    .co_end = co_end_libvirt,
    .watch = watch_libvirt,
    .co_explain = co_explain_libvirt,
    .co_thaw = co_thaw_libvirt,
    .definition = definition_of_libvirt,
    .co_close = co_close_libvirt,
};

/* --- opening --- */

static int add_libvirt_disk(const struct source_options *options, struct libvirt_domain *d,
                            const char *name, struct source_list *list, struct error *err)
{
    struct libvirt_source *s = calloc(1, sizeof(*s));

    if (!s || source_list_add(list, &s->source) < 0) {
        free(s);
        return error_out_of_memory(err);
    }
    s->source = (struct source){.ops = &libvirt_source_ops, .name = strdup(name)};
    s->options = options;
    s->owner = d;
    d->users++;
    return s->source.name ? 0 : error_out_of_memory(err);
}

/* All disks that the machine can write; no CD-ROMs and floppies. */
static int add_all_disks(const struct source_options *options, struct libvirt_domain *d,
                         struct source_list *list, struct error *err)
{
    const char *pos = d->xml, *start, *end;
    int r = 0;

    while (r == 0 && libvirt_xml_next_disk(&pos, &start, &end)) {
        char *name AUTO_FREE = libvirt_xml_of_element(start, end, "<target ", "dev");
        char *device AUTO_FREE = libvirt_xml_of_element(start, end, "<disk ", "device");
        bool is_read_only = memmem(start, (size_t)(end - start), "<readonly/>", 11) != NULL;
        bool is_empty = memmem(start, (size_t)(end - start), "<source ", 8) == NULL;

        if (name && device && strcmp(device, "disk") == 0 && !is_read_only && !is_empty) {
            r = add_libvirt_disk(options, d, name, list, err);
        }
    }
    return r == 0 && list->count == 0
               ? error_set(err, ENOENT, "Domain '%s' has no disks", options->domain)
               : r;
}

static int open_domain(const struct source_options *options, struct libvirt_domain *d,
                       struct error *err)
{
    const char *host = strstr(options->libvirt_uri, "://");
    int r;

    if (host && host[3] && host[3] != '/') {
        error_set(err, EINVAL, "'%s' is on another host", options->libvirt_uri);
        error_hint(err, "Backups read from a unix socket: run this on the host of the machine.");
        return -EINVAL;
    }
    r = lazy_libvirt_load(err);
    if (r < 0) {
        return r;
    }
    virSetErrorFunc(NULL, ignore_libvirt_error);
    d->connection = virConnectOpen(options->libvirt_uri);
    if (!d->connection) {
        return fail_libvirt(err, "Could not connect to libvirt");
    }
    d->domain = virDomainLookupByName(d->connection, options->domain);
    d->xml = d->domain ? virDomainGetXMLDesc(d->domain, 0) : NULL;
    if (!d->xml) {
        return fail_libvirt(err, "Could not find the domain");
    }
    if (virDomainIsActive(d->domain) != 1) {
        error_set(err, EINVAL, "Domain '%s' is not running", options->domain);
        error_hint(err, "Back up its images with --image.");
        return -EINVAL;
    }
    return 0;
}

int source_libvirt_open(const struct source_options *options, struct source_list *list,
                        struct error *err)
{
    struct libvirt_domain *d = calloc(1, sizeof(*d));
    int r;

    if (!d) {
        return error_out_of_memory(err);
    }
    d->users = 1;
    d->fleece = FLEECE_INIT;
    r = open_domain(options, d, err);
    for (size_t i = 0; r == 0 && i < options->node_count; i++) {
        r = add_libvirt_disk(options, d, options->nodes[i], list, err);
    }
    if (r == 0 && options->node_count == 0) {
        r = add_all_disks(options, d, list, err);
    }
    close_domain(d);
    return r;
}
