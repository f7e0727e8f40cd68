/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/machine/hmp.h"

void hmp_printf(struct hmp *hmp, const char *fmt, ...)
{
    char *text;
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (len < 0) {
        return;
    }
    for (const char *p = text; *p; p++) {
        if (*p == '\n') {
            strbuf_puts(&hmp->out, "\r");
        }
        strbuf_append(&hmp->out, p, 1);
    }
    free(text);
}
