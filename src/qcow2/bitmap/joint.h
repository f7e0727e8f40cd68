/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes of the bitmaps of several images, of which a crash leaves all or nothing (docs/qcow2.md,
 * "Joint changes").
 *
 *   prepare      each image: bits, tables and a second directory in new clusters; a record of it;
 *                then the header names the record: JOINT_PREPARED
 *   decide       the first image: its header has the new directory, and JOINT_DONE. One write (R3):
 *                until then the change has not happened, from then on it has
 *   follow       the others: their headers have the new directory, and nothing of the record
 *   forget       the first image: its header has nothing of the record
 *
 * Each step is stable in all images before the next one. An image that is opened in the state
 * JOINT_PREPARED asks the header of the first image, which its record names, what was decided. If
 * there is none that knows, it is *in doubt*: its bitmaps get what both directories have. If the
 * first image has no path (it is on another host), it is looked for among the images that this
 * process has open, and nowhere else: no address that an image names is ever connected to. The
 * image stays in doubt on disk then, as long as nothing has to be stored.
 *
 *   joint.c        the steps
 *   joint_end.c    the end of a change, and when it can be forgotten
 *   joint_open.c   what an open finds: the record, the other directory, the decision
 *   joint_peer.c   looking into the headers of other images
 *   joint_known.c  images of this process that know of a change
 *   joint_wait.c   images that wait for the first one of theirs, until the user opens that
 *
 * The `co_` functions yield, on the main reactor. They return 0 or -errno, and fill `err` on
 * failure.
 */
#ifndef TIDEMARK_QCOW2_BITMAP_JOINT_H
#define TIDEMARK_QCOW2_BITMAP_JOINT_H

#include "qcow2/image.h"

struct bitmap_store;
struct block_joint;

/* --- joint.c ---------------------------------------------------------------------------------- */

/* The driver's functions of these names: see struct block_driver. */
char *qcow2_co_joint_name(struct block_node *node);
int qcow2_co_prepare_bitmaps(struct block_node *node, const struct block_joint *joint, size_t own,
                             struct error *err);
int qcow2_co_settle_bitmaps(struct block_node *node, bool done, struct error *err);
int qcow2_co_forget_joint(struct block_node *node, struct error *err);
/*
 * The image becomes writable: make what counts the only directory. In doubt without space it stays
 * as it is.
 */
int qcow2_co_joint_settle_found(struct qcow2 *q, struct error *err);

/* --- joint_end.c ------------------------------------------------------------------------------ */

/*
 * The header does not name the record any more: free its clusters, and those that only the other
 * directory uses. bitmaps.mutex is held.
 */
void qcow2_co_joint_ended(struct qcow2 *q);
/* Free the attempt of a change, and its memory. Does not yield. */
void qcow2_joint_free_store(struct bitmap_store *st);
/* Free the names of the images. Does not yield. */
void qcow2_joint_free_names(struct qcow2_joint *j);
/* Free all memory. Does not yield. */
void qcow2_joint_free(struct qcow2 *q);
/* Write the header with another state. On failure nothing changes. bitmaps.mutex is held. */
int qcow2_co_joint_set_state_locked(struct qcow2 *q, enum qcow2_joint_state state,
                                    struct error *err);
/*
 * Of the first image, when it has no other use of its record: forget it, unless another image still
 * has to ask. bitmaps.mutex is held.
 */
int qcow2_co_joint_retire_locked(struct qcow2 *q, struct error *err);

/* --- joint_open.c ----------------------------------------------------------------------------- */

/*
 * At open, when the directory was read: read the other one, decide which counts, and make that
 * bitmaps.stored. `ask`: other images may be opened for it; else the image is in doubt. What is
 * damaged counts as not prepared, with a warning. -ENOMEM
 */
int qcow2_co_joint_open(struct qcow2 *q, bool ask, struct error *err);
/* When the bitmaps were loaded, in doubt: add what the other directory has. -ENOMEM */
int qcow2_co_joint_add_other(struct qcow2 *q, const uint8_t *hot, struct error *err);

/* --- joint_peer.c ----------------------------------------------------------------------------- */

/*
 * What the header of image number `number` says of the change q->joint.id. -ENOENT: there is no
 * such file, or no such image; -ENODATA: its header says nothing of it; -ENOTCONN: this process
 * would have to have it open; or errors of reading.
 */
int qcow2_co_joint_ask(struct qcow2 *q, uint32_t number, enum qcow2_joint_state *ret_state);

/* --- joint_known.c: main reactor -------------------------------------------------------------- */

/* The image knows of the change q->joint.id, until qcow2_joint_free(). Does not yield. */
void qcow2_joint_know(struct qcow2 *q);
void qcow2_joint_unknow(struct qcow2 *q);
/* The next image, after `before` (NULL: the first), of this process in the change of `q`. */
struct qcow2_joint *qcow2_joint_next_known(const struct qcow2 *q, const struct qcow2_joint *before);
/*
 * The same as qcow2_co_joint_ask() of image number `number`, if this process has it open. -ENOENT:
 * it has not. Does not yield.
 */
int qcow2_joint_ask_known(struct qcow2 *q, uint32_t number, enum qcow2_joint_state *ret_state);
/*
 * The name of the image's file in a record; the caller frees it. NULL: none, or no memory. The
 * first function does not yield, and does not look whether another file has the name now.
 */
char *qcow2_joint_file_name(const struct qcow2 *q);
char *qcow2_co_joint_file_name(const struct qcow2 *q);
/* The path of a file, if it has one that leads to it; the caller frees it. NULL: none. */
char *qcow2_co_joint_path(const struct block_node *file);
/* Whether a file of that name can be looked for by other processes: it is a path. */
bool qcow2_joint_is_path(const char *name);

/* --- joint_wait.c: main reactor --------------------------------------------------------------- */

/*
 * An image was opened that may know what others wait for: settle those, later on. Does not yield.
 */
void qcow2_joint_tell_waiting(const struct qcow2 *q);
/* Likewise for one image that waits, or for the first one, which may have nothing to tell now. */
void qcow2_joint_look_again(struct qcow2 *q);
/* An image was settled: if this process has the first one open, that may forget the change. */
void qcow2_joint_tell_first(const struct qcow2 *q);

#endif
