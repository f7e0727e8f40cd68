/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/view.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/catalogue.h"
#include "backup/files.h"
#include "backup/layer.h"
#include "backup/point.h"
#include "backup/repository.h"
#include "backup/repository_share.h"
#include "backup/set.h"
#include "backup/set_root.h"
#include "backup/volumes.h"
#include "backup/volumes_inherit.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/list.h"
#include "base/log.h"
#include "base/name_index.h"
#include "co/sync.h"

#define DISK_NAME "disk.raw"
#define PARTITION_NAME "partition-"
#define PROBLEM_NAME "problem.txt"

enum view_kind {
    VIEW_FOLDER,
    VIEW_ROOT,       /* of several directories of backups */
    VIEW_REPOSITORY, /* a directory of backups */
    VIEW_BACKUP,
    VIEW_IMAGE, /* of the disk, or of a partition */
    VIEW_SETS,
    VIEW_SET,
    VIEW_LINK,
    VIEW_TEXT,
};

/* Of a backup. */
struct view_point {
    struct co_mutex lock; /* held while it is opened, closed or examined */
    unsigned users;       /* of `root` */
    struct block_node *node;
    struct block_root *root; /* NULL: it is not open */
    bool examined;           /* its partitions are known */
    struct volumes volumes;  /* as they were found when it was examined last */
};

struct view_node {
    enum view_kind kind;
    bool is_gone;
    uint64_t number; /* the place in view->nodes */
    struct view_node *parent;
    char *name;
    struct view_node **children;
    size_t count;
    struct name_index names; /* of the children */
    struct name_entry entry; /* in the parent's */
    int64_t mtime;
    uint64_t offset, size; /* of an image */
    char *text; /* contents; target of a link; directory of a repository or of sets. Or NULL */
    struct view_point *point; /* NULL: it is no backup */
};

/* Nodes stay for the life of the view, as the kernel may know their numbers. */
struct backup_view {
    char *path;
    struct view_node **nodes; /* the first place is not used */
    size_t count;
};

const char *backup_view_path(const struct backup_view *v)
{
    return v->path;
}

/* --- nodes ------------------------------------------------------------------------------------ */

static void node_free(struct view_node *n)
{
    if (n && n->point) {
        co_mutex_destroy(&n->point->lock);
        volumes_clear(&n->point->volumes);
        free(n->point);
    }
    if (n) {
        free(n->name);
        free(n->children);
        free(n->names.buckets);
        free(n->text);
        free(n);
    }
}

static int append_node(struct view_node ***list, size_t *count, struct view_node *n)
{
    struct view_node **longer = realloc(*list, (*count + 1) * sizeof(struct view_node *));

    if (!longer) {
        return -ENOMEM;
    }
    longer[(*count)++] = n;
    *list = longer;
    return 0;
}

static struct view_node *new_node(struct backup_view *v, struct view_node *parent,
                                  enum view_kind kind, const char *name)
{
    struct view_node *n = calloc(1, sizeof(*n));

    if (!n) {
        return NULL;
    }
    n->kind = kind;
    n->parent = parent;
    n->number = v->count;
    n->name = strdup(name);
    n->point = kind == VIEW_BACKUP ? calloc(1, sizeof(*n->point)) : NULL;
    if (n->point) {
        co_mutex_init(&n->point->lock);
    }
    if (!n->name || (kind == VIEW_BACKUP && !n->point) ||
        (parent && append_node(&parent->children, &parent->count, n) < 0)) {
        node_free(n);
        return NULL;
    }
    if (append_node(&v->nodes, &v->count, n) < 0) {
        if (parent) {
            parent->count--;
        }
        node_free(n);
        return NULL;
    }
    if (parent) {
        name_index_add(&parent->names, &n->entry, n->name);
    }
    return n;
}

static struct view_node *find_child(const struct view_node *n, const char *name)
{
    struct name_entry *found = name_index_find(&n->names, name);

    return found ? container_of(found, struct view_node, entry) : NULL;
}

/* What has had the name is another thing now. */
static void lose_name(struct view_node *n)
{
    name_index_remove(&n->parent->names, &n->entry);
    n->name[0] = '\0';
    n->is_gone = true;
}

/* The child of that name and kind, which is there. NULL: no memory. */
static struct view_node *need_child(struct backup_view *v, struct view_node *n, enum view_kind kind,
                                    const char *name)
{
    struct view_node *child = find_child(n, name);

    if (child && child->kind != kind) {
        lose_name(child);
        child = NULL;
    }
    child = child ?: new_node(v, n, kind, name);
    if (child) {
        child->is_gone = false;
    }
    return child;
}

static int set_view_text(struct view_node *n, const char *text)
{
    char *copy = strdup(text);

    if (!copy) {
        return -ENOMEM;
    }
    free(n->text);
    n->text = copy;
    return 0;
}

/* A child with a text, or a link. The text of a file that somebody reads does not change. */
static int need_text(struct backup_view *v, struct view_node *n, enum view_kind kind,
                     const char *name, const char *text)
{
    struct view_node *child = need_child(v, n, kind, name);

    if (child && child->text && strcmp(child->text, text) != 0) {
        lose_name(child);
        child = new_node(v, n, kind, name);
    }
    if (!child) {
        return -ENOMEM;
    }
    child->mtime = n->mtime;
    child->is_gone = !child->text && set_view_text(child, text) < 0;
    return child->is_gone ? -ENOMEM : 0;
}

/* Everything below is gone until it is found again. */
static void forget_children(struct view_node *n)
{
    for (size_t i = 0; i < n->count; i++) {
        n->children[i]->is_gone = true;
    }
}

/* The problem alone is left in `n`. It is logged once. */
static int need_problem(struct backup_view *v, struct view_node *n, const char *problem)
{
    char *text AUTO_FREE = NULL;
    struct view_node *known = find_child(n, PROBLEM_NAME);

    forget_children(n);
    if (asprintf(&text, "%s\n", problem) < 0) {
        text = NULL;
        return -ENOMEM;
    }
    if (!known || !known->text || strcmp(known->text, text) != 0) {
        log_warning("'%s': %s", n->name[0] ? n->name : v->path, problem);
    }
    return need_text(v, n, VIEW_TEXT, PROBLEM_NAME, text);
}

static void end_problem(struct view_node *n)
{
    struct view_node *known = find_child(n, PROBLEM_NAME);

    if (known) {
        lose_name(known);
    }
}

/* --- what there is ---------------------------------------------------------------------------- */

static int refresh_backup(struct backup_view *v, struct view_node *parent,
                          const struct repository_entry *e)
{
    struct view_node *n = need_child(v, parent, VIEW_BACKUP, e->id), *image;
    int64_t seconds;

    if (!n) {
        return -ENOMEM;
    }
    if (e->problem) {
        n->point->examined = false;
        return need_problem(v, n, e->problem);
    }
    seconds = MAX(backup_moment_seconds(&e->manifest.end), 0);
    image = find_child(n, DISK_NAME);
    if (!image || image->is_gone || image->size != e->manifest.virtual_size ||
        n->mtime != seconds) {
        /* It was damaged, or is another one. */
        forget_children(n);
        n->point->examined = false;
    }
    end_problem(n);
    n->mtime = seconds;
    parent->mtime = MAX(parent->mtime, n->mtime);
    image = need_child(v, n, VIEW_IMAGE, DISK_NAME);
    if (!image) {
        return -ENOMEM;
    }
    image->mtime = n->mtime;
    image->size = e->manifest.virtual_size;
    return 0;
}

static int take_entries_of(struct backup_view *v, struct view_node *n, const struct repository *r)
{
    int result = 0;

    end_problem(n);
    forget_children(n);
    for (size_t i = 0; result == 0 && i < r->count; i++) {
        result = refresh_backup(v, n, &r->entries[i]);
    }
    return result;
}

static int refresh_repository(struct backup_view *v, struct view_node *n)
{
    REPOSITORY_AUTO(repository);
    ERROR_AUTO(err);
    int r = repository_open(n->text, &repository, &err);

    if (r == 0) {
        return take_entries_of(v, n, &repository);
    }
    return r == -ENOMEM || access(n->text, F_OK) < 0 ? r : need_problem(v, n, error_message(&err));
}

static int refresh_set(struct backup_view *v, struct view_node *parent, const struct set *s)
{
    struct view_node *n = need_child(v, parent, VIEW_SET, s->id);
    int r = n ? 0 : -ENOMEM;

    if (r < 0) {
        return r;
    }
    if (s->damaged) {
        return need_problem(v, n, "The set is damaged");
    }
    end_problem(n);
    forget_children(n);
    n->mtime = MAX(backup_moment_seconds(&s->end), 0);
    for (size_t i = 0; r == 0 && i < s->count; i++) {
        const struct set_disk *d = &s->disks[i];
        char *name AUTO_FREE = NULL, *text AUTO_FREE = NULL;

        if (asprintf(&name, d->problem ? "%s." PROBLEM_NAME : "%s", d->directory) < 0) {
            name = NULL;
            return -ENOMEM;
        }
        if (d->problem ? asprintf(&text, "%s\n", d->problem) < 0
                       : asprintf(&text, "../../%s/%s", d->directory, d->backup) < 0) {
            text = NULL;
            return -ENOMEM;
        }
        r = need_text(v, n, d->problem ? VIEW_TEXT : VIEW_LINK, name, text);
    }
    return r;
}

static int refresh_sets(struct backup_view *v, struct view_node *n, struct error *err)
{
    struct set_list sets = {0};
    int r = set_read_all(n->text, &sets, err);

    UNLESS_FAILED(r, set_list_examine(&sets, n->text, err));
    if (r == 0) {
        forget_children(n);
    }
    for (size_t i = 0; r == 0 && i < sets.count; i++) {
        r = refresh_set(v, n, &sets.list[i]);
    }
    set_list_clear(&sets);
    return r;
}

/* The folders that a path below the root leads through. NULL: no memory. */
static struct view_node *need_folders(struct backup_view *v, const char *path)
{
    struct view_node *n = v->nodes[FUSE_TREE_ROOT];
    char *copy AUTO_FREE = strdup(path), *rest = copy, *name;

    while (copy && n && (name = strsep(&rest, "/")) != NULL) {
        n = need_child(v, n, rest ? VIEW_FOLDER : VIEW_REPOSITORY, name);
    }
    return copy ? n : NULL;
}

static int refresh_entry(struct backup_view *v, const struct catalogue *c,
                         const struct catalogue_entry *e)
{
    struct view_node *n = need_folders(v, e->path), *sets;
    char *path AUTO_FREE = files_join(c->root, e->path);
    char *slash = path ? strrchr(path, '/') : NULL;
    int r;

    if (!n || !path) {
        return -ENOMEM;
    }
    r = set_view_text(n, path);
    if (r == 0 && e->repository.fd >= 0) {
        r = take_entries_of(v, n, &e->repository);
    } else if (r == 0) {
        r = need_problem(v, n, e->problem);
    }
    *slash = '\0';
    if (r == 0 && set_is_root(path)) {
        sets = need_child(v, n->parent, VIEW_SETS, SET_DIRECTORY);
        r = sets ? set_view_text(sets, path) : -ENOMEM;
    }
    return r;
}

/* All that is to be found again; what is in a repository, or among sets, when that is read. */
static void forget_folders(struct view_node *n)
{
    for (size_t i = 0; i < n->count; i++) {
        n->children[i]->is_gone = true;
        if (n->children[i]->kind == VIEW_FOLDER) {
            forget_folders(n->children[i]);
        }
    }
}

static int refresh_root(struct backup_view *v, const struct catalogue *c)
{
    int r = 0;

    forget_folders(v->nodes[FUSE_TREE_ROOT]);
    for (size_t i = 0; r == 0 && i < c->count; i++) {
        r = refresh_entry(v, c, &c->list[i]);
    }
    return r;
}

static int read_root(struct backup_view *v, struct error *err)
{
    struct catalogue c = {0};
    int r = catalogue_read(v->path, &c, err);

    UNLESS_FAILED(r, refresh_root(v, &c));
    catalogue_clear(&c);
    return r;
}

/* See what there is by now. */
static int refresh(struct backup_view *v, struct view_node *n)
{
    ERROR_AUTO(err);
    int r = 0;

    if (n->kind == VIEW_ROOT) {
        r = read_root(v, &err);
    } else if (n->kind == VIEW_REPOSITORY) {
        r = refresh_repository(v, n);
    } else if (n->kind == VIEW_SETS) {
        r = refresh_sets(v, n, &err);
    }
    if (r < 0) {
        log_error("%s", error_is_set(&err) ? error_message(&err) : strerror(-r));
        return r == -ENOMEM || r == -ENOENT ? r : -EIO;
    }
    return 0;
}

/* --- points in time --------------------------------------------------------------------------- */

static int co_open_disk(const struct view_node *n, struct error *err)
{
    struct view_point *p = n->point;
    struct options *opts = options_new();
    int r;

    if (!opts) {
        return error_out_of_memory(err);
    }
    options_set_str(opts, "driver", POINT_DRIVER);
    options_set_str(opts, "repository", n->parent->text);
    options_set_str(opts, "at", n->name);
    r = block_co_open(opts, 0, &p->node, err);
    UNLESS_FAILED(r, block_co_root_new(p->node, "mount", BLOCK_PERM_CONSISTENT_READ, BLOCK_PERM_ALL,
                                       &p->root, err));
    if (r < 0 && p->node) {
        block_co_unref(TAKE_PTR(p->node));
    }
    return r;
}

static void co_close_disk(struct view_point *p)
{
    if (p->root) {
        block_co_root_release(TAKE_PTR(p->root));
        block_co_unref(TAKE_PTR(p->node));
    }
}

static int co_begin_use_locked(struct view_node *n)
{
    ERROR_AUTO(err);
    int r = n->point->root ? 0 : co_open_disk(n, &err);

    if (r < 0) {
        log_error("%s", error_message(&err));
        return r == -ENOENT || r == -ENOMEM ? r : -EIO;
    }
    n->point->users++;
    return 0;
}

static void co_end_use_locked(struct view_node *n)
{
    if (--n->point->users == 0) {
        co_close_disk(n->point);
    }
}

static int add_partition(struct backup_view *v, struct view_node *n, const struct volume *volume)
{
    struct view_node *image;
    char name[64];

    if (volume->number == 0) {
        return 0; /* the whole disk */
    }
    snprintf(name, sizeof(name), PARTITION_NAME "%u.%s", volume->number,
             volume->type[0] ? volume->type : "raw");
    image = need_child(v, n, VIEW_IMAGE, name);
    if (!image) {
        return -ENOMEM;
    }
    image->offset = volume->offset;
    image->size = volume->size;
    image->mtime = n->mtime;
    return 0;
}

/* Open the backup and read its partition tables. */
static int co_read_volumes_locked(struct view_node *n, struct volumes *ret_volumes)
{
    ERROR_AUTO(err);
    int r = co_begin_use_locked(n);

    if (r < 0) {
        return r;
    }
    r = volumes_co_find(block_root_edge(n->point->root), ret_volumes, &err);
    if (r < 0) {
        log_error("'%s': %s", n->name, error_is_set(&err) ? error_message(&err) : strerror(-r));
    } else if (ret_volumes->problem) {
        log_warning("'%s': %s", n->name, ret_volumes->problem);
    }
    co_end_use_locked(n);
    return r;
}

/* What another backup in the same directory was found to have. */
static const struct volumes *known_volumes_of(void *arg, const struct repository_entry *e)
{
    const struct view_node *n = find_child(arg, e->id);

    return n && n->kind == VIEW_BACKUP && !n->is_gone && n->point->examined &&
                   n->mtime == MAX(backup_moment_seconds(&e->manifest.end), 0)
               ? &n->point->volumes
               : NULL;
}

static void co_examine_locked(struct backup_view *v, struct view_node *n)
{
    VOLUMES_AUTO(volumes);
    int r = 0;

    if (!volumes_co_inherit(n->parent->text, n->name, known_volumes_of, n->parent, &volumes)) {
        r = co_read_volumes_locked(n, &volumes);
    }
    for (size_t i = 0; r == 0 && i < volumes.count; i++) {
        r = add_partition(v, n, &volumes.list[i]);
    }
    n->point->examined = r == 0;
    if (r == 0) {
        volumes_clear(&n->point->volumes);
        n->point->volumes = volumes;
        volumes = (struct volumes){0};
    }
}

/* Find the partitions. Where the table can't be read there is the image of the disk alone. */
static void co_examine(struct backup_view *v, struct view_node *n)
{
    struct view_node *image = find_child(n, DISK_NAME);

    if (!image || image->is_gone) {
        return;
    }
    co_mutex_lock(&n->point->lock);
    if (!n->point->examined) {
        co_examine_locked(v, n);
    }
    co_mutex_unlock(&n->point->lock);
}

/* --- operations ------------------------------------------------------------------------------- */

static struct view_node *node_at(const struct backup_view *v, uint64_t number)
{
    return number > 0 && number < v->count ? v->nodes[number] : NULL;
}

static mode_t view_type_of(const struct view_node *n)
{
    return n->kind == VIEW_LINK                            ? S_IFLNK
           : n->kind == VIEW_IMAGE || n->kind == VIEW_TEXT ? S_IFREG
                                                           : S_IFDIR;
}

static void describe_view(const struct view_node *n, struct fuse_tree_entry *ret_entry)
{
    mode_t type = view_type_of(n);

    *ret_entry = (struct fuse_tree_entry){.number = n->number, .type = type, .mtime = n->mtime};
    ret_entry->size = n->kind == VIEW_IMAGE ? n->size : type != S_IFDIR ? strlen(n->text) : 0;
}

static int view_look(void *arg, uint64_t number, struct fuse_tree_entry *ret_entry)
{
    const struct view_node *n = node_at(arg, number);

    if (!n) {
        return -ENOENT;
    }
    describe_view(n, ret_entry);
    return 0;
}

static int view_co_find(void *arg, uint64_t directory, const char *name,
                        struct fuse_tree_entry *ret_entry)
{
    struct backup_view *v = arg;
    struct view_node *n = node_at(v, directory), *child;
    int r = 0;

    if (!n || view_type_of(n) != S_IFDIR) {
        return n ? -ENOTDIR : -ENOENT;
    }
    child = find_child(n, name);
    if (!child || child->is_gone) {
        if (n->kind == VIEW_BACKUP) {
            if (strncmp(name, PARTITION_NAME, strlen(PARTITION_NAME)) == 0) {
                co_examine(v, n);
            }
        } else {
            r = refresh(v, n);
        }
        child = r == 0 ? find_child(n, name) : NULL;
    }
    if (!child || child->is_gone) {
        return r < 0 ? r : -ENOENT;
    }
    describe_view(child, ret_entry);
    return 0;
}

static int view_co_list(void *arg, uint64_t directory, struct fuse_tree_list *list)
{
    struct backup_view *v = arg;
    struct view_node *n = node_at(v, directory);
    struct fuse_tree_entry e;
    int r = n ? refresh(v, n) : -ENOENT;

    if (r < 0) {
        return r;
    }
    if (n->kind == VIEW_BACKUP) {
        co_examine(v, n);
    }
    describe_view(n, &e);
    r = fuse_tree_list_add(list, ".", &e);
    describe_view(n->parent ?: n, &e);
    UNLESS_FAILED(r, fuse_tree_list_add(list, "..", &e));
    for (size_t i = 0; r == 0 && i < n->count; i++) {
        if (!n->children[i]->is_gone) {
            describe_view(n->children[i], &e);
            r = fuse_tree_list_add(list, n->children[i]->name, &e);
        }
    }
    return r;
}

static const char *view_target(void *arg, uint64_t link)
{
    const struct view_node *n = node_at(arg, link);

    return n && n->kind == VIEW_LINK ? n->text : NULL;
}

static int view_co_open(void *arg, uint64_t file, struct fuse_tree_file *ret_file)
{
    struct view_node *n = node_at(arg, file), *backup = n ? n->parent : NULL;
    int r;

    if (!n || (n->kind != VIEW_TEXT && n->kind != VIEW_IMAGE)) {
        return n ? -EISDIR : -ENOENT;
    }
    if (n->kind == VIEW_TEXT) {
        *ret_file = (struct fuse_tree_file){.text = n->text, .size = strlen(n->text)};
        return 0;
    }
    co_mutex_lock(&backup->point->lock);
    r = co_begin_use_locked(backup);
    if (r == 0) {
        *ret_file = (struct fuse_tree_file){
            .edge = block_root_edge(backup->point->root), .offset = n->offset, .size = n->size};
    }
    co_mutex_unlock(&backup->point->lock);
    return r;
}

static void view_co_close(void *arg, uint64_t file)
{
    struct view_node *n = node_at(arg, file);

    if (n->kind == VIEW_IMAGE) {
        co_mutex_lock(&n->parent->point->lock);
        co_end_use_locked(n->parent);
        co_mutex_unlock(&n->parent->point->lock);
    }
}

const struct fuse_tree_ops backup_view_ops = {
    .look = view_look,
    .co_find = view_co_find,
    .co_list = view_co_list,
    .target = view_target,
    .co_open = view_co_open,
    .co_close = view_co_close,
};

/* --- the view --------------------------------------------------------------------------------- */

/* What the root is: a directory of backups, or one that has several of them below. */
static int begin_view(struct backup_view *v, const struct catalogue *c, struct error *err)
{
    bool single = c->count == 1 && strcmp(c->list[0].path, ".") == 0;
    struct view_node *root;
    int r;

    if (c->count == 0) {
        return error_set(err, ENOENT, "There are no backups in '%s'", c->root);
    }
    root = new_node(v, NULL, single ? VIEW_REPOSITORY : VIEW_ROOT, "");
    if (!root) {
        return error_out_of_memory(err);
    }
    if (!single) {
        r = refresh_root(v, c);
        return r < 0 ? error_out_of_memory(err) : 0;
    }
    r = set_view_text(root, c->root);
    if (r == 0) {
        REPOSITORY_AUTO(repository);

        r = repository_open(c->root, &repository, err);
        if (r < 0) {
            return r;
        }
        r = take_entries_of(v, root, &repository);
    }
    return r < 0 ? error_out_of_memory(err) : 0;
}

static void view_free(struct backup_view *v)
{
    for (size_t i = 1; i < v->count; i++) {
        node_free(v->nodes[i]);
    }
    free(v->nodes);
    free(v->path);
    free(v);
}

int backup_view_open(const char *path, struct backup_view **ret_view, struct error *err)
{
    struct backup_view *v = calloc(1, sizeof(*v));
    struct catalogue c = {0};
    int r;

    if (!v || append_node(&v->nodes, &v->count, NULL) < 0) {
        free(v);
        return error_out_of_memory(err);
    }
    r = catalogue_read(path, &c, err);
    if (r == 0) {
        v->path = strdup(c.root);
        r = v->path ? begin_view(v, &c, err) : error_out_of_memory(err);
    }
    catalogue_clear(&c);
    if (r < 0) {
        view_free(v);
        return r;
    }
    layers_hold();
    repositories_hold();
    *ret_view = v;
    return 0;
}

void backup_view_co_free(struct backup_view *v)
{
    for (size_t i = 1; v && i < v->count; i++) {
        if (v->nodes[i]->point) {
            co_close_disk(v->nodes[i]->point);
        }
    }
    if (v) {
        repositories_let_go();
        layers_let_go();
        view_free(v);
    }
}
