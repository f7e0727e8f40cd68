/* SPDX-License-Identifier: Apache-2.0 */
/* Errors of GnuTLS, and of the files of credentials. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tls/internal.h"

int tls_error(struct error *err, int gnutls_code, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return error_set(err, EINVAL, "%s: %s", text, gnutls_strerror(gnutls_code));
}

int tls_creds_file(const char *dir, const char *name, bool needed, char **ret_path,
                   struct error *err)
{
    AUTO_FREE char *path = NULL;

    *ret_path = NULL;
    if (asprintf(&path, "%s/%s", dir, name) < 0) {
        path = NULL;
        return error_out_of_memory(err);
    }
    if (access(path, R_OK) == 0) {
        *ret_path = TAKE_PTR(path);
        return 0;
    }
    if (errno == ENOENT && !needed) {
        return 0;
    }
    return error_set_errno(err, errno, "Unable to access credentials %s", path);
}
