/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/set_sign.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backup/set.h"
#include "base/cleanup.h"

#define DESCRIPTION "set.json"

/* The sets without a right code: those of which something is known go to *ret_list. */
static int find_unproved(const char *root, const struct set_list *all, struct set_list *ret_list,
                         struct repair_result *result, struct error *err)
{
    ret_list->list = calloc(all->count ?: 1, sizeof(*ret_list->list));
    if (!ret_list->list) {
        return error_out_of_memory(err);
    }
    for (size_t i = 0; i < all->count; i++) {
        struct set *s = &ret_list->list[ret_list->count];
        ERROR_AUTO(why);
        int r;

        if (!all->list[i].damaged) {
            continue;
        }
        r = set_read_unproved(root, all->list[i].id, s, &why);
        if (r == 0 && s->has_code) {
            r = error_set(&why, EBADMSG, "It was changed by somebody without the key");
            set_clear(s);
        }
        ret_list->count += r == 0;
        if (r < 0 && r != -EBADMSG) {
            error_move(err, &why);
            return r;
        }
        if (r < 0 && repair_result_add(result, all->list[i].id, DESCRIPTION, error_message(&why),
                                       false) < 0) {
            return error_out_of_memory(err);
        }
    }
    return 0;
}

/* Sign a set, with its definition as it is now. *ret_problem: why that can't be done. */
static int sign_set(const char *root, struct set *s, const struct set_key *key,
                    struct error *ret_problem, struct error *err)
{
    const struct set_disk *d = set_problem_disk(s);
    int r;

    if (d) {
        error_set(ret_problem, EBADMSG, "%s", d->problem);
        return 0;
    }
    r = set_sum_definition(root, s, ret_problem);
    if (r < 0 && r != -EBADMSG) {
        error_move(err, ret_problem);
        return r;
    }
    return r < 0 ? 0 : set_rewrite(root, s, key, err);
}

static int sign_proved(const char *root, const struct set_list *list, const struct set_key *key,
                       struct repair_result *result, struct error *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < list->count; i++) {
        struct set *s = &list->list[i];
        ERROR_AUTO(problem);
        bool failed;

        r = sign_set(root, s, key, &problem, err);
        failed = error_is_set(&problem);
        if (r == 0 &&
            repair_result_add(result, s->id, DESCRIPTION,
                              failed ? error_message(&problem) : "It had no code of the key",
                              !failed) < 0) {
            r = error_out_of_memory(err);
        }
    }
    return r;
}

static int check_program_has_key(struct error *err)
{
    const struct backup_key *key;
    int r = backup_key_get(NULL, &key, err);

    return r == 0 && !key ? error_set(err, ENOKEY,
                                      "There is no key to sign with: name its file with --key-file")
                          : r;
}

int set_sign_all(const char *root, struct repair_result *ret_result, struct error *err)
{
    struct set_list all = {0}, unproved = {0};
    struct set_key key;
    int r = check_program_has_key(err);

    UNLESS_FAILED(r, set_read_all(root, &all, err));
    UNLESS_FAILED(r, find_unproved(root, &all, &unproved, ret_result, err));
    UNLESS_FAILED(r, set_list_prove(&unproved, root, &key, err));
    UNLESS_FAILED(r, sign_proved(root, &unproved, &key, ret_result, err));
    if (r == 0 && ret_result->count == 0) {
        r = error_set(err, EINVAL, "All sets in '%s' have the code of the key", root);
    }
    if (r == 0) {
        ret_result->path = strdup(root);
        ret_result->sets = all.count;
        r = ret_result->path ? 0 : error_out_of_memory(err);
    }
    set_list_clear(&unproved);
    set_list_clear(&all);
    return r;
}
