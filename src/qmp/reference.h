/* SPDX-License-Identifier: Apache-2.0 */
/* Texts and features of commands and events. Nothing here yields. */
#ifndef TIDEMARK_QMP_REFERENCE_H
#define TIDEMARK_QMP_REFERENCE_H

struct qmp_reference {
    const char *name;
    /* What the command does, or when the event occurs: Markdown, one line, no full stop. */
    const char *help;
    /* As those of types (schema/schema.h); NULL: none. */
    const char *const *features;
};

/* NULL: there is none. */
const struct qmp_reference *qmp_command_reference(const char *name);
const struct qmp_reference *qmp_event_reference(const char *name);

#endif
