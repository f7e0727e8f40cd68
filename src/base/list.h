/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list. A head and a link have the same type; an unlinked link points to
 * itself, so list_remove() may be called twice.
 *
 *     head <-> a.link <-> b.link <-> head
 */
#ifndef TIDEMARK_BASE_LIST_H
#define TIDEMARK_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next;
    struct list *prev;
};

#define LIST_INIT(name)                                                                            \
    {                                                                                              \
        &(name), &(name)                                                                           \
    }

static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}

static inline bool list_is_empty(const struct list *l)
{
    return l->next == l;
}

static inline void list_insert_between_(struct list *l, struct list *prev, struct list *next)
{
    l->prev = prev;
    l->next = next;
    prev->next = l;
    next->prev = l;
}

static inline void list_append(struct list *head, struct list *l)
{
    list_insert_between_(l, head->prev, head);
}

static inline void list_prepend(struct list *head, struct list *l)
{
    list_insert_between_(l, head, head->next);
}

static inline void list_remove(struct list *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    list_init(l);
}

/* Move all entries of `from` to the end of `to`; `from` is empty afterwards. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_is_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* The link of an entry, also of the head's imagined one, which need not be aligned as an entry is. */
#define LIST_LINK_(var, member)                                                                    \
    ((struct list *)(void *)((char *)(var) + offsetof(__typeof__(*(var)), member)))

#define LIST_FOREACH(var, head, member)                                                            \
    for (var = container_of((head)->next, __typeof__(*var), member);                               \
         LIST_LINK_(var, member) != (head);                                                        \
         var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member))

/* `var` may be removed (and freed) in the body; `next_var` is scratch of the same type. */
#define LIST_FOREACH_SAFE(var, next_var, head, member)                                             \
    for (var = container_of((head)->next, __typeof__(*var), member),                               \
        next_var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member);          \
         LIST_LINK_(var, member) != (head); var = next_var,                                        \
        next_var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member))

/* First entry; the list must not be empty. */
#define LIST_FIRST(head, type, member) container_of((head)->next, type, member)

#endif
