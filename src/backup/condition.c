/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/condition.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"

void condition_clear(struct condition *c)
{
    for (size_t i = 0; c->problems && i < c->count; i++) {
        free(c->problems[i]);
    }
    free(c->problems);
    verified_clear(&c->verified);
    *c = (struct condition){0};
}

void condition_time(int64_t at, char ret_text[static CONDITION_TIME_SIZE])
{
    time_t t = (time_t)at;
    struct tm tm;

    if (!gmtime_r(&t, &tm) ||
        strftime(ret_text, CONDITION_TIME_SIZE, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0) {
        snprintf(ret_text, CONDITION_TIME_SIZE, "?");
    }
}

static int set_condition(struct condition *c, size_t i, char *owned_text)
{
    c->problems[i] = owned_text;
    c->damaged += owned_text != NULL;
    return owned_text ? 0 : -ENOMEM;
}

/* What verification has found. */
static int take_found_damage(struct condition *c, size_t i)
{
    char when[CONDITION_TIME_SIZE], *text;
    int n;

    condition_time(c->verified.list[i].at, when);
    n = asprintf(&text, "'tidemark verify' found damage at %s", when);
    return set_condition(c, i, n < 0 ? NULL : text);
}

/* Parents are judged before: then a problem of one is known. */
static int judge_backup(const struct repository *r, struct condition *c, size_t i)
{
    const struct repository_entry *e = &r->entries[i], *parent = NULL;
    ERROR_AUTO(err);
    char *text;

    if (e->problem) {
        return set_condition(c, i, strdup(e->problem));
    }
    if (!manifest_is_full(&e->manifest) && repository_check_parent(r, e, &parent, &err) < 0) {
        return set_condition(c, i, strdup(error_message(&err)));
    }
    if (parent && c->problems[parent - r->entries]) {
        int n = asprintf(&text, "It builds on backup %s, which is damaged", parent->id);

        return set_condition(c, i, n < 0 ? NULL : text);
    }
    return verified_found_damage(&c->verified.list[i]) ? take_found_damage(c, i) : 0;
}

static int compare_sequences(const void *a, const void *b)
{
    const struct repository_entry *const *x = a, *const *y = b;
    uint64_t m = (*x)->manifest.sequence, n = (*y)->manifest.sequence;

    return m < n ? -1 : m > n;
}

int condition_read(const struct repository *r, struct condition *ret_condition)
{
    const struct repository_entry **order AUTO_FREE = NULL;
    int result;

    order = calloc(r->count ?: 1, sizeof(struct repository_entry *));
    result = order ? verified_load(r, &ret_condition->verified) : -ENOMEM;

    if (result < 0) {
        return result;
    }
    ret_condition->problems = calloc(r->count ?: 1, sizeof(*ret_condition->problems));
    if (!ret_condition->problems) {
        return -ENOMEM;
    }
    ret_condition->count = r->count;
    /* A parent has a lower number, wherever the clock has put its id. */
    for (size_t i = 0; i < r->count; i++) {
        order[i] = &r->entries[i];
    }
    qsort(order, r->count, sizeof(struct repository_entry *), compare_sequences);
    for (size_t i = 0; result == 0 && i < r->count; i++) {
        result = judge_backup(r, ret_condition, (size_t)(order[i] - r->entries));
    }
    return result;
}
