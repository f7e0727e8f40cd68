/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_QCOW2_DATA_SPARSE_H
#define TIDEMARK_QCOW2_DATA_SPARSE_H

#include "qcow2/image.h"

/*
 * Whether much of what is in use is in holes of the file: clusters that were preallocated, or
 * written in part. Found out by the first call for a disk of this size; that one yields. Any
 * reactor.
 */
bool qcow2_co_is_sparse(struct qcow2 *q);

#endif
