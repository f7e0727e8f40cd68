/* SPDX-License-Identifier: Apache-2.0 */
/* SFTP by libssh. */
#include "ssh/remote_file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "base/inet.h"
#include "ssh/libssh_lazy.h"
#include "ssh/remote_internal.h"

/* Seconds, for each of the steps to a session. */
#define CONNECT_TIMEOUT_S 30
/* Longest part of a request: servers need not accept more than 34000 bytes in a packet. Bytes. */
#define PART_MAX (32 * KiB)
/* Largest unit that a size may be rounded up to. Bytes. */
#define SECTOR_MAX 4096

/* --- connection ----------------------------------------------------------------------------- */

static int ssh_connect_one(const struct addrinfo *a)
{
    /* This also limits connect(). */
    const struct timeval timeout = {.tv_sec = CONNECT_TIMEOUT_S};
    const int on = 1;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);

    if (fd < 0) {
        return -errno;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
        int saved = errno == EINPROGRESS ? ETIMEDOUT : errno;

        close(fd);
        return -saved;
    }
    return fd;
}

/* A connected socket, or -errno. */
static int ssh_connect_to(const struct ssh_target *t, struct error *err)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *all, *a;
    int fd = -EADDRNOTAVAIL;
    int r = inet_lookup(t->host, t->port, &hints, &all);

    if (r != 0) {
        return error_set(err, EINVAL, "address resolution failed for %s:%s: %s", t->host, t->port,
                         gai_strerror(r));
    }
    for (a = all; a && fd < 0; a = a->ai_next) {
        fd = ssh_connect_one(a);
    }
    freeaddrinfo(all);
    return fd >= 0 ? fd
                   : error_set_errno(err, -fd, "Failed to connect to '%s:%s'", t->host, t->port);
}

/* --- who the server is ---------------------------------------------------------------------- */

static int check_known_hosts(struct remote_file *f, struct error *err)
{
    switch (ssh_session_is_known_server(f->session)) {
    case SSH_KNOWN_HOSTS_OK:
        return 0;
    case SSH_KNOWN_HOSTS_CHANGED:
        return error_set(err, EACCES,
                         "host key does not match the one in known_hosts; this may be a possible "
                         "attack");
    case SSH_KNOWN_HOSTS_OTHER:
        return error_set(err, EACCES, "host key for this server not found, another type exists");
    case SSH_KNOWN_HOSTS_UNKNOWN:
    case SSH_KNOWN_HOSTS_NOT_FOUND:
        return error_set(err, EACCES, "no host key was found in known_hosts");
    default:
        return error_set(err, EIO, "server known error: %s", ssh_get_error(f->session));
    }
}

/* Whether `text` is the hash in hexadecimal, with or without colons, in either case. */
static bool hash_is(const char *text, const unsigned char *hash, size_t size)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < 2 * size; i++, text++) {
        text += *text == ':';
        if (tolower((unsigned char)*text) != digits[i % 2 ? hash[i / 2] & 15 : hash[i / 2] >> 4]) {
            return false;
        }
    }
    return *text == '\0';
}

static int check_hash(struct remote_file *f, const struct ssh_target *t, struct error *err)
{
    static const enum ssh_publickey_hash_type types[] = {
        SSH_PUBLICKEY_HASH_MD5, SSH_PUBLICKEY_HASH_SHA1, SSH_PUBLICKEY_HASH_SHA256};
    static const char *const names[] = {"md5", "sha1", "sha256"};
    unsigned char *hash = NULL;
    size_t size = 0;
    ssh_key key = NULL;
    int r = 0;

    if (ssh_get_server_publickey(f->session, &key) != SSH_OK ||
        ssh_get_publickey_hash(key, types[t->hash_type], &hash, &size) != 0) {
        r = error_set(err, EIO, "failed to read remote host key: %s", ssh_get_error(f->session));
    } else if (!hash_is(t->hash, hash, size)) {
        char *found = ssh_get_hexa(hash, size);

        r = error_set(err, EACCES,
                      "remote host %s key fingerprint '%s:%s' does not match host_key_check "
                      "'%s:%s'",
                      ssh_key_type_to_char(ssh_key_type(key)), names[t->hash_type],
                      found ? found : "", names[t->hash_type], t->hash);
        ssh_string_free_char(found);
    }
    ssh_clean_pubkey_hash(&hash);
    ssh_key_free(key);
    return r;
}

static int check_server(struct remote_file *f, const struct ssh_target *t, struct error *err)
{
    switch (t->check) {
    case HOST_KEY_UNCHECKED:
        return 0;
    case HOST_KEY_HASH:
        return check_hash(f, t, err);
    default:
        return check_known_hosts(f, err);
    }
}

/* --- giving up ------------------------------------------------------------------------------ */

static struct list cuts = LIST_INIT(cuts);
static pthread_mutex_t cuts_lock = PTHREAD_MUTEX_INITIALIZER;

static void list_cut(struct remote_cut *cut, int fd)
{
    cut->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    cut->listed = cut->fd >= 0;
    if (cut->listed) {
        pthread_mutex_lock(&cuts_lock);
        list_append(&cuts, &cut->link);
        pthread_mutex_unlock(&cuts_lock);
    }
}

static void unlist_cut(struct remote_cut *cut)
{
    if (cut->listed) {
        pthread_mutex_lock(&cuts_lock);
        list_remove(&cut->link);
        pthread_mutex_unlock(&cuts_lock);
        close(cut->fd);
        cut->listed = false;
    }
}

void remote_give_up_all(void)
{
    struct remote_cut *cut;

    pthread_mutex_lock(&cuts_lock);
    LIST_FOREACH (cut, &cuts, link) {
        shutdown(cut->fd, SHUT_RDWR);
    }
    pthread_mutex_unlock(&cuts_lock);
}

void remote_file_end_session(struct remote_file *f)
{
    if (f->session) {
        ssh_disconnect(f->session);
        ssh_free(f->session);
    }
    unlist_cut(&f->cut);
}

/* --- opening -------------------------------------------------------------------------------- */

static int start_ssh_session(struct remote_file *f, const struct ssh_target *t, struct error *err)
{
    const long timeout = CONNECT_TIMEOUT_S;
    int fd = ssh_connect_to(t, err), r;

    if (fd < 0) {
        return fd;
    }
    f->session = ssh_new();
    if (!f->session || (t->user && ssh_options_set(f->session, SSH_OPTIONS_USER, t->user) < 0) ||
        ssh_options_set(f->session, SSH_OPTIONS_HOST, t->host) < 0 ||
        ssh_options_set(f->session, SSH_OPTIONS_PORT_STR, t->port) < 0 ||
        ssh_options_set(f->session, SSH_OPTIONS_TIMEOUT, &timeout) < 0 ||
        ssh_options_set(f->session, SSH_OPTIONS_FD, &fd) < 0) {
        close(fd);
        return error_set(err, EINVAL, "failed to set up a session with '%s:%s': %s", t->host,
                         t->port, f->session ? ssh_get_error(f->session) : "out of memory");
    }
    /* From here on the session owns the descriptor. */
    list_cut(&f->cut, fd);
    if (ssh_connect(f->session) != SSH_OK) {
        return error_set(err, EIO, "failed to establish SSH session with '%s:%s': %s", t->host,
                         t->port, ssh_get_error(f->session));
    }
    r = check_server(f, t, err);
    if (r == 0 && ssh_userauth_none(f->session, NULL) != SSH_AUTH_SUCCESS &&
        ssh_userauth_publickey_auto(f->session, NULL, NULL) != SSH_AUTH_SUCCESS) {
        r = error_set(err, EPERM,
                      "failed to authenticate using publickey authentication and the identities "
                      "held by your ssh-agent");
    }
    return r;
}

int remote_file_start_session(struct remote_file *f, const struct ssh_target *t, struct error *err)
{
    int r = lazy_libssh_load(err);

    UNLESS_FAILED(r, start_ssh_session(f, t, err));
    return r;
}

int remote_file_connect(struct remote_file *f, const struct ssh_target *t, struct error *err)
{
    int r = remote_file_start_session(f, t, err);

    if (r < 0) {
        return r;
    }
    f->sftp = sftp_new(f->session);
    if (!f->sftp || sftp_init(f->sftp) != SSH_OK) {
        return error_set(err, EIO, "failed to start SFTP with '%s:%s': %s", t->host, t->port,
                         ssh_get_error(f->session));
    }
    return 0;
}

int remote_file_open_path(struct remote_file *f, const char *path, int flags, unsigned mode,
                          struct error *err)
{
    f->file = sftp_open(f->sftp, path, flags, (mode_t)mode);
    if (!f->file) {
        bool denied = sftp_get_error(f->sftp) == SSH_FX_PERMISSION_DENIED;

        return error_set(err, denied ? EACCES : EINVAL,
                         "failed to open remote file '%s': %s (libssh error code: %d, sftp error "
                         "code: %d)",
                         path, ssh_get_error(f->session), ssh_get_error_code(f->session),
                         sftp_get_error(f->sftp));
    }
    f->path = strdup(path);
    return f->path ? 0 : error_out_of_memory(err);
}

int remote_file_open(const struct ssh_target *t, int flags, struct remote_file **ret_file,
                     struct error *err)
{
    struct remote_file *f = calloc(1, sizeof(*f));
    int r;

    if (!f) {
        return error_out_of_memory(err);
    }
    r = remote_file_connect(f, t, err);
    UNLESS_FAILED(r, remote_file_open_path(f, t->path, flags, 0644, err));
    if (r < 0) {
        remote_file_close(f);
        return r;
    }
    *ret_file = f;
    return 0;
}

void remote_file_close(struct remote_file *f)
{
    if (!f) {
        return;
    }
    if (f->file) {
        sftp_close(f->file);
    }
    if (f->sftp && !f->shares) {
        sftp_free(f->sftp);
    }
    if (!f->shares) {
        remote_file_end_session(f);
    }
    free(f->path);
    free(f);
}

/* --- use ------------------------------------------------------------------------------------ */

int remote_file_size(struct remote_file *f, uint64_t *ret_size, struct error *err)
{
    sftp_attributes a = sftp_fstat(f->file);
    bool regular = a && a->type == SSH_FILEXFER_TYPE_REGULAR;

    if (!a) {
        return error_set(err, EIO, "failed to read the attributes of remote file '%s': %s", f->path,
                         ssh_get_error(f->session));
    }
    *ret_size = a->size;
    sftp_attributes_free(a);
    if (*ret_size > INT64_MAX - SECTOR_MAX) {
        return error_set(err, EFBIG, "remote file '%s' has an impossible size: %" PRIu64 " bytes",
                         f->path, *ret_size);
    }
    return regular ? 0 : error_set(err, EINVAL, "remote file '%s' is no regular file", f->path);
}

/* The error of a failed call of libssh. -errno. */
static int sftp_error_of(const struct remote_file *f)
{
    switch (sftp_get_error(f->sftp)) {
    case SSH_FX_PERMISSION_DENIED:
        return -EACCES;
    case SSH_FX_WRITE_PROTECT:
        return -EROFS;
    default:
        return -EIO;
    }
}

/* One element of a vector. *ret_size is less than `size` at the end of the file. */
static int read_element(struct remote_file *f, char *buf, size_t size, size_t *ret_size)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = sftp_read(f->file, buf + done, MIN(size - done, PART_MAX));

        if (n < 0) {
            return sftp_error_of(f);
        }
        if (n == 0) {
            break;
        }
        done += (size_t)n;
    }
    *ret_size = done;
    return 0;
}

int remote_file_read(struct remote_file *f, uint64_t offset, struct iov iov)
{
    size_t done = 0, got = 0;

    if (sftp_seek64(f->file, offset) < 0) {
        return -EIO;
    }
    for (int i = 0; i < iov.count; i++) {
        size_t size = iov.vec[i].iov_len;
        int r = read_element(f, iov.vec[i].iov_base, size, &got);

        if (r < 0) {
            return r;
        }
        done += got;
        if (got < size) {
            iov_fill(iov, done, 0, iov.size - done);
            return 0;
        }
    }
    return 0;
}

int remote_file_write(struct remote_file *f, uint64_t offset, struct iov iov)
{
    if (sftp_seek64(f->file, offset) < 0) {
        return -EIO;
    }
    for (int i = 0; i < iov.count; i++) {
        const char *buf = iov.vec[i].iov_base;
        size_t left = iov.vec[i].iov_len;

        while (left > 0) {
            ssize_t n = sftp_write(f->file, buf, MIN(left, PART_MAX));

            if (n <= 0) {
                return sftp_error_of(f);
            }
            buf += n;
            left -= (size_t)n;
        }
    }
    return 0;
}

bool remote_file_can_sync(const struct remote_file *f)
{
    return sftp_extension_supported(f->sftp, "fsync@openssh.com", "1");
}

int remote_file_sync(struct remote_file *f)
{
    return sftp_fsync(f->file) < 0 ? -EIO : 0;
}

int remote_file_resize(struct remote_file *f, uint64_t size)
{
    struct sftp_attributes_struct a = {.flags = SSH_FILEXFER_ATTR_SIZE, .size = size};

    return sftp_setstat(f->sftp, f->path, &a) < 0 ? sftp_error_of(f) : 0;
}
