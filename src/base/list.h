/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intrusive doubly linked list. A head and the link in an entry have the same type.
 *
 *     head <-> a.link <-> b.link <-> head
 *
 * A link that is in no list points to itself, so list_remove() may be called twice. No locks; the
 * owner of the entries keeps their memory. None of these yields.
 */
#ifndef TIDEMARK_BASE_LIST_H
#define TIDEMARK_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *next;
    struct list *prev;
};

/* Initializer of a head. */
#define LIST_INIT(name)                                                                            \
    {                                                                                              \
        &(name), &(name)                                                                           \
    }

/* Initialize a head or a link. */
static inline void list_init(struct list *l)
{
    l->next = l->prev = l;
}

/* Of a head: whether the list is empty. Of an initialized link: whether it is in no list. */
static inline bool list_is_empty(const struct list *l)
{
    return l->next == l;
}

/* Internal: link `l` between two neighbours. */
static inline void list_insert_between_(struct list *l, struct list *prev, struct list *next)
{
    l->prev = prev;
    l->next = next;
    prev->next = l;
    next->prev = l;
}

/* Add a link, which is in no list, at the end. */
static inline void list_append(struct list *head, struct list *l)
{
    list_insert_between_(l, head->prev, head);
}

/* Add a link, which is in no list, at the beginning. */
static inline void list_prepend(struct list *head, struct list *l)
{
    list_insert_between_(l, head, head->next);
}

/* Take a link out of its list; nothing if it is in none. */
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

/* The struct of this type whose member `ptr` points to. */
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

/* The link of an entry; `var` may also stand for the head, and need not be aligned as an entry. */
#define LIST_LINK_(var, member)                                                                    \
    ((struct list *)(void *)((char *)(var) + offsetof(__typeof__(*(var)), member)))

/* Loop over all entries, from the first; `member` is the link. The body must not remove `var`. */
#define LIST_FOREACH(var, head, member)                                                            \
    for (var = container_of((head)->next, __typeof__(*var), member);                               \
         LIST_LINK_(var, member) != (head);                                                        \
         var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member))

/* As LIST_FOREACH(), but the body may remove and free `var`. `next_var` is a second variable. */
#define LIST_FOREACH_SAFE(var, next_var, head, member)                                             \
    for (var = container_of((head)->next, __typeof__(*var), member),                               \
        next_var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member);          \
         LIST_LINK_(var, member) != (head); var = next_var,                                        \
        next_var = container_of(LIST_LINK_(var, member)->next, __typeof__(*var), member))

/* The first entry of a list that is not empty. */
#define LIST_FIRST(head, type, member) container_of((head)->next, type, member)

#endif
