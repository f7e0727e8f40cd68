/* SPDX-License-Identifier: Apache-2.0 */
/* Listing the exports of a server. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/time_units.h"
#include "cli/nbd/command_line.h"
#include "nbd/client.h"
#include "nbd/proto.h"
#include "nbd/uri.h"

#define LIST_TIMEOUT_NS (30 * NS_PER_SECOND)

static void print_flags(unsigned flags)
{
    static const char *const names[] = {
        NULL,    "readonly", "flush", "fua",       "rotational",          "trim", "zeroes", "df",
        "multi", "resize",   "cache", "fast-zero", "block-status-payload"};

    printf("  flags: 0x%x (", flags);
    for (size_t i = 1; i < ARRAY_SIZE(names); i++) {
        if (flags & (1u << i)) {
            printf(" %s", names[i]);
        }
    }
    printf(" )\n");
}

/* Print a text of the server; bytes that a terminal could take for a command become hexadecimal. */
static void print_text(const char *before, const char *text, const char *after)
{
    fputs(before, stdout);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p < ' ' || *p == 0x7f) {
            printf("\\x%02x", *p);
        } else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) {
            printf("\\x%02x\\x%02x", p[0], p[1]);
            p++;
        } else {
            putchar(*p);
        }
    }
    puts(after);
}

static void print_export(const struct nbd_export_info *e)
{
    print_text(" export: '", e->name, "'");
    if (e->description) {
        print_text("  description: ", e->description, "");
    }
    if (e->has_info) {
        printf("  size:  %" PRIu64 "\n", e->size);
        print_flags(e->flags);
    }
    if (e->has_block_sizes) {
        printf("  min block: %u\n  opt block: %u\n  max block: %u\n", e->min_block,
               e->preferred_block, e->max_block);
    }
    printf("  transaction size: %s-bit\n", e->extended ? "64" : "32");
    if (e->context_count > 0) {
        printf("  available meta contexts: %zu\n", e->context_count);
        for (size_t i = 0; i < e->context_count; i++) {
            print_text("   ", e->contexts[i], "");
        }
    }
}

static int co_list_server(const struct socket_address *address, const struct tls_creds *creds,
                          const char *hostname, struct error *err)
{
    struct nbd_client_tls tls = {.creds = creds, .hostname = hostname};
    struct nbd_export_info *list;
    size_t count;
    int r = nbd_client_co_list(address, creds ? &tls : NULL, LIST_TIMEOUT_NS, &list, &count, err);

    if (r < 0) {
        return r;
    }
    printf("exports available: %zu\n", count);
    for (size_t i = 0; i < count; i++) {
        print_export(&list[i]);
    }
    nbd_export_list_free(list, count);
    return 0;
}

/* The server of a URI, whatever export that names. */
static int co_list_uri(const char *uri, const struct tls_creds *creds, const char *hostname,
                       struct error *err)
{
    struct nbd_uri u CLEANUP(nbd_uri_clear) = {0};
    struct tls_creds *own = NULL;
    int r = nbd_uri_parse(uri, &u, err);

    if (r == 0 && creds && (u.tls.own || u.tls.creds)) {
        r = error_set(err, EINVAL, "'%s' says how to use TLS, and --tls-creds does, too", uri);
    }
    UNLESS_FAILED(r, nbd_tls_params_get(&u.tls, &own, err));
    UNLESS_FAILED(r, co_list_server(&u.address, own ?: creds, hostname ?: u.tls.hostname, err));
    tls_creds_unref(own);
    return r;
}

int nbd_co_list(const struct nbd_command_line *cl, const struct tls_creds *creds, struct error *err)
{
    struct socket_address address = {
        .path = (char *)(uintptr_t)cl->socket,
        .host = (char *)(uintptr_t)(cl->bind ?: "localhost"),
        .port = (char *)(uintptr_t)(cl->port ?: NBD_DEFAULT_PORT),
    };

    return cl->file ? co_list_uri(cl->file, creds, cl->tls_hostname, err)
                    : co_list_server(&address, creds, cl->tls_hostname, err);
}
