/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file of a web server, by libcurl. All functions block: they are for the offload pool, on any
 * thread, several at once for one file. None yields.
 */
#ifndef TIDEMARK_HTTP_REMOTE_H
#define TIDEMARK_HTTP_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Where a file is, and how to get at it. Strings are owned; NULL: none. */
struct http_target {
    char *url;
    char *username, *password, *proxy_username, *proxy_password, *cookie;
    bool verify;      /* the server's certificate */
    bool is_https;    /* and so stays it when the server redirects */
    unsigned timeout; /* seconds without an answer or data; 0: no limit */
};

/* Release the strings. */
void http_target_clear(struct http_target *t);

struct http_file;

/*
 * Find out how long the file is, and that the server obeys ranges. `target` is moved into the file,
 * also on failure. -ENOTSUP: it obeys none; other errors of the server or of the way to it.
 */
int http_file_open(struct http_target *target, struct http_file **ret_file, struct error *err);
void http_file_close(struct http_file *f); /* NULL is fine */
uint64_t http_file_size(const struct http_file *f);

/*
 * Read `size` bytes, which the file has, from `offset` on. *ret_done is how many of them have
 * arrived, also on failure. -EAGAIN: trying again may help; -ETIMEDOUT: nothing has come for the
 * time that is allowed; -EIO: another failure, such as a file that has changed.
 */
int http_file_read(struct http_file *f, uint64_t offset, void *buf, size_t size, size_t *ret_done,
                   struct error *err);

#endif
