/* SPDX-License-Identifier: Apache-2.0 */
/* Names of files as Windows has them, in images of its programs. Nothing here yields. */
#ifndef TIDEMARK_BLOCKMAP_WINDOWS_PATH_H
#define TIDEMARK_BLOCKMAP_WINDOWS_PATH_H

#include <stdbool.h>
#include <stdint.h>

/*
 * UTF-16 to UTF-8, up to a zero or `units` units of 16 bits. `out` has 4 bytes for each unit, and
 * one. False: invalid.
 */
bool text_from_utf16(const uint8_t *in, unsigned units, bool big_endian, char *out);
/* A path of Windows, as it is called here: without a drive, and with our separators; in place. */
void windows_path_convert(char *path);

#endif
