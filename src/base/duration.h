/* SPDX-License-Identifier: Apache-2.0 */
/* Units of durations and points in time, which are counted in nanoseconds. */
#ifndef TIDEMARK_BASE_DURATION_H
#define TIDEMARK_BASE_DURATION_H

#define NS_PER_SECOND 1000000000LL
#define NS_PER_MS 1000000LL

#endif
