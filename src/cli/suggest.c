/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/suggest.h"

#include <string.h>

#include "base/checked.h"

struct cli_suggestion cli_suggest(const char *typed)
{
    return (struct cli_suggestion){.typed = typed, .distance = (unsigned)strlen(typed) / 3 + 1};
}

/*
 * Slips between two words of at most CLI_SUGGEST_MAX bytes: the optimal string alignment distance.
 * rows[i][k]: between the first i bytes of `a` and the first k of `b`.
 */
static unsigned count_slips(const char *a, size_t a_length, const char *b, size_t b_length)
{
    unsigned rows[CLI_SUGGEST_MAX + 1][CLI_SUGGEST_MAX + 1];

    for (size_t i = 0; i <= a_length; i++) {
        rows[i][0] = (unsigned)i;
    }
    for (size_t k = 0; k <= b_length; k++) {
        rows[0][k] = (unsigned)k;
    }
    for (size_t i = 1; i <= a_length; i++) {
        for (size_t k = 1; k <= b_length; k++) {
            unsigned slips = rows[i - 1][k - 1] + (a[i - 1] != b[k - 1]);

            slips = MIN(slips, MIN(rows[i - 1][k], rows[i][k - 1]) + 1);
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1]) {
                slips = MIN(slips, rows[i - 2][k - 2] + 1);
            }
            rows[i][k] = slips;
        }
    }
    return rows[a_length][b_length];
}

void cli_suggest_word(struct cli_suggestion *s, const char *word)
{
    size_t typed_length = strlen(s->typed), length = strlen(word);
    unsigned slips;

    if (typed_length > CLI_SUGGEST_MAX || length > CLI_SUGGEST_MAX) {
        return;
    }
    slips = count_slips(s->typed, typed_length, word, length);
    if (slips < s->distance || (slips == s->distance && !s->best)) {
        s->best = word;
        s->distance = slips;
    }
}
