/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A libvirt.so.0 for tests: every call is put to whoever listens at the socket FAKE_LIBVIRT
 * (tests/lib/fake_libvirt.py), with its arguments.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backup/libvirt_api.h"

#define OUTPUT_MAX 65536

struct vir_connect {
    char unused;
};
struct vir_domain {
    char *name;
};
struct vir_checkpoint {
    char *name;
};

static char message[1024];

/*
 * Ask: the words end in NUL each, the question at the end of the stream. The answer is "+TEXT", or
 * "-MESSAGE", and then the result is NULL; else it is malloc'ed.
 */
static char *call(const char *word, ...)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char *text = calloc(1, OUTPUT_MAX);
    size_t used = 0;
    ssize_t n;
    va_list ap;

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", getenv("FAKE_LIBVIRT"));
    if (fd < 0 || !text || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        abort();
    }
    va_start(ap, word);
    for (; word; word = va_arg(ap, const char *)) {
        if (write(fd, word, strlen(word) + 1) < 0) {
            abort();
        }
    }
    va_end(ap);
    shutdown(fd, SHUT_WR);
    while (used + 1 < OUTPUT_MAX && (n = read(fd, text + used, OUTPUT_MAX - 1 - used)) > 0) {
        used += (size_t)n;
    }
    close(fd);
    if (text[0] != '+') {
        snprintf(message, sizeof(message), "%s", text + 1);
        free(text);
        return NULL;
    }
    memmove(text, text + 1, used);
    return text;
}

static int call_done(char *text)
{
    int r = text ? 0 : -1;

    free(text);
    return r;
}

struct vir_connect *virConnectOpen(const char *uri)
{
    return calloc(1, sizeof(struct vir_connect));
}

int virConnectClose(struct vir_connect *c)
{
    free(c);
    return 0;
}

const char *virGetLastErrorMessage(void)
{
    return message;
}

void virSetErrorFunc(void *data, void (*handler)(void *data, void *error))
{
}

struct vir_domain *virDomainLookupByName(struct vir_connect *c, const char *name)
{
    struct vir_domain *d = call_done(call("lookup", name, NULL)) < 0 ? NULL : calloc(1, sizeof(*d));

    if (d) {
        d->name = strdup(name);
    }
    return d;
}

int virDomainFree(struct vir_domain *d)
{
    free(d->name);
    free(d);
    return 0;
}

int virDomainIsActive(struct vir_domain *d)
{
    return 1;
}

char *virDomainGetXMLDesc(struct vir_domain *d, unsigned flags)
{
    return call("xml", NULL);
}

int virDomainGetBlockInfo(struct vir_domain *d, const char *disk, struct vir_block_info *info,
                          unsigned flags)
{
    char *text = call("size", disk, NULL);

    if (text) {
        info->capacity = strtoull(text, NULL, 10);
    }
    return call_done(text);
}

int virDomainBackupBegin(struct vir_domain *d, const char *backup, const char *checkpoint,
                         unsigned flags)
{
    return call_done(call("begin", backup, checkpoint ? checkpoint : "", NULL));
}

char *virDomainBackupGetXMLDesc(struct vir_domain *d, unsigned flags)
{
    return call("job", NULL);
}

int virDomainAbortJob(struct vir_domain *d)
{
    return call_done(call("abort", NULL));
}

int virDomainAgentSetResponseTimeout(struct vir_domain *d, int seconds, unsigned flags)
{
    return 0;
}

int virDomainFSFreeze(struct vir_domain *d, const char **mountpoints, unsigned count,
                      unsigned flags)
{
    return call_done(call("freeze", NULL));
}

int virDomainFSThaw(struct vir_domain *d, const char **mountpoints, unsigned count, unsigned flags)
{
    return call_done(call("thaw", NULL));
}

static struct vir_checkpoint *new_checkpoint(const char *name, size_t len)
{
    struct vir_checkpoint *c = calloc(1, sizeof(*c));

    c->name = strndup(name, len);
    return c;
}

struct vir_checkpoint *virDomainCheckpointCreateXML(struct vir_domain *d, const char *xml,
                                                    unsigned flags)
{
    return call_done(call("redefine", xml, NULL)) < 0 ? NULL : new_checkpoint("", 0);
}

int virDomainCheckpointDelete(struct vir_checkpoint *c, unsigned flags)
{
    return call_done(call("delete", c->name, NULL));
}

int virDomainCheckpointFree(struct vir_checkpoint *c)
{
    free(c->name);
    free(c);
    return 0;
}

const char *virDomainCheckpointGetName(struct vir_checkpoint *c)
{
    return c->name;
}

char *virDomainCheckpointGetXMLDesc(struct vir_checkpoint *c, unsigned flags)
{
    return call("checkpoint", c->name, NULL);
}

struct vir_checkpoint *virDomainCheckpointLookupByName(struct vir_domain *d, const char *name,
                                                       unsigned flags)
{
    return call_done(call("checkpoint", name, NULL)) < 0 ? NULL
                                                         : new_checkpoint(name, strlen(name));
}

int virDomainListAllCheckpoints(struct vir_domain *d, struct vir_checkpoint ***list, unsigned flags)
{
    char *text = call("checkpoints", NULL), *line = text, *end;
    int count = 0;

    *list = calloc(256, sizeof(struct vir_checkpoint *));
    while (line && (end = strchr(line, '\n')) != NULL) {
        (*list)[count++] = new_checkpoint(line, (size_t)(end - line));
        line = end + 1;
    }
    free(text);
    return text ? count : -1;
}
