/* SPDX-License-Identifier: Apache-2.0 */
#include "http/remote.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/checked.h"
#include "base/cleanup.h"
#include "http/content_range.h"
#include "http/libcurl_lazy.h"

/* Connections that are kept while nobody uses them. */
#define IDLE_MAX 8
#define REDIRECTS_MAX 16L
/* Fewer bytes a second, for as long as the time limit, count as no answer. */
#define SLOWEST 1000L
#define TAG_MAX 128

struct http_file {
    struct http_target target;
    uint64_t size;
    /* Headers of the first answer; "": it had none. */
    char tag[TAG_MAX], modified[TAG_MAX];
    pthread_mutex_t lock; /* guards all below */
    CURL *idle[IDLE_MAX];
    unsigned idle_count;
};

void http_target_clear(struct http_target *t)
{
    char *secrets[] = {t->password, t->proxy_password, t->cookie};

    for (size_t i = 0; i < ARRAY_SIZE(secrets); i++) {
        if (secrets[i]) {
            explicit_bzero(secrets[i], strlen(secrets[i]));
            free(secrets[i]);
        }
    }
    free(t->url);
    free(t->username);
    free(t->proxy_username);
    *t = (struct http_target){0};
}

/* --- one answer ------------------------------------------------------------------------------- */

/* A request, and what comes of it. */
struct transfer {
    CURL *curl;
    const struct http_file *file;
    uint64_t offset;
    uint8_t *buf;
    size_t size, done;
    /* Of the latest answer: redirections and questions for a password are answers, too. */
    struct content_range range;
    bool has_range;
    char tag[TAG_MAX], modified[TAG_MAX], date[TAG_MAX];
    bool is_encoded;
    /* Why the answer is refused; "": it is not. */
    char refusal[160];
    int refused; /* errno */
    char message[CURL_ERROR_SIZE];
};

/* The value of a header if it has this name; NULL: it has another. */
static const char *value_of(const char *line, size_t size, const char *name, size_t *ret_size)
{
    size_t length = strlen(name);

    if (size <= length || strncasecmp(line, name, length) != 0 || line[length] != ':') {
        return NULL;
    }
    *ret_size = size - length - 1;
    return line + length + 1;
}

/* The value without the space around it. */
static const char *trim_value(const char *value, size_t *size)
{
    while (*size > 0 && (*value == ' ' || *value == '\t')) {
        value++;
        (*size)--;
    }
    while (*size > 0 && strchr(" \t\r\n", value[*size - 1])) {
        (*size)--;
    }
    return value;
}

/* Keep a header by which the file is known again; one that is too long counts as none. */
static void note_version(char text[TAG_MAX], const char *value, size_t size)
{
    size = size < TAG_MAX ? size : 0;
    memcpy(text, value, size);
    text[size] = '\0';
}

static void note_header(struct transfer *t, const char *line, size_t size)
{
    const char *value;
    size_t length;

    if ((value = value_of(line, size, "Content-Range", &length))) {
        t->has_range = content_range_parse(value, length, &t->range);
    } else if ((value = value_of(line, size, "ETag", &length))) {
        value = trim_value(value, &length);
        /* A weak one says nothing of the bytes. */
        note_version(t->tag, value, length > 0 && *value == '"' ? length : 0);
    } else if ((value = value_of(line, size, "Last-Modified", &length))) {
        value = trim_value(value, &length);
        note_version(t->modified, value, length);
    } else if ((value = value_of(line, size, "Date", &length))) {
        value = trim_value(value, &length);
        note_version(t->date, value, length);
    } else if ((value = value_of(line, size, "Content-Encoding", &length))) {
        value = trim_value(value, &length);
        t->is_encoded = length > 0 && !(length == 8 && strncasecmp(value, "identity", length) == 0);
    }
}

static size_t on_header(char *line, size_t one, size_t size, void *arg)
{
    struct transfer *t = arg;

    if (size > 5 && strncasecmp(line, "HTTP/", 5) == 0) {
        t->has_range = t->is_encoded = false;
        t->tag[0] = t->modified[0] = t->date[0] = '\0';
    } else {
        note_header(t, line, size);
    }
    return size;
}

static void refuse_answer(struct transfer *t, int error, const char *sentence)
{
    snprintf(t->refusal, sizeof(t->refusal), "%s", sentence);
    t->refused = error;
}

/* Whether an answer is about the file that was opened, as far as its headers say. */
static bool is_same_file(const struct transfer *t)
{
    const struct http_file *f = t->file;

    if (t->range.total != f->size) {
        return false;
    }
    if (t->tag[0] && f->tag[0]) {
        return strcmp(t->tag, f->tag) == 0;
    }
    return !t->modified[0] || !f->modified[0] || strcmp(t->modified, f->modified) == 0;
}

/* Whether the answer is the one to this request. */
static bool check_answer(struct transfer *t)
{
    const struct http_file *f = t->file;
    long status = 0;

    /* Some servers put the time of the answer there, which says nothing of the file. */
    if (strcmp(t->modified, t->date) == 0) {
        t->modified[0] = '\0';
    }
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (status != 206) {
        refuse_answer(t, ENOTSUP, "Server does not support 'range' (byte ranges).");
    } else if (!t->has_range || !t->range.is_satisfied || t->range.first != t->offset ||
               t->range.last - t->range.first >= t->size) {
        refuse_answer(t, EIO, "Server sends another range of bytes than it was asked for.");
    } else if (!t->range.has_total) {
        refuse_answer(t, EIO, "Server didn't report file size.");
    } else if (t->is_encoded) {
        refuse_answer(t, EIO, "Server sends the file compressed (Content-Encoding).");
    } else if (f->size && !is_same_file(t)) {
        refuse_answer(t, EIO, "The file has changed on the server.");
    }
    return t->refused == 0;
}

static size_t on_body(char *data, size_t one, size_t size, void *arg)
{
    struct transfer *t = arg;

    if (t->refused || (t->done == 0 && !check_answer(t))) {
        return 0;
    }
    if (size > t->size - t->done) {
        refuse_answer(t, EIO, "Server sends more bytes than it was asked for.");
        return 0;
    }
    memcpy(t->buf + t->done, data, size);
    t->done += size;
    return size;
}

/* --- connections ------------------------------------------------------------------------------ */

static void set_remote_text(CURL *curl, CURLoption option, const char *text)
{
    if (text) {
        curl_easy_setopt(curl, option, text);
    }
}

static void set_target(CURL *curl, const struct http_target *t)
{
    const char *protocols = t->is_https ? "https" : "http,https";

    curl_easy_setopt(curl, CURLOPT_URL, t->url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_REDIR_PROTOCOLS_STR, protocols);
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(curl, CURLOPT_MAXREDIRS, REDIRECTS_MAX);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)t->timeout);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, (long)t->timeout);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, t->timeout ? SLOWEST : 0L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, t->verify ? 1L : 0L);
    curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, t->verify ? 2L : 0L);
    curl_easy_setopt(curl, CURLOPT_HTTPAUTH, (long)CURLAUTH_ANY);
    curl_easy_setopt(curl, CURLOPT_PROXYAUTH, (long)CURLAUTH_ANY);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    set_remote_text(curl, CURLOPT_USERNAME, t->username);
    set_remote_text(curl, CURLOPT_PASSWORD, t->password);
    set_remote_text(curl, CURLOPT_PROXYUSERNAME, t->proxy_username);
    set_remote_text(curl, CURLOPT_PROXYPASSWORD, t->proxy_password);
    set_remote_text(curl, CURLOPT_COOKIE, t->cookie);
}

static CURL *get_connection(struct http_file *f)
{
    CURL *curl = NULL;

    pthread_mutex_lock(&f->lock);
    if (f->idle_count > 0) {
        curl = f->idle[--f->idle_count];
    }
    pthread_mutex_unlock(&f->lock);
    if (!curl) {
        curl = curl_easy_init();
        if (curl) {
            set_target(curl, &f->target);
        }
    }
    return curl;
}

/* One whose request has failed is not used again. */
static void put_connection(struct http_file *f, CURL *curl, bool is_good)
{
    bool keep;

    pthread_mutex_lock(&f->lock);
    keep = is_good && f->idle_count < IDLE_MAX;
    if (keep) {
        f->idle[f->idle_count++] = curl;
    }
    pthread_mutex_unlock(&f->lock);
    if (!keep) {
        curl_easy_cleanup(curl);
    }
}

/* --- requests --------------------------------------------------------------------------------- */

/* What a failure means for the caller. */
static int errno_of(const struct transfer *t, CURLcode code)
{
    long status = 0;

    switch (code) {
    case CURLE_COULDNT_CONNECT:
    case CURLE_GOT_NOTHING:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_PARTIAL_FILE:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
        return -EAGAIN;
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_OUT_OF_MEMORY:
        return -ENOMEM;
    case CURLE_HTTP_RETURNED_ERROR:
        curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
        return status >= 500 || status == 429 ? -EAGAIN : status == 404 ? -ENOENT : -EIO;
    default:
        return -EIO;
    }
}

static int perform(struct transfer *t, struct error *err)
{
    char range[64];
    CURLcode code;
    int r;

    snprintf(range, sizeof(range), "%llu-%llu", (unsigned long long)t->offset,
             (unsigned long long)(t->offset + t->size - 1));
    curl_easy_setopt(t->curl, CURLOPT_RANGE, range);
    curl_easy_setopt(t->curl, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(t->curl, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(t->curl, CURLOPT_ERRORBUFFER, t->message);
    code = curl_easy_perform(t->curl);
    curl_easy_setopt(t->curl, CURLOPT_ERRORBUFFER, NULL);
    if (t->refused) {
        return error_set(err, t->refused, "%s", t->refusal);
    }
    if (code == CURLE_OK) {
        return 0;
    }
    r = errno_of(t, code);
    return error_set(err, -r, "%s", t->message[0] ? t->message : curl_easy_strerror(code));
}

int http_file_read(struct http_file *f, uint64_t offset, void *buf, size_t size, size_t *ret_done,
                   struct error *err)
{
    struct transfer t = {
        .curl = get_connection(f), .file = f, .offset = offset, .buf = buf, .size = size};
    int r;

    *ret_done = 0;
    if (!t.curl) {
        return error_out_of_memory(err);
    }
    r = perform(&t, err);
    put_connection(f, t.curl, r == 0);
    *ret_done = t.done;
    if (r == 0 && t.done < size) {
        r = error_set(err, EAGAIN, "Server sends fewer bytes than it was asked for.");
    }
    return r;
}

/* --- opening ---------------------------------------------------------------------------------- */

/* Read the first byte: a server may not answer HEAD, and may only say that it obeys ranges. */
static int probe_server(struct http_file *f, struct error *err)
{
    uint8_t first;
    struct transfer t = {.curl = get_connection(f), .file = f, .buf = &first, .size = 1};
    long status = 0;
    int r;

    if (!t.curl) {
        return error_out_of_memory(err);
    }
    r = perform(&t, err);
    curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &status);
    if (status == 416 && t.has_range && !t.range.is_satisfied && t.range.total == 0) {
        error_clear(err);
        r = 0; /* it is empty */
    } else if (r == 0 && t.done == 0) {
        /* An answer without a body was not looked at. */
        r = check_answer(&t) ? error_set(err, EIO, "Server didn't report file size.")
                             : error_set(err, t.refused, "%s", t.refusal);
    } else if (r == 0) {
        f->size = t.range.total;
        memcpy(f->tag, t.tag, sizeof(f->tag));
        memcpy(f->modified, t.modified, sizeof(f->modified));
    }
    put_connection(f, t.curl, r == 0 && t.done == 1);
    return r;
}

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void init_curl(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

int http_file_open(struct http_target *target, struct http_file **ret_file, struct error *err)
{
    struct http_file *f = calloc(1, sizeof(*f));
    int r = f ? lazy_libcurl_load(err) : error_out_of_memory(err);

    if (r < 0) {
        http_target_clear(target);
        free(f);
        return r;
    }
    pthread_once(&curl_once, init_curl);
    pthread_mutex_init(&f->lock, NULL);
    f->target = *target;
    *target = (struct http_target){0};
    r = probe_server(f, err);
    if (r < 0) {
        error_prepend(err, "CURL: Error opening file: ");
        http_file_close(f);
        return r;
    }
    *ret_file = f;
    return 0;
}

void http_file_close(struct http_file *f)
{
    if (!f) {
        return;
    }
    while (f->idle_count > 0) {
        curl_easy_cleanup(f->idle[--f->idle_count]);
    }
    pthread_mutex_destroy(&f->lock);
    http_target_clear(&f->target);
    free(f);
}

uint64_t http_file_size(const struct http_file *f)
{
    return f->size;
}
