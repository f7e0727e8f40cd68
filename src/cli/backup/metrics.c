/* SPDX-License-Identifier: Apache-2.0 */
/* The face that tells monitoring of repositories, in the text format of Prometheus. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backup/condition.h"
#include "backup/repository.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "cli/args.h"
#include "cli/backup/faces.h"
#include "cli/cli.h"
#include "cli/observe.h"

/* How deep repositories are looked for below a directory that is none. */
#define DEPTH_MAX 6

static const struct cli_usage metrics_usage = {
    .synopsis = "DIR...",
    .about =
        "Prints figures of repositories of backups for monitoring, in the text format of "
        "Prometheus:\n"
        "when the last backup was taken, its size, what it stored, and what was verified when. DIR "
        "is a\n"
        "repository, or a directory with repositories. With --to writes a file that the collector "
        "of\n"
        "text files of the node exporter reads; it is replaced as a whole.",
    .examples = "@/backups/disk\n"
                "@--to /var/lib/prometheus/node-exporter/tidemark.prom /backups",
};

enum metric {
    LAST_SUCCESS,
    AGE,
    SEQUENCE,
    FULL,
    DISK,
    CHANGED,
    MOVED,
    STORED,
    DURATION,
    COUNT,
    DAMAGED,
    TOTAL_STORED,
    VERIFIED_LAST,
    VERIFIED_OLDEST,
    NEVER_VERIFIED,
    PROBLEM,
    METRICS
};

/* docs/backup.md lists them. */
static const struct {
    const char *name, *help;
} metrics[METRICS] = {
    [LAST_SUCCESS] = {"backup_last_success_timestamp_seconds", "When the newest backup was taken."},
    [AGE] = {"backup_age_seconds", "Time since then, when this was written."},
    [SEQUENCE] = {"backup_sequence", "Number of the newest backup; grows with each."},
    [FULL] = {"backup_full", "1 if the newest backup is a full one, else 0."},
    [DISK] = {"backup_disk_bytes", "Size of the disk at the newest backup."},
    [CHANGED] = {"backup_changed_bytes", "What had changed at the newest backup."},
    [MOVED] = {"backup_moved_bytes", "What was read for the newest backup."},
    [STORED] = {"backup_stored_bytes", "Space that the newest backup takes."},
    [DURATION] = {"backup_duration_seconds", "How long the newest backup took."},
    [COUNT] = {"backups", "Backups in the repository."},
    [DAMAGED] = {"backups_damaged",
                 "Backups that can't be restored, as far as is known: verify looks."},
    [TOTAL_STORED] = {"backups_stored_bytes", "Space that all backups take."},
    [VERIFIED_LAST] = {"backups_verified_newest_timestamp_seconds",
                       "When a backup was verified last; 0: never."},
    [VERIFIED_OLDEST] = {"backups_verified_oldest_timestamp_seconds",
                         "Since when all backups were verified; 0: one was never."},
    [NEVER_VERIFIED] = {"backups_never_verified", "Backups that were never verified."},
    [PROBLEM] = {"repository_problem", "1 if the next backup fails, or the newest one is damaged."},
};

struct figures {
    char *repository, *disk; /* labels */
    double value[METRICS];
    bool none; /* there is no backup yet: most figures are unknown */
};

struct all_figures {
    struct figures *list;
    size_t count;
};

/* --- one repository --------------------------------------------------------------------------- */

/* Seconds since 1970 of a moment in a manifest; 0 if it is not understood. */
static double moment_seconds(const struct backup_moment *m)
{
    struct tm tm = {0};
    const char *rest = strptime(m->utc, "%Y-%m-%dT%H:%M:%S", &tm);

    return rest ? (double)timegm(&tm) + (*rest == '.' ? strtod(rest, NULL) : 0) : 0;
}

static void add_condition(const struct repository *r, double *value)
{
    CONDITION_AUTO(condition);

    if (condition_read(r, &condition) < 0) {
        return;
    }
    value[DAMAGED] = (double)condition.damaged;
    if (condition.count && condition.problems[condition.count - 1]) {
        value[PROBLEM] = 1;
    }
    for (size_t i = 0; i < condition.count; i++) {
        const struct verified_entry *e = &condition.verified.list[i];

        value[NEVER_VERIFIED] += !e->at;
        value[VERIFIED_LAST] = MAX(value[VERIFIED_LAST], (double)e->at);
        if (i == 0 || (double)e->at < value[VERIFIED_OLDEST]) {
            value[VERIFIED_OLDEST] = (double)e->at;
        }
    }
}

static void add_newest(const struct manifest *m, double *value)
{
    value[LAST_SUCCESS] = moment_seconds(&m->end);
    value[AGE] = MAX((double)time(NULL) - value[LAST_SUCCESS], 0);
    value[SEQUENCE] = (double)m->sequence;
    value[FULL] = manifest_is_full(m);
    value[DISK] = (double)m->virtual_size;
    value[CHANGED] = (double)m->changed;
    value[MOVED] = (double)m->moved;
    value[STORED] = (double)m->stored;
    value[DURATION] = (double)m->duration_ms / 1000;
}

static int add_disk_figures(struct all_figures *all, const struct repository *r)
{
    struct figures *list = realloc(all->list, (all->count + 1) * sizeof(*list));
    const struct repository_entry *last = repository_last(r);
    struct figures *f;

    if (!list) {
        return -ENOMEM;
    }
    all->list = list;
    f = &list[all->count];
    *f = (struct figures){.repository = strdup(r->path),
                          .disk = strdup(last && last->manifest.node ? last->manifest.node : ""),
                          .none = !last};
    all->count++;
    if (!f->repository || !f->disk) {
        return -ENOMEM;
    }
    if (last) {
        add_newest(&last->manifest, f->value);
    }
    for (size_t i = 0; i < r->count; i++) {
        f->value[TOTAL_STORED] += (double)r->entries[i].manifest.stored;
    }
    f->value[COUNT] = (double)r->count;
    f->value[PROBLEM] = r->problem || repository_damaged_last(r);
    add_condition(r, f->value);
    return 0;
}

/* --- finding them ----------------------------------------------------------------------------- */

static int find_figures(struct all_figures *all, const char *path, int depth, struct error *err);

static int is_sub_directory(const struct dirent *d)
{
    return d->d_name[0] != '.';
}

/* The repositories below a directory, by name. */
static int find_repositories_below(struct all_figures *all, const char *path, int depth,
                                   struct error *err)
{
    struct dirent **entries = NULL;
    int count = scandir(path, &entries, is_sub_directory, alphasort);
    int r = 0;

    for (int i = 0; i < count; i++) {
        char *sub AUTO_FREE = NULL;
        struct stat st;

        if (asprintf(&sub, "%s/%s", path, entries[i]->d_name) < 0) {
            sub = NULL;
            r = error_out_of_memory(err);
        } else if (r == 0 && lstat(sub, &st) == 0 && S_ISDIR(st.st_mode)) {
            r = find_figures(all, sub, depth + 1, err);
        }
        free(entries[i]);
    }
    free(entries);
    return r;
}

static int find_figures(struct all_figures *all, const char *path, int depth, struct error *err)
{
    REPOSITORY_AUTO(repository);
    ERROR_AUTO(problem);
    size_t before = all->count;
    int r = repository_open(path, &repository, &problem);

    if (r == 0) {
        return add_disk_figures(all, &repository) < 0 ? error_out_of_memory(err) : 0;
    }
    r = depth < DEPTH_MAX ? find_repositories_below(all, path, depth, err) : 0;
    if (r == 0 && depth == 0 && all->count == before) {
        /* What the user names has to be there: silence would look like health. */
        error_move(err, &problem);
        return -ENOENT;
    }
    return r;
}

/* --- printing --------------------------------------------------------------------------------- */

static void print_label(FILE *f, const char *name, const char *text)
{
    fprintf(f, "%s=\"", name);
    for (; *text; text++) {
        if (*text == '\\' || *text == '"') {
            fputc('\\', f);
        }
        fputs(*text == '\n' ? "\\n" : (char[]){*text, '\0'}, f);
    }
    fputc('"', f);
}

/* Whether the figure means something where there is no backup yet. */
static bool is_of_repository(enum metric m)
{
    return m == COUNT || m == DAMAGED || m == TOTAL_STORED || m == PROBLEM || m == NEVER_VERIFIED;
}

static void print_all_figures(FILE *f, const struct all_figures *all)
{
    for (enum metric m = 0; m < METRICS; m++) {
        fprintf(f, "# HELP tidemark_%s %s\n# TYPE tidemark_%s gauge\n", metrics[m].name,
                metrics[m].help, metrics[m].name);
        for (size_t i = 0; i < all->count; i++) {
            const struct figures *figures = &all->list[i];

            if (figures->none && !is_of_repository(m)) {
                continue;
            }
            fprintf(f, "tidemark_%s{", metrics[m].name);
            print_label(f, "repository", figures->repository);
            fputc(',', f);
            print_label(f, "disk", figures->disk);
            fprintf(f, "} %.15g\n", figures->value[m]);
        }
    }
}

/* Replace the file; readers see the old one or the new one. */
static int write_figures(const char *path, const struct all_figures *all, struct error *err)
{
    char *tmp AUTO_FREE = NULL;
    FILE *f = NULL;
    int fd, r = 0;

    if (asprintf(&tmp, "%s.XXXXXX", path) < 0) {
        tmp = NULL;
        return error_out_of_memory(err);
    }
    fd = mkostemp(tmp, O_CLOEXEC);
    if (fd >= 0) {
        fchmod(fd, 0644);
        f = fdopen(fd, "w");
    }
    if (!f) {
        return error_set_errno(err, errno, "Could not make '%s'", tmp);
    }
    print_all_figures(f, all);
    if (fflush(f) != 0 || ferror(f) || rename(tmp, path) < 0) {
        r = error_set_errno(err, errno, "Could not write '%s'", path);
        unlink(tmp);
    }
    fclose(f);
    return r;
}

static void all_figures_clear(struct all_figures *all)
{
    for (size_t i = 0; i < all->count; i++) {
        free(all->list[i].repository);
        free(all->list[i].disk);
    }
    free(all->list);
}

int cli_metrics_main(int argc, char **argv)
{
    CLEANUP(all_figures_clear) struct all_figures all = {0};
    CLI_OBSERVE_AUTO(observe);
    const char *to = NULL;
    ERROR_AUTO(err);
    const struct cli_arg args[] = {
        {"to", 0, CLI_VALUE, &to, "FILE", "write to this file, and not to standard output"},
        BACKUP_KEY_ARGS,
        CLI_OBSERVE_ARGS(observe),
        CLI_ARG_END,
    };
    int first = cli_args_parse(args, &metrics_usage, argc, argv);
    int status, r = 0;

    if (first < 0) {
        return cli_exit_status(first, &err);
    }
    if (first == argc) {
        cli_usage_error(&err, &metrics_usage, "expecting directories");
        return cli_report(&err);
    }
    if (!cli_observe(&observe, &status)) {
        return status;
    }
    for (int i = first; r == 0 && i < argc; i++) {
        r = find_figures(&all, argv[i], 0, &err);
    }
    if (r == 0 && to) {
        r = write_figures(to, &all, &err);
    } else if (r == 0) {
        print_all_figures(stdout, &all);
    }
    return r < 0 ? cli_report(&err) : cli_end_output(0);
}
