/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests of an export that fail, on their way to the listener on the main reactor. At most one
 * report of an export is on the way; the latest failure takes the place of the one that waits.
 */
#ifndef TIDEMARK_EXPORT_IO_ERROR_H
#define TIDEMARK_EXPORT_IO_ERROR_H

#include <stdint.h>

struct export_io_errors;

/* For the export `id`. NULL: no memory. */
struct export_io_errors *export_io_errors_new(const char *id);
/* The export has no requests any more; a report on the way is still made. NULL is fine. */
void export_io_errors_release(struct export_io_errors *errors);
/* Note a failure; see export_note_io_error(). Any thread. */
void export_io_errors_note(struct export_io_errors *errors, const char *request, uint64_t offset,
                           uint64_t length, int error);

#endif
