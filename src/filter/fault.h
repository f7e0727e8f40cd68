/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rules of fault injection: at which event, in which state, which requests fail and how. Grammar
 * and meaning are those of QEMU's blkdebug (docs/devel/blkdebug.txt there):
 *
 *   - The state is a number, 1 in the beginning.
 *   - When an event occurs, each rule for that event acts that has no state or the present one.
 *     inject-error rules become *active*: the first to do so replaces those that were active
 *     before. set-state rules change the state after that.
 *   - An active rule fails every request that has its iotype and covers its sector; with `once`,
 *     only the first.
 *   - The event "none" occurs once, at open.
 *   - A breakpoint holds the request in which its event occurs next, under the breakpoint's tag,
 *     until the request is resumed.
 *
 * Any thread; only fault_rules_co_event() yields.
 */
#ifndef TIDEMARK_FILTER_FAULT_H
#define TIDEMARK_FILTER_FAULT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "block/event.h"
#include "block/options.h"
#include "schema/schema.h"

enum fault_iotype {
    FAULT_IO_READ,
    FAULT_IO_WRITE,
    FAULT_IO_WRITE_ZEROES,
    FAULT_IO_DISCARD,
    FAULT_IO_FLUSH,
    FAULT_IO_BLOCK_STATUS,
    FAULT_IO_COUNT
};

/* The options inject-error and set-state: lists of rules. */
extern const struct schema_type fault_inject_type, fault_set_state_type;

struct fault_rules {
    pthread_mutex_t lock; /* guards the following members */
    struct list rules;    /* of struct fault_rule */
    struct list active;   /* newest first */
    struct list held;     /* requests at breakpoints */
    uint32_t state;
};

/* No rules; release all rules, when no request is held. */
void fault_rules_init(struct fault_rules *r);
void fault_rules_destroy(struct fault_rules *r);

/*
 * Add a rule of a group ("inject-error", "set-state"); takes its options from `opts`. -EINVAL,
 * -ENOMEM
 */
int fault_rules_add(struct fault_rules *r, const char *group, struct options *opts,
                    struct error *err);
/*
 * Add the rules of a file: `[group]` lines and `key = "value"` lines; '#' begins a comment. The
 * rules belong to the caller alone. Yields.
 */
int fault_rules_co_load(struct fault_rules *r, const char *filename, struct error *err);

/* An event occurs. In a coroutine; yields while a breakpoint holds it. */
void fault_rules_co_event(struct fault_rules *r, int event);
/* What a rule does to a request. */
struct fault_effect {
    int r; /* 0, or -errno */
    bool immediately;
    uint64_t delay_ns; /* the request takes that long, or longer */
};
/* Of the rule that applies; {0}: none does. length 0: only rules without a sector apply. */
struct fault_effect fault_rules_check(struct fault_rules *r, enum fault_iotype type,
                                      uint64_t offset, uint64_t length);

/* Set a breakpoint: hold the request in which `event` occurs next. -ENOMEM */
int fault_rules_break(struct fault_rules *r, int event, const char *tag);
/* Resume the requests held under `tag` (NULL, also below: any). -ENOENT: none is held. */
int fault_rules_resume(struct fault_rules *r, const char *tag);
/* Remove breakpoints, and resume the requests held there. -ENOENT */
int fault_rules_remove_break(struct fault_rules *r, const char *tag);
bool fault_rules_is_held(struct fault_rules *r, const char *tag);

#endif
