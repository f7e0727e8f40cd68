/* SPDX-License-Identifier: Apache-2.0 */
/* The index of names against a plain array. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/list.h"
#include "base/name_index.h"

#define ITEMS 500

struct item {
    struct name_entry entry;
    char name[12];
    unsigned age; /* a greater one was added later; 0: not in the index */
};

static struct item items[ITEMS];

static uint32_t next_random(void)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(state >> 33);
}

/* Of those with this name, the latest that was added before `before`. */
static struct item *expected(const char *name, unsigned before)
{
    struct item *found = NULL;

    for (size_t i = 0; i < ITEMS; i++) {
        bool matches = items[i].age && items[i].age < before && strcmp(items[i].name, name) == 0;

        found = matches && (!found || items[i].age > found->age) ? &items[i] : found;
    }
    return found;
}

static void check_name(const struct name_index *index, const char *name)
{
    struct name_entry *entry = name_index_find(index, name);
    struct item *item = expected(name, UINT32_MAX);

    while (item) {
        assert_ptr_equal(entry, &item->entry);
        entry = name_index_find_next(entry);
        item = expected(name, item->age);
    }
    assert_null(entry);
}

static void test_finds_what_an_array_finds(void **state)
{
    struct name_index index = {0};
    unsigned age = 0;

    for (int step = 0; step < 6000; step++) {
        /* It fills up, and empties again. */
        struct item *item = &items[next_random() % ITEMS];
        bool add = next_random() % 4 < (step < 3000 ? 3 : 1);

        if (add && !item->age) {
            snprintf(item->name, sizeof(item->name), "n%u", next_random() % (ITEMS / 2));
            item->age = ++age;
            name_index_add(&index, &item->entry, item->name);
        } else if (!add) {
            item->age = 0;
            name_index_remove(&index, &item->entry);
            assert_null(item->entry.name);
        }
        check_name(&index, item->name);
    }
    free(index.buckets);
}

static void test_an_empty_index_has_no_names(void **state)
{
    struct name_index index = {0};
    struct name_entry entry = {0};

    assert_null(name_index_find(&index, "a"));
    name_index_remove(&index, &entry);
    name_index_add(&index, &entry, "");
    assert_ptr_equal(name_index_find(&index, ""), &entry);
    assert_null(name_index_find(&index, "a"));
    free(index.buckets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_what_an_array_finds),
        cmocka_unit_test(test_an_empty_index_has_no_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
