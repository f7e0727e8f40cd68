/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the layer: what all chardevs have, and what their types do. Yields as chardev.h says. */
#ifndef TIDEMARK_CHARDEV_INTERNAL_H
#define TIDEMARK_CHARDEV_INTERNAL_H

#include "base/list.h"
#include "block/socket_address.h"
#include "chardev/chardev.h"

struct tls_creds;
struct tls_session;

struct chardev_ops {
    const char *name; /* the type of the backend */
    size_t size;      /* of the state, which begins with a struct chardev */
    /* Open what `data` (of the backend) says. On failure `co_free` is called. */
    int (*co_open)(struct chardev *c, struct json_object *data, struct error *err);
    /* There is a user now: let clients in. */
    int (*start)(struct chardev *c, struct error *err);
    /* Let no more clients in, and end coroutines that wait for them. NULL: nothing to do. */
    void (*co_stop)(struct chardev *c);
    /* A talk on `fd` has ended. NULL: nothing to do. */
    void (*left)(struct chardev *c, int fd);
    /* Cut the connections to clients. NULL: there are none. Does not yield. */
    void (*cut)(struct chardev *c);
    /* Release the state, not the struct itself; after `co_stop`, when nothing runs. NULL: none. */
    void (*co_free)(struct chardev *c);
    /* For query-chardev; NULL: the name of the type. */
    char *(*filename)(const struct chardev *c);
};

struct chardev {
    struct list link; /* of all */
    char *id;         /* owned */
    const struct chardev_ops *ops;
    chardev_begin *begin; /* of the user; NULL: there is none */
    void *arg;
    int log_fd;        /* records what is sent; owned; -1: nothing */
    bool opening;      /* chardev_co_new() works on it */
    bool stopped;      /* no more clients are let in */
    unsigned clients;  /* talks that have not ended */
    unsigned running;  /* coroutines that use the chardev */
    struct co *waiter; /* the coroutine that waits until `clients` is 0; NULL: none */
};

extern const struct chardev_ops chardev_socket_ops, chardev_null_ops, chardev_file_ops,
    chardev_pipe_ops, chardev_stdio_ops, chardev_pty_ops, chardev_ringbuf_ops;

/* --- service.c -------------------------------------------------------------------------------- */

/* Run `entry(c)` as a coroutine that calls chardev_ran() at its end. */
int chardev_spawn(struct chardev *c, void (*entry)(void *c), struct error *err);
void chardev_ran(struct chardev *c);

/* Hand a connected socket, which is consumed, to the user. Does not yield. */
int chardev_begin_client(struct chardev *c, int fd, struct error *err);
/* Wait until no client is left. One coroutine at a time. */
void chardev_co_wait_left(struct chardev *c);

/* Members of `data`, which has passed its check; the default if they are absent. */
const char *chardev_text(struct json_object *data, const char *name);
bool chardev_flag(struct json_object *data, const char *name, bool dflt);
int64_t chardev_number(struct json_object *data, const char *name, int64_t dflt);

/* --- pump.c ----------------------------------------------------------------------------------- */

/* Keep output of the user. Does not yield. */
typedef void chardev_keep(struct chardev *c, const char *data, size_t size);

/* The client's end of a talk that is carried. All are borrowed. */
struct chardev_ends {
    int in;                  /* where input comes from; -1: there is none */
    int out;                 /* where output goes; -1: nowhere */
    bool is_socket;          /* `in` and `out` are one socket */
    bool out_blocks;         /* `out` is a file, which can't be waited for */
    struct tls_session *tls; /* over `in` and `out`; NULL: none */
    chardev_keep *keep;      /* gets the output, too; NULL: nobody does */
    int near;                /* set by chardev_co_carry(): our end of the pair; -1 outside */
};

/*
 * Give the user one end of a pair, and carry bytes between the other and the client until both
 * directions have ended. 0, or why the talk did not begin.
 */
int chardev_co_carry(struct chardev *c, struct chardev_ends *ends, struct error *err);

/* Give `keep` the output that has been sent so far and is not yet carried. */
void chardev_catch_up(struct chardev *c, struct chardev_ends *ends);

/* --- socket.c, socket_clients.c, socket_talk.c ------------------------------------------------ */

/* A talk that goes on. */
struct socket_talk {
    struct list link; /* of the chardev */
    int fd;           /* borrowed */
};

struct socket_chardev {
    struct chardev base;
    struct socket_address address;
    bool server, nodelay;
    int64_t reconnect_ms;    /* 0: a client connects once */
    struct tls_creds *creds; /* a reference; NULL: no TLS */
    char *authz;             /* owned; looked up for each client; NULL: all are allowed */
    int fd;                  /* listening; or of the client before it has a user; -1: none */
    int current;             /* borrowed: of the latest talk, for query-chardev; -1: none */
    bool makes_file;         /* a socket file, which is removed at the end */
    struct list talks;       /* of struct socket_talk */
};

/* `start` and `stop` of sockets. */
int chardev_socket_start(struct chardev *c, struct error *err);
void chardev_socket_co_stop(struct chardev *c);

/*
 * Talk on a connected socket, which is consumed: by TLS and recorded as is wanted. Without either,
 * the user has the socket itself, and this returns at once. 0, or why the talk did not begin.
 */
int chardev_socket_co_talk(struct socket_chardev *s, int fd, struct error *err);
/* The talk on `fd`, which may be closed already, has ended. */
void chardev_socket_forget(struct chardev *c, int fd);
/* Cut all talks. */
void chardev_socket_cut(struct chardev *c);

#endif
