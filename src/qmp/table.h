/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of what the monitor knows: commands and events, and their types. Nothing here yields
 * but the commands.
 */
#ifndef TIDEMARK_QMP_TABLE_H
#define TIDEMARK_QMP_TABLE_H

#include "qmp/schema.h"

struct fd_names;

/* What a command sees of the session that runs it. */
struct qmp_call {
    bool negotiated;       /* qmp_capabilities has been accepted */
    bool oob;              /* the client may ask for execution out of band */
    bool quit_after_reply; /* set by the command quit */
    bool takes_text;       /* the answer is written in one line: it may have json_text_new() */
    /*
     * Answer the command with this id that runs on the session, or waits: the session does not wait
     * for its end. NULL: no session. -errno. Does not yield.
     */
    int (*give_up)(struct qmp_call *call, struct json_object *id, struct error *err);
    /* the last descriptor that the client has passed, for a command to take; -1: none */
    int passed_fd;
    /* names of descriptors of the monitor; NULL: it has none */
    struct fd_names *fd_names;
};

/*
 * Run a command. `args` is an object that has passed the check. *ret_value gets a new reference to
 * the value to return, or is left alone to return nothing. 0 or -errno with `err` set. In a
 * coroutine of the main reactor, one command at a time, with the control lock held. May yield.
 */
typedef int qmp_co_command(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err);

struct qmp_command {
    const char *name;                 /* NULL ends the table */
    const struct schema_type *args;   /* an object */
    const struct schema_type *result; /* schema_empty for "nothing" */
    qmp_co_command *co_run;
};

struct qmp_event {
    const char *name; /* NULL ends the table */
    const struct schema_type *data;
};

extern const struct qmp_command qmp_commands[];
extern const struct qmp_event qmp_events[];

/* Commands and events that a program adds to those of the monitor. */
struct qmp_addition {
    const struct qmp_command *commands; /* ends with a NULL name; replaces those of equal names */
    const struct qmp_event *events;     /* likewise */
};

/* Add commands and events: once, at start. `addition` is borrowed for the life of the process. */
void qmp_add(const struct qmp_addition *addition);

/* The command of this name; NULL: there is none. */
const struct qmp_command *qmp_find_command(const char *name);

/*
 * Iterate over all commands and events, those that were added first; NULL begins, NULL ends.
 * Commands that were replaced are left out.
 */
const struct qmp_command *qmp_next_command(const struct qmp_command *command);
const struct qmp_event *qmp_next_event(const struct qmp_event *event);

/* Types that other code needs: options of command lines, actions of transactions. */
extern const struct schema_type qmp_type_nbd_server_options; /* --nbd-server */
extern const struct schema_type qmp_type_transaction_action;

/*
 * The answer to query-qmp-schema for all commands and events: an array of QEMU's SchemaInfo. A new
 * reference.
 */
struct json_object *qmp_introspect(void);
/*
 * Likewise, with what documents need: "help" of commands, events, types and members, and
 * "default-text", "unit", "min" and "max" of members.
 */
struct json_object *qmp_introspect_with_texts(void);

#endif
