/* SPDX-License-Identifier: Apache-2.0 */
#include "base/shell_word.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NEWLINE "\"\n\""
#define HERE "./" /* before a path that would be taken for an option */

/* Bytes from 0x80 on are parts of letters. */
static bool is_no_sign(unsigned char c)
{
    return c >= 0x80 || isalnum(c) || strchr("_@%+=:,./-", c);
}

char *shell_word(const char *text)
{
    /* Each byte becomes three at most. */
    char *word = malloc(3 * strlen(text) + sizeof(HERE)), *p = word;

    if (!word) {
        return NULL;
    }
    if (text[0] == '-') {
        p = stpcpy(p, HERE);
    }
    for (const char *c = text; *c; c++) {
        if (*c == '\n') {
            p = stpcpy(p, NEWLINE);
            continue;
        }
        if (!is_no_sign((unsigned char)*c)) {
            *p++ = '\\';
        }
        *p++ = *c;
    }
    if (!text[0]) {
        p = stpcpy(p, "\"\"");
    }
    *p = '\0';
    return word;
}
