/* SPDX-License-Identifier: Apache-2.0 */
/* A member of an enumeration of figures without a row would end the table: rows after it vanish. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/counters.h"
#include "block/stats.h"
#include "loop/stats.h"
#include "nbd/stats.h"
#include "qcow2/stats.h"

/* `values`: of the enumeration. */
static void check(const char *name, const struct stat_desc *table, size_t values)
{
    const struct stat_desc *last = table;

    for (; last->name; last++) {
        assert_non_null(last->help);
    }
    if (stat_table_width(table) != values) {
        fail_msg("%s has rows for %zu of %zu values: the first one without a row follows '%s'",
                 name, stat_table_width(table), values, last > table ? last[-1].name : "");
    }
}

static void test_every_figure_has_a_row(void **state)
{
    check("reactor_stats", reactor_stats, REACTOR_STATS);
    check("block_node_stats", block_node_stats, BLOCK_STATS);
    check("qcow2_stats", qcow2_stats, QCOW2_STATS);
    check("nbd_stats", nbd_stats, NBD_STATS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_figure_has_a_row)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
