/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The boundary of TLS in the NBD server: what comes in the clear before it, instead of it, within
 * it, and into the midst of its records.
 *
 * Input: the first byte's bits choose how far a well-behaved client gets before the fuzzer's bytes:
 * 1 the client flags, 2 STARTTLS, 4 the TLS handshake; then the bytes are options within TLS. With
 * 8 the second half of them follows as it is, where a record is expected. With 16 a GO for the
 * export comes first.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/strbuf.h"
#include "block/socket_address.h"
#include "block/user_object.h"
#include "export/export.h"
#include "export/nbd_server.h"
#include "loop/loop.h"
#include "memory_disk.h"
#include "nbd/proto.h"
#include "nbd/server.h"
#include "nbd_peer.h"
#include "tls/session.h"

#define SIZE (1u << 20)
#define KEYS "me:00112233445566778899aabbccddeeff\n"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

enum {
    HAS_FLAGS = 1,
    HAS_STARTTLS = 2,
    HAS_HANDSHAKE = 4,
    ENDS_IN_THE_CLEAR = 8,
    HAS_GO = 16,
};

struct input {
    uint8_t how;
    const uint8_t *data;
    size_t size;
};

static struct tls_creds *client_creds;

/* Read what the server says in the clear: its hello, and the answer to STARTTLS. */
static bool co_receive_exactly(int fd, size_t size)
{
    uint8_t buf[64];

    while (size > 0) {
        ssize_t n = loop_co_recv(fd, buf, size);

        if (n <= 0) {
            return false;
        }
        size -= (size_t)n;
    }
    return true;
}

/* The client's end of a session; NULL: there is none. */
static struct tls_session *co_shake_hands(int fd)
{
    struct tls_session *s;

    if (!co_receive_exactly(fd, NBD_SERVER_HELLO_SIZE + NBD_OPTION_REPLY_HEADER_SIZE) ||
        tls_session_new(client_creds, fd, NULL, NULL, &s, NULL) < 0) {
        return NULL;
    }
    if (tls_session_co_handshake(s, NULL) < 0) {
        /* The two ends are honest so far. */
        abort();
    }
    return s;
}

static void co_talk_in_tls(const struct input *in, int fd)
{
    struct tls_session *s = co_shake_hands(fd);
    size_t inside = in->how & ENDS_IN_THE_CLEAR ? in->size / 2 : in->size;
    STRBUF_AUTO(out);
    STRBUF_AUTO(go);
    struct iovec vec;

    if (!s) {
        return;
    }
    if (in->how & HAS_GO) {
        nbd_put_string(&go, "disk");
        nbd_put_u16(&go, 0);
        nbd_peer_put_option(&out, NBD_OPT_GO, go.data, go.len);
    }
    strbuf_append(&out, in->data, inside);
    vec = (struct iovec){.iov_base = out.data, .iov_len = out.len};
    if (out.len == 0 || tls_session_co_send(s, &vec, 1) == 0) {
        nbd_peer_co_send(fd, in->data + inside, in->size - inside);
    }
    tls_session_free(s);
}

static void co_talk(void *arg, int fd)
{
    const struct input *in = arg;
    STRBUF_AUTO(out);

    if (in->how & HAS_FLAGS) {
        nbd_put_u32(&out, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    }
    if (in->how & HAS_STARTTLS) {
        nbd_peer_put_option(&out, NBD_OPT_STARTTLS, "", 0);
    }
    if ((in->how & HAS_FLAGS) && (in->how & HAS_STARTTLS) && (in->how & HAS_HANDSHAKE)) {
        if (send(fd, out.data, out.len, MSG_NOSIGNAL) == (ssize_t)out.len) {
            co_talk_in_tls(in, fd);
        }
    } else {
        strbuf_append(&out, in->data, in->size);
        nbd_peer_co_send(fd, out.data, out.len);
    }
}

static void co_one(void *arg)
{
    nbd_peer_co_run(co_talk, arg);
}

/* Where the keys are: GnuTLS reads them for each handshake. */
static char dir[64], path_of_keys[80];

static void remove_credentials(void)
{
    unlink(path_of_keys);
    rmdir(dir);
}

/* Keys for both ends. */
static void make_credentials(void)
{
    struct tls_client_params params = {.type = "psk", .psk_file = path_of_keys, .username = "me"};
    struct options *opts = options_new();
    FILE *file;

    snprintf(dir, sizeof(dir), "/tmp/tm-fuzz-tls-%d", (int)getpid());
    snprintf(path_of_keys, sizeof(path_of_keys), "%s/keys.psk", dir);
    atexit(remove_credentials);
    if (mkdir(dir, 0700) < 0 || !(file = fopen(path_of_keys, "w")) || fputs(KEYS, file) < 0 ||
        fclose(file) != 0) {
        abort();
    }
    options_set_str(opts, "qom-type", "tls-creds-psk");
    options_set_str(opts, "id", "tls0");
    options_set_str(opts, "endpoint", "server");
    options_set_str(opts, "dir", dir);
    if (user_object_add(opts, NULL) < 0 || tls_creds_new_client(&params, &client_creds, NULL) < 0) {
        abort();
    }
}

static void co_set_up(void *arg)
{
    struct export_nbd_server_config config = EXPORT_NBD_SERVER_CONFIG_INIT;
    struct export_config export = EXPORT_CONFIG_INIT;
    struct options *opts = options_new();
    char path[64];
    struct socket_address address = {.path = path};
    struct block_node *node;

    make_credentials();
    snprintf(path, sizeof(path), "/tmp/tm-fuzz-tls-%d.sock", (int)getpid());
    config.address = &address;
    config.tls_creds = "tls0";
    if (export_co_nbd_server_start(&config, NULL) < 0) {
        abort();
    }
    unlink(path);
    options_set_str(opts, "driver", "memory-disk");
    options_set_str(opts, "node-name", "disk");
    options_set_uint(opts, "size", SIZE);
    if (block_co_open(opts, BLOCK_OPEN_RDWR, &node, NULL) < 0) {
        abort();
    }
    export.type = "nbd";
    export.id = "disk";
    export.node_name = "disk";
    export.writable = true;
    export.reactor = reactor_main();
    export.options = options_new();
    if (export_co_add(&export, NULL) < 0) {
        abort();
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    block_register_driver(&memory_disk_driver);
    export_nbd_register_type();
    tls_register_types();
    if (reactor_init_main(NULL) < 0 || reactor_run_until_done(co_set_up, NULL) < 0) {
        abort();
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {.data = data + 1, .size = size - 1};

    if (size == 0) {
        return 0;
    }
    in.how = data[0];
    if (reactor_run_until_done(co_one, &in) < 0) {
        abort();
    }
    return 0;
}
