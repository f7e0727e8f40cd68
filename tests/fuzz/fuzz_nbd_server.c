/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD server against a client that sends anything: handshake and requests, on a disk in memory.
 *
 * Input: the first byte's bits choose how far a well-behaved start is sent before the fuzzer's
 * bytes: 1 the client flags, 2 structured replies, 4 metadata contexts, 8 GO; with 16 the disk is
 * read-only; 32 extended headers.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "block/bitmaps.h"
#include "block/socket_address.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "memory_disk.h"
#include "nbd/proto.h"
#include "nbd/server.h"
#include "nbd_peer.h"

#define SIZE (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* The beginning that the first byte of the input asks for. */
static void put_beginning(struct strbuf *out, uint8_t how)
{
    STRBUF_AUTO(contexts);
    STRBUF_AUTO(go);

    if (how & 1) {
        nbd_put_u32(out, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    }
    if (how & 2) {
        nbd_peer_put_option(out, NBD_OPT_STRUCTURED_REPLY, "", 0);
    }
    if (how & 32) {
        nbd_peer_put_option(out, NBD_OPT_EXTENDED_HEADERS, "", 0);
    }
    if (how & 4) {
        nbd_put_string(&contexts, how & 16 ? "ro" : "rw");
        nbd_put_u32(&contexts, 3);
        nbd_put_string(&contexts, NBD_CONTEXT_BASE_ALLOCATION);
        nbd_put_string(&contexts, NBD_CONTEXT_ALLOCATION_DEPTH);
        nbd_put_string(&contexts, NBD_CONTEXT_DIRTY_BITMAP "b");
        nbd_peer_put_option(out, NBD_OPT_SET_META_CONTEXT, contexts.data, contexts.len);
    }
    if (how & 8) {
        nbd_put_string(&go, how & 16 ? "ro" : "rw");
        nbd_put_u16(&go, 0);
        nbd_peer_put_option(out, NBD_OPT_GO, go.data, go.len);
    }
}

static void co_talk(void *arg, int fd)
{
    const struct strbuf *out = arg;

    nbd_peer_co_send(fd, out->data, out->len);
}

static void co_one(void *arg)
{
    nbd_peer_co_run(co_talk, arg);
}

static void co_export(const char *name, const char *node, bool writable)
{
    AUTO_OPTIONS struct options *opts = NULL;
    struct export_config config = EXPORT_CONFIG_INIT;

    if (options_parse("allocation-depth=on,bitmaps.0=b", NULL, &opts, NULL) < 0) {
        abort();
    }
    options_set_str(opts, "name", name);
    config.type = "nbd";
    config.id = name;
    config.node_name = node;
    config.writable = writable;
    config.reactor = reactor_main();
    config.options = opts;
    if (export_co_add(&config, NULL) < 0) {
        abort();
    }
}

static void co_set_up(void *arg)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;
    static const char *const names[] = {"rw", "ro"};
    char path[64];
    struct socket_address address = {.path = path};

    snprintf(path, sizeof(path), "/tmp/tm-fuzz-%d.sock", (int)getpid());
    config.address = &address;
    if (export_co_nbd_server_start(&config, NULL) < 0) {
        abort();
    }
    unlink(path);
    for (int i = 0; i < 2; i++) {
        struct options *opts = options_new();
        struct block_bitmap *b;
        struct block_node *node;

        options_set_str(opts, "driver", "memory-disk");
        options_set_str(opts, "node-name", names[i]);
        options_set_uint(opts, "size", SIZE);
        if (block_co_open(opts, BLOCK_OPEN_RDWR, &node, NULL) < 0 ||
            block_co_bitmap_add(node, "b", 4096, false, i == 1, &b, NULL) < 0) {
            abort();
        }
        dirty_bitmap_set(b->bits, 8192, 65536);
        co_export(names[i], names[i], i == 0);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    block_register_driver(&memory_disk_driver);
    export_nbd_register_type();
    if (reactor_init_main(NULL) < 0 || reactor_run_until_done(co_set_up, NULL) < 0) {
        abort();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    STRBUF_AUTO(out);

    if (size == 0) {
        return 0;
    }
    put_beginning(&out, data[0]);
    strbuf_append(&out, data + 1, size - 1);
    if (out.len > 0 && reactor_run_until_done(co_one, &out) < 0) {
        abort();
    }
    return 0;
}
