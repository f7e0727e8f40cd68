/* SPDX-License-Identifier: Apache-2.0 */
#include "base/wildcard.h"

#include <string.h>

bool wildcard_matches(const char *pattern, const char *text)
{
    const char *star = NULL, *resume = NULL;

    /*
     * At a mismatch the latest star takes one character more. Earlier stars need not be tried
     * again.
     */
    while (*text) {
        if (*pattern == '*') {
            star = pattern++;
            resume = text;
        } else if (*pattern == '?' || *pattern == *text) {
            pattern++;
            text++;
        } else if (star) {
            pattern = star + 1;
            text = ++resume;
        } else {
            return false;
        }
    }
    return pattern[strspn(pattern, "*")] == '\0';
}
