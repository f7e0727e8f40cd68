/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/key.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/aead.h"
#include "base/base64.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "base/hmac.h"
#include "base/secret_memory.h"
#include "base/spawn.h"
#include "block/user_object.h"

#define KEY_MIN 32
#define KEY_MAX 4096
#define PASSPHRASE_MIN 8
/*
 * What a repository says about scrypt is not trusted: less work would make a guess at the
 * passphrase cheap for whoever has changed that, and more would take all memory (256 MiB at most).
 */
#define KDF_LOG_N 15
#define KDF_LOG_N_MAX 18
#define KDF_P 3
#define STRETCHED 64
#define SALTS_MAX 1024
/* How often a stop is looked for, and after how many tenths of that a command is killed. */
#define STOP_LOOK_MS 100
#define STOP_LOOKS 100

struct backup_key_source backup_key_source;
bool backup_key_encrypts;

struct backup_key_ring {
    /* The key, or the passphrase. */
    uint8_t *bytes; /* secret memory; NULL: not read yet */
    size_t size;
    bool is_passphrase;
    /* The keys that came from it: one, or one for each salt. */
    struct backup_key **keys;
    size_t count;
};

/* That of the program, from its sources. */
static struct backup_key_ring program_ring;
/* guards the contents of all rings; keys do not change */
static pthread_mutex_t rings_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- the source ------------------------------------------------------------------------------- */

static bool is_given(const char *word)
{
    return word && *word;
}

/* Which source there is. -EINVAL: several. */
static int find_source(struct backup_key_source *ret_source, struct error *err)
{
    struct backup_key_source s = backup_key_source;
    int count;

    if (!s.file && !s.passphrase && !s.command) {
        s.file = getenv("TIDEMARK_KEY_FILE");
        s.passphrase = getenv("TIDEMARK_PASSPHRASE_FILE");
        s.command = getenv("TIDEMARK_KEY_COMMAND");
    }
    count = is_given(s.file) + is_given(s.passphrase) + is_given(s.command);
    if (count > 1) {
        return error_set(err, EINVAL,
                         "There is more than one of key file, passphrase file and key command");
    }
    *ret_source = s;
    return count;
}

static void strip_newlines(struct backup_key_ring *ring)
{
    while (ring->size > 0 &&
           (ring->bytes[ring->size - 1] == '\n' || ring->bytes[ring->size - 1] == '\r')) {
        ring->size--;
    }
}

static bool key_is_stopped(void)
{
    return backup_key_source.stop && *backup_key_source.stop;
}

/* A pipe may stay empty, and a signal may come to another thread. */
static int await_secret(int fd, struct error *err)
{
    struct pollfd end = {.fd = fd, .events = POLLIN};

    while (!key_is_stopped()) {
        int n = poll(&end, 1, STOP_LOOK_MS);

        if (n > 0 || (n < 0 && errno != EINTR)) {
            return 0;
        }
    }
    return error_set(err, EINTR, "Stopped");
}

static int read_secret(int fd, const char *what, const char *shown, struct error *err)
{
    ssize_t n = 1;

    program_ring.bytes = secret_alloc(KEY_MAX + 1);
    program_ring.size = 0;
    if (!program_ring.bytes) {
        return error_out_of_memory(err);
    }
    while (program_ring.size <= KEY_MAX && n > 0) {
        int r = await_secret(fd, err);

        if (r < 0) {
            return r;
        }
        n = read(fd, program_ring.bytes + program_ring.size, KEY_MAX + 1 - program_ring.size);
        program_ring.size += n > 0 ? (size_t)n : 0;
    }
    if (n < 0) {
        return error_set(err, ENOKEY, "Could not read %s '%s': %s", what, shown, strerror(errno));
    }
    strip_newlines(&program_ring);
    return 0;
}

static int check_material(const struct backup_key_ring *ring, const char *what, const char *shown,
                          struct error *err)
{
    size_t min = ring->is_passphrase ? PASSPHRASE_MIN : KEY_MIN;

    if (ring->size < min || ring->size > KEY_MAX) {
        error_set(err, ENOKEY, "%s '%s' has %zu bytes, it needs %zu to %d", what, shown, ring->size,
                  min, KEY_MAX);
        if (!ring->is_passphrase) {
            error_hint(err, "'openssl rand -base64 32' makes a key.");
        }
        return -ENOKEY;
    }
    return 0;
}

static int read_file(const char *path, bool is_passphrase, struct error *err)
{
    const char *what = is_passphrase ? "passphrase file" : "key file";
    int fd AUTO_CLOSE = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    int r;

    if (fd < 0) {
        return error_set(err, ENOKEY, "Could not open %s '%s': %s", what, path, strerror(errno));
    }
    program_ring.is_passphrase = is_passphrase;
    r = read_secret(fd, what, path, err);
    return r < 0 ? r
                 : check_material(&program_ring, is_passphrase ? "Passphrase file" : "Key file",
                                  path, err);
}

/* Start a shell command whose standard output is `out`. */
static int spawn_command(const char *command, int out, pid_t *ret_pid)
{
    char *const argv[] = {"/bin/sh", "-c", (char *)command, NULL};
    posix_spawn_file_actions_t files;
    int r = posix_spawn_file_actions_init(&files);

    if (r != 0) {
        return -r;
    }
    r = -posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
    UNLESS_FAILED(r, spawn_program(argv, environ, &files, ret_pid));
    posix_spawn_file_actions_destroy(&files);
    return r;
}

/* Wait for a command's end; a stop, or a failure `r` before, ends it. Returns the failure, or 0. */
static int end_command(pid_t pid, int r, int *ret_status, struct error *err)
{
    int looks = 0;
    pid_t ended;

    while ((ended = waitpid(pid, ret_status, WNOHANG)) == 0 || (ended < 0 && errno == EINTR)) {
        if (r == 0 && key_is_stopped()) {
            r = error_set(err, EINTR, "Stopped");
        }
        if (r < 0) {
            kill(pid, looks++ < STOP_LOOKS ? SIGTERM : SIGKILL);
        }
        poll(NULL, 0, STOP_LOOK_MS / 10);
    }
    return r;
}

static int run_command(const char *command, struct error *err)
{
    int ends[2], status = 0, r, fd AUTO_CLOSE = -1;
    pid_t pid = 0;

    if (pipe2(ends, O_CLOEXEC) < 0) {
        return error_set_errno(err, errno, "Could not make a pipe");
    }
    fd = ends[0];
    r = spawn_command(command, ends[1], &pid);
    close(ends[1]);
    if (r < 0) {
        return error_set(err, ENOKEY, "Could not run key command '%s': %s", command, strerror(-r));
    }
    program_ring.is_passphrase = false;
    r = read_secret(fd, "the output of key command", command, err);
    r = end_command(pid, r, &status, err);
    if (r == 0 && status != 0) {
        r = error_set(err, ENOKEY, "Key command '%s' failed", command);
    }
    return r < 0 ? r : check_material(&program_ring, "Key command", command, err);
}

static int load_material(const struct backup_key_source *source, struct error *err)
{
    int r = is_given(source->command)      ? run_command(source->command, err)
            : is_given(source->passphrase) ? read_file(source->passphrase, true, err)
                                           : read_file(source->file, false, err);

    if (r < 0) {
        secret_free(program_ring.bytes);
        program_ring.bytes = NULL;
    }
    return r;
}

/* --- the keys --------------------------------------------------------------------------------- */

static int derive(const uint8_t *bytes, size_t size, const char *purpose,
                  uint8_t ret_key[static SHA256_SIZE])
{
    return hmac_sha256(bytes, size, purpose, strlen(purpose), ret_key);
}

static int derive_all(const uint8_t *bytes, size_t size, struct backup_key *key)
{
    uint8_t check[SHA256_SIZE];
    int r = derive(bytes, size, "tidemark backup: manifests", key->mac);

    UNLESS_FAILED(r, derive(bytes, size, "tidemark backup: sealed files", key->seal));
    UNLESS_FAILED(r, derive(bytes, size, "tidemark backup: which key", check));
    if (r == 0) {
        sha256_to_hex(check, key->check);
    }
    return r;
}

static int fill_key(const struct backup_key_ring *ring, struct backup_key *key)
{
    uint8_t *stretched;
    int r;

    if (!ring->is_passphrase) {
        return derive_all(ring->bytes, ring->size, key);
    }
    stretched = secret_alloc(STRETCHED);
    r = stretched ? aead_stretch(ring->bytes, ring->size, key->kdf.salt, BACKUP_SALT_SIZE,
                                 key->kdf.log_n, KDF_P, stretched, STRETCHED)
                  : -ENOMEM;
    UNLESS_FAILED(r, derive_all(stretched, STRETCHED, key));
    secret_free(stretched);
    return r;
}

static bool is_same_kdf(const struct backup_kdf *a, const struct backup_kdf *b)
{
    return a->log_n == b->log_n && memcmp(a->salt, b->salt, BACKUP_SALT_SIZE) == 0;
}

static int get_key(struct backup_key_ring *ring, const struct backup_kdf *kdf,
                   const struct backup_key **ret_key, struct error *err)
{
    struct backup_key *key, **keys;
    int r;

    for (size_t i = 0; i < ring->count; i++) {
        if (is_same_kdf(&ring->keys[i]->kdf, kdf)) {
            *ret_key = ring->keys[i];
            return 0;
        }
    }
    if (ring->is_passphrase && kdf->log_n < KDF_LOG_N) {
        return error_set(err, ENOKEY,
                         "The passphrase cannot be used: it would be easy to guess from what is "
                         "stored");
    }
    if (ring->count == SALTS_MAX || kdf->log_n > KDF_LOG_N_MAX) {
        return error_set(err, ENOKEY, "The passphrase cannot be used: %s",
                         ring->count == SALTS_MAX ? "there are too many repositories"
                                                  : "it would take too much memory");
    }
    keys = realloc(ring->keys, (ring->count + 1) * sizeof(struct backup_key *));
    if (!keys) {
        return error_out_of_memory(err);
    }
    ring->keys = keys;
    key = secret_alloc(sizeof(*key));
    if (!key) {
        return error_out_of_memory(err);
    }
    key->kdf = *kdf;
    r = fill_key(ring, key);
    if (r < 0) {
        secret_free(key);
        return error_set_errno(err, -r, "Could not make the key");
    }
    ring->keys[ring->count++] = key;
    *ret_key = key;
    return 0;
}

/* The material, when there is some; *ret_has is false if there is none. */
static int need_material(bool *ret_has, struct error *err)
{
    struct backup_key_source source = {0};
    int count = find_source(&source, err);

    *ret_has = count > 0;
    return count > 0 && !program_ring.bytes ? load_material(&source, err) : MIN(count, 0);
}

static int key_of_ring(struct backup_key_ring *ring, const struct backup_kdf *kdf,
                       const struct backup_key **ret_key, struct error *err)
{
    struct backup_kdf way = {0};

    if (ring->is_passphrase) {
        way.log_n = KDF_LOG_N;
        way = kdf && kdf->log_n ? *kdf : way;
    }
    return get_key(ring, &way, ret_key, err);
}

static int get_program_key(const struct backup_kdf *kdf, const struct backup_key **ret_key,
                           struct error *err)
{
    bool has;
    int r = need_material(&has, err);

    if (r < 0 || !has) {
        *ret_key = NULL;
        return r;
    }
    return key_of_ring(&program_ring, kdf, ret_key, err);
}

int backup_key_get_of(struct backup_key_ring *ring, const struct backup_kdf *kdf,
                      const struct backup_key **ret_key, struct error *err)
{
    int r;

    pthread_mutex_lock(&rings_lock);
    r = ring ? key_of_ring(ring, kdf, ret_key, err) : get_program_key(kdf, ret_key, err);
    pthread_mutex_unlock(&rings_lock);
    return r;
}

int backup_key_get(const struct backup_kdf *kdf, const struct backup_key **ret_key,
                   struct error *err)
{
    return backup_key_get_of(NULL, kdf, ret_key, err);
}

int backup_key_ring_new(const char *secret, bool is_passphrase, struct backup_key_ring **ret_ring,
                        struct error *err)
{
    struct backup_key_ring *ring = calloc(1, sizeof(*ring));
    char *text = NULL;
    int r = ring ? secret_get(secret, &text, &ring->size, err) : error_out_of_memory(err);

    if (r < 0) {
        free(ring);
        return r;
    }
    ring->bytes = (uint8_t *)text;
    ring->is_passphrase = is_passphrase;
    strip_newlines(ring);
    r = check_material(ring, "Secret", secret, err);
    if (r < 0) {
        backup_key_ring_free(ring);
        return r;
    }
    *ret_ring = ring;
    return 0;
}

void backup_key_ring_free(struct backup_key_ring *ring)
{
    if (!ring) {
        return;
    }
    for (size_t i = 0; i < ring->count; i++) {
        secret_free(ring->keys[i]);
    }
    secret_free(ring->bytes);
    free(ring->keys);
    free(ring);
}

int backup_key_make(const struct backup_key **ret_key, struct error *err)
{
    struct backup_kdf way = {.log_n = KDF_LOG_N};
    bool has, is_passphrase;
    int r;

    pthread_mutex_lock(&rings_lock);
    r = need_material(&has, err);
    is_passphrase = r == 0 && has && program_ring.is_passphrase;
    pthread_mutex_unlock(&rings_lock);
    if (r < 0 || !is_passphrase) {
        return r < 0 ? r : backup_key_get(NULL, ret_key, err);
    }
    if (getrandom(way.salt, sizeof(way.salt), 0) != sizeof(way.salt)) {
        return error_set_errno(err, errno, "No random salt");
    }
    return backup_key_get(&way, ret_key, err);
}

/* --- in a repository -------------------------------------------------------------------------- */

void backup_kdf_to_json(const struct backup_kdf *kdf, struct json_object *o)
{
    char *salt AUTO_FREE = kdf->log_n ? base64_encode(kdf->salt, sizeof(kdf->salt)) : NULL;

    if (salt) {
        json_object_object_add(o, "scrypt-log-n", json_object_new_int64(kdf->log_n));
        json_object_object_add(o, "scrypt-salt", json_object_new_string(salt));
    }
}

void backup_kdf_from_json(struct json_object *o, struct backup_kdf *ret_kdf)
{
    struct json_object *log_n, *salt;
    char *text AUTO_FREE = NULL;
    size_t size;

    *ret_kdf = (struct backup_kdf){0};
    if (!json_object_object_get_ex(o, "scrypt-log-n", &log_n) ||
        !json_object_object_get_ex(o, "scrypt-salt", &salt) ||
        !json_object_is_type(salt, json_type_string)) {
        return;
    }
    text = strdup(json_object_get_string(salt));
    size = text ? strlen(text) : 0;
    if (text && base64_decode(text, &size, NULL) == 0 && size == sizeof(ret_kdf->salt)) {
        memcpy(ret_kdf->salt, text, size);
        ret_kdf->log_n = (uint32_t)json_object_get_int64(log_n);
    }
}

int backup_key_authenticate(const struct backup_key *key, struct json_object *o,
                            char ret_mac[static SHA256_HEX_SIZE])
{
    uint8_t mac[SHA256_SIZE];
    size_t size;
    const char *text;

    json_object_object_del(o, "mac");
    json_object_object_del(o, "sha256");
    text = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &size);
    if (!text || hmac_sha256(key->mac, sizeof(key->mac), text, size, mac) < 0) {
        return -ENOMEM;
    }
    sha256_to_hex(mac, ret_mac);
    return 0;
}
