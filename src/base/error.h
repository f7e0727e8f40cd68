/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors that carry a sentence.
 *
 * A function that can fail returns 0 (or a count) or -errno, and takes a `struct error *` that it
 * fills on failure. The sentence names the file or node, what was expected and what was found. Only
 * the edge (command line, QMP, log) prints the sentence. `err` may be NULL everywhere; the caller
 * gets the code alone then. A function that succeeds does not touch the error object.
 *
 * None of these functions yields.
 */
#ifndef TIDEMARK_BASE_ERROR_H
#define TIDEMARK_BASE_ERROR_H

#include <errno.h>
#include <stdarg.h>

/* QMP error classes (QEMU docs/interop/qmp-spec, "Error"). Almost all errors are generic. */
enum error_class {
    ERROR_CLASS_GENERIC,
    ERROR_CLASS_COMMAND_NOT_FOUND,
    ERROR_CLASS_DEVICE_NOT_ACTIVE,
    ERROR_CLASS_DEVICE_NOT_FOUND,
    ERROR_CLASS_KVM_MISSING_CAP,
};

struct error {
    /* a positive errno value; 0 while empty */
    int code;
    /* owned; NULL while empty, or when there was no memory for the sentence */
    char *message;
    /* owned; NULL, or another sentence that says how to solve the problem */
    char *hint;
    enum error_class error_class;
};

#define ERROR_INIT ((struct error){0})

/* Defines `struct error name`, empty, cleared when the scope ends. */
#define ERROR_AUTO(name) __attribute__((cleanup(error_clear))) struct error name = ERROR_INIT

/*
 * Fill `err` with a formatted sentence, without a full stop or newline at its end. `errnum` is a
 * positive errno value; the sentence does not contain its text. If `err` is filled already, the
 * first cause stays. Returns -errnum, so `return error_set(err, EINVAL, ...)` is the idiom.
 */
int error_set(struct error *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "Out of memory". Returns -ENOMEM. */
int error_out_of_memory(struct error *err);

/* As error_set(); appends ": " and strerror(errnum) to the sentence. */
int error_set_errno(struct error *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* As error_set(), with a QMP error class. */
int error_set_class(struct error *err, enum error_class error_class, int errnum, const char *fmt,
                    ...) __attribute__((format(printf, 4, 5)));

/* As error_set(), with the arguments in `ap`. */
int error_vset(struct error *err, int errnum, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

/* Put formatted text before the sentence: "Could not open 'x': ". Nothing while `err` is empty. */
void error_prepend(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same, unless the sentence begins so already. */
void error_prepend_once(struct error *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Set the hint, a formatted sentence. Replaces an earlier hint. Nothing while `err` is empty. */
void error_hint(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Move `from`, which is empty afterwards, to `to`. Dropped if `to` is NULL or filled already. */
void error_move(struct error *to, struct error *from);

/* Free the sentences and make `err`, not NULL, empty. */
void error_clear(struct error *err);

/* Whether `err` is filled; 0 for NULL. */
static inline int error_is_set(const struct error *err)
{
    return err && err->code != 0;
}

/*
 * One more step, unless an earlier one failed: `UNLESS_FAILED(r, co_write(x));` does what
 * `if (r >= 0) r = co_write(x);` does. For sequences that end in the same clean-up on success and
 * on failure. A function without clean-up returns early instead.
 */
#define UNLESS_FAILED(r, step) ((r) < 0 ? (r) : ((r) = (step)))

/* The first error of two results of steps that both ran; 0 or a count is no error. */
static inline int error_first(int first, int second)
{
    return first < 0 ? first : second;
}

/* The sentence, or strerror() of the code if there is none. Not NULL. Valid until `err` changes. */
const char *error_message(const struct error *err);

#ifdef __clang_analyzer__
/* The static analyzer sees one file at a time, but has to know that these results are negative. */
#define error_set(err, errnum, ...) ((void)error_set(err, errnum, __VA_ARGS__), -(errnum))
#define error_set_errno(err, errnum, ...)                                                          \
    ((void)error_set_errno(err, errnum, __VA_ARGS__), -(errnum))
#define error_set_class(err, error_class, errnum, ...)                                             \
    ((void)error_set_class(err, error_class, errnum, __VA_ARGS__), -(errnum))
#define error_out_of_memory(err) ((void)error_out_of_memory(err), -ENOMEM)
#endif

#endif
