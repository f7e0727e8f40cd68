/* SPDX-License-Identifier: Apache-2.0 */
#include "blockmap/windows_path.h"

#include <string.h>

#include "base/byteorder.h"

static char *put_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xc0 | c >> 6);
        *out++ = (char)(0x80 | (c & 0x3f));
    } else if (c < 0x10000) {
        *out++ = (char)(0xe0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 0x3f));
        *out++ = (char)(0x80 | (c & 0x3f));
    } else {
        *out++ = (char)(0xf0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 0x3f));
        *out++ = (char)(0x80 | (c >> 6 & 0x3f));
        *out++ = (char)(0x80 | (c & 0x3f));
    }
    return out;
}

bool text_from_utf16(const uint8_t *in, unsigned units, bool big_endian, char *out)
{
    for (unsigned i = 0; i < units; i++) {
        uint32_t c = big_endian ? load_be16(in + (size_t)2 * i) : load_le16(in + (size_t)2 * i);

        if (c == 0) {
            break;
        }
        if (c >= 0xd800 && c < 0xe000) {
            uint32_t low = 0;

            if (++i < units) {
                low = big_endian ? load_be16(in + (size_t)2 * i) : load_le16(in + (size_t)2 * i);
            }
            if (c >= 0xdc00 || low < 0xdc00 || low >= 0xe000) {
                return false;
            }
            c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
        out = put_utf8(out, c);
    }
    *out = '\0';
    return true;
}

void windows_path_convert(char *path)
{
    const char *begin = path;

    for (char *p = path; *p; p++) {
        *p = (char)(*p == '\\' ? '/' : *p);
    }
    if (path[0] && path[1] == ':') {
        begin += 2;
    } else if (strncmp(path, "file://localhost", 16) == 0) {
        begin += 16;
    } else if (strncmp(path, "file://", 7) == 0) {
        begin += 7;
    }
    while (begin[0] == '.' && begin[1] == '/') {
        begin += 2;
    }
    memmove(path, begin, strlen(begin) + 1);
}
