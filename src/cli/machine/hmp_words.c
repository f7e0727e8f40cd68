/* SPDX-License-Identifier: Apache-2.0 */
/* The words of a command of the human monitor: its flags, sizes and numbers. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "cli/machine/hmp.h"

unsigned hmp_take_flags(int *argc, char ***argv, const char *letters)
{
    unsigned flags = 0;
    const char *at;

    while (*argc > 0 && (*argv)[0][0] == '-' && (*argv)[0][1] && !(*argv)[0][2] &&
           (at = strchr(letters, (*argv)[0][1]))) {
        flags |= 1u << (at - letters);
        (*argc)--;
        (*argv)++;
    }
    return flags;
}

/* An error of the line itself. */
static int refuse_word(struct hmp *hmp, const char *command, struct error *err)
{
    hmp->plain_error = true;
    error_hint(err, "Try \"help %s\" for more information", command);
    return -EINVAL;
}

int hmp_size(struct hmp *hmp, const char *command, const char *text, uint64_t *ret_bytes,
             struct error *err)
{
    size_t size = strlen(text);
    bool is_plain = size > 0 && strspn(text, "0123456789.") == size;
    AUTO_FREE char *with_unit = NULL;
    uint64_t bytes = 0;
    int r;

    if (asprintf(&with_unit, "%s%s", text, is_plain ? "M" : "") < 0) {
        with_unit = NULL;
        return error_out_of_memory(err);
    }
    r = size_parse(with_unit, "size", &bytes, NULL);
    if (r >= 0 && strncasecmp(text, "0x", 2) == 0 &&
        (mul_overflows(bytes, MiB, &bytes) || bytes > INT64_MAX)) {
        r = -ERANGE;
    }
    if (r < 0) {
        error_set(err, EINVAL, "invalid size");
        return refuse_word(hmp, command, err);
    }
    *ret_bytes = bytes;
    return 0;
}

int hmp_number(struct hmp *hmp, const char *command, const char *text, int64_t *ret_number,
               struct error *err)
{
    char *end;

    errno = 0;
    *ret_number = strtoll(text, &end, 0);
    if (errno == ERANGE) {
        error_set(err, EINVAL, "number too large");
        return refuse_word(hmp, command, err);
    }
    if (end == text || *end) {
        error_set(err, EINVAL, "invalid char '%c' in expression", *end);
        return refuse_word(hmp, command, err);
    }
    return 0;
}
