/* SPDX-License-Identifier: Apache-2.0 */
#include "export/io_error.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "export/export.h"
#include "loop/loop.h"

struct export_io_errors {
    char *id;         /* owned */
    atomic_uint refs; /* the export, and a report on the way */
    /* Guards all below. */
    pthread_mutex_t guard;
    bool on_the_way;
    uint64_t count;
    /* The latest failure. */
    const char *request;
    uint64_t offset, length;
    int error;
};

static void (*listener)(const struct export_io_error *e);

void export_set_io_error_fn(void (*fn)(const struct export_io_error *e))
{
    listener = fn;
}

void export_io_errors_release(struct export_io_errors *errors)
{
    if (errors && atomic_fetch_sub(&errors->refs, 1) == 1) {
        pthread_mutex_destroy(&errors->guard);
        free(errors->id);
        free(errors);
    }
}

/* On the main reactor. */
static void co_report_io_error(void *arg)
{
    struct export_io_errors *errors = arg;
    struct export_io_error e = {.id = errors->id};

    pthread_mutex_lock(&errors->guard);
    errors->on_the_way = false;
    e.request = errors->request;
    e.offset = errors->offset;
    e.length = errors->length;
    e.error = errors->error;
    e.count = errors->count;
    pthread_mutex_unlock(&errors->guard);
    e.is_write = strcmp(e.request, "read") != 0;
    if (listener) {
        listener(&e);
    }
    export_io_errors_release(errors);
}

struct export_io_errors *export_io_errors_new(const char *id)
{
    struct export_io_errors *errors = calloc(1, sizeof(*errors));

    if (!errors) {
        return NULL;
    }
    errors->id = strdup(id);
    if (!errors->id) {
        free(errors);
        return NULL;
    }
    pthread_mutex_init(&errors->guard, NULL);
    atomic_init(&errors->refs, 1);
    return errors;
}

void export_io_errors_note(struct export_io_errors *errors, const char *request, uint64_t offset,
                           uint64_t length, int error)
{
    bool begin;

    pthread_mutex_lock(&errors->guard);
    errors->count++;
    errors->request = request;
    errors->offset = offset;
    errors->length = length;
    errors->error = error;
    begin = !errors->on_the_way;
    errors->on_the_way = true;
    pthread_mutex_unlock(&errors->guard);
    if (!begin) {
        return;
    }
    atomic_fetch_add(&errors->refs, 1);
    if (reactor_spawn(reactor_main(), co_report_io_error, errors) < 0) {
        /* Without memory the next failure is reported. */
        pthread_mutex_lock(&errors->guard);
        errors->on_the_way = false;
        pthread_mutex_unlock(&errors->guard);
        export_io_errors_release(errors);
    }
}
