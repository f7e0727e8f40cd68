/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Patterns in which "*" stands for any characters and "?" for one. None of these functions yields.
 */
#ifndef TIDEMARK_BASE_WILDCARD_H
#define TIDEMARK_BASE_WILDCARD_H

#include <stdbool.h>

/* Whether the whole of `text` matches. */
bool wildcard_matches(const char *pattern, const char *text);

#endif
