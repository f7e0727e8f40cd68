/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors that carry a sentence.
 *
 * A function that can fail returns 0 (or a count) or -errno and takes a `struct error *` that
 * it fills on failure. The sentence names the file or node, what was expected and what was
 * found. Only the edge (command line, QMP, log) prints it. `err` may be NULL everywhere: then only
 * the code travels. On success an error object is never touched.
 *
 * None of these functions yields.
 */
#ifndef TIDEMARK_BASE_ERROR_H
#define TIDEMARK_BASE_ERROR_H

#include <stdarg.h>

/* QMP error classes (QEMU docs/interop/qmp-spec, "Error"). Almost everything is generic. */
enum error_class {
    ERROR_CLASS_GENERIC,
    ERROR_CLASS_COMMAND_NOT_FOUND,
    ERROR_CLASS_DEVICE_NOT_ACTIVE,
    ERROR_CLASS_DEVICE_NOT_FOUND,
    ERROR_CLASS_KVM_MISSING_CAP,
};

struct error {
    int code;      /* positive errno; 0 while nothing was reported */
    char *message; /* owned; NULL while nothing was reported (or out of memory) */
    char *hint;    /* owned; NULL unless there is a way out worth a line of its own */
    enum error_class error_class;
};

#define ERROR_INIT ((struct error){0})

/* Declares `struct error name`, empty, released when the scope ends. */
#define ERROR_AUTO(name) __attribute__((cleanup(error_clear))) struct error name = ERROR_INIT

/*
 * Fill `err` with a formatted sentence (no full stop, no newline at its end). `errnum` is a
 * positive errno value and is not printed by itself. A second call replaces nothing: the first
 * cause wins. Returns -errnum, so `return error_set(err, EINVAL, ...)` is the idiom.
 */
int error_set(struct error *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set(), and appends ": " and strerror(errnum). */
int error_set_errno(struct error *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set(), with a QMP error class. */
int error_set_class(struct error *err, enum error_class error_class, int errnum, const char *fmt,
                    ...) __attribute__((format(printf, 4, 5)));

int error_vset(struct error *err, int errnum, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* Put formatted text before the sentence, if there is one: "Could not open 'x': " + cause. */
void error_prepend(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Add a line that tells the user the way out. Replaces an earlier hint. */
void error_hint(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Move `from` (which is empty afterwards) to `to`; dropped when `to` is NULL or has a cause
 * already. */
void error_move(struct error *to, struct error *from);

/* Release what `err` holds and make it empty. */
void error_clear(struct error *err);

/* Whether something was reported. */
static inline int error_is_set(const struct error *err)
{
    return err && err->code != 0;
}

/*
 * Take one more step, unless an earlier one failed: `UNLESS_FAILED(r, co_write(x));` does what
 * `if (r >= 0) r = co_write(x);` does. For a sequence that ends in the same clean-up whatever
 * happened. A function that has nothing to clean up returns early instead.
 */
#define UNLESS_FAILED(r, step) ((r) < 0 ? (r) : ((r) = (step)))

/* The first error of two results, both of which are known: 0 or a count is no error. */
static inline int error_first(int first, int second)
{
    return first < 0 ? first : second;
}

/* The sentence, or strerror() of the code where there is none. Never NULL. Valid until the object
 * changes. */
const char *error_message(const struct error *err);

#endif
