/* SPDX-License-Identifier: Apache-2.0 */
/* The commands and events of the monitor, and those that a program adds. */
#include <string.h>

#include "qmp/table.h"

static const struct qmp_command no_commands[] = {{NULL, NULL, NULL, NULL}};
static const struct qmp_event no_events[] = {{NULL, NULL}};
static const struct qmp_addition nothing = {no_commands, no_events};
static const struct qmp_addition *added = &nothing;

void qmp_add(const struct qmp_addition *addition)
{
    added = addition;
}

/* --- commands --------------------------------------------------------------------------------- */

/* The row of this name; the row at the end of the table if there is none. */
static const struct qmp_command *row_of_command(const struct qmp_command *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0) {
        table++;
    }
    return table;
}

const struct qmp_command *qmp_find_command(const char *name)
{
    const struct qmp_command *row = row_of_command(added->commands, name);

    row = row->name ? row : row_of_command(qmp_commands, name);
    return row->name ? row : NULL;
}

/* The row after `command`, of either table; the end of the second one at the end. */
static const struct qmp_command *next_row(const struct qmp_command *command)
{
    const struct qmp_command *next = command ? command + 1 : added->commands;
    const struct qmp_command *end = added->commands;

    while (end->name) {
        end++;
    }
    return next == end ? qmp_commands : next;
}

const struct qmp_command *qmp_next_command(const struct qmp_command *command)
{
    do {
        command = next_row(command);
    } while (command->name && qmp_find_command(command->name) != command);
    return command->name ? command : NULL;
}

/* --- events ----------------------------------------------------------------------------------- */

static const struct qmp_event *row_of_event(const struct qmp_event *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0) {
        table++;
    }
    return table;
}

static const struct qmp_event *find_event(const char *name)
{
    const struct qmp_event *row = row_of_event(added->events, name);

    return row->name ? row : row_of_event(qmp_events, name);
}

static const struct qmp_event *next_event_row(const struct qmp_event *event)
{
    const struct qmp_event *next = event ? event + 1 : added->events, *end = added->events;

    while (end->name) {
        end++;
    }
    return next == end ? qmp_events : next;
}

const struct qmp_event *qmp_next_event(const struct qmp_event *event)
{
    do {
        event = next_event_row(event);
    } while (event->name && find_event(event->name) != event);
    return event->name ? event : NULL;
}
