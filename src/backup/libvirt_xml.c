/* SPDX-License-Identifier: Apache-2.0 */
#include "backup/libvirt_xml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define NAME_SIZE 64

char *libvirt_xml_attribute(const char *from, const char *end, const char *name)
{
    static const struct {
        const char *entity;
        char c;
    } entities[] = {
        {"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
    char pattern[NAME_SIZE], *value, *out;
    const char *start, *stop;

    snprintf(pattern, sizeof(pattern), " %s='", name);
    start = memmem(from, (size_t)(end - from), pattern, strlen(pattern));
    start = start ? start + strlen(pattern) : NULL;
    stop = start ? memchr(start, '\'', (size_t)(end - start)) : NULL;
    value = out = stop ? malloc((size_t)(stop - start) + 1) : NULL;
    while (value && start < stop) {
        size_t skip = 1;

        *out = *start;
        for (size_t i = 0; i < sizeof(entities) / sizeof(entities[0]); i++) {
            size_t len = strlen(entities[i].entity);

            if ((size_t)(stop - start) >= len && memcmp(start, entities[i].entity, len) == 0) {
                *out = entities[i].c;
                skip = len;
            }
        }
        start += skip;
        out++;
    }
    if (value) {
        *out = '\0';
    }
    return value;
}

bool libvirt_xml_next_disk(const char **pos, const char **ret_start, const char **ret_end)
{
    const char *start = strstr(*pos, "<disk "), *end = start ? strstr(start, "</disk>") : NULL;

    if (!end) {
        return false;
    }
    *ret_start = start;
    *ret_end = end;
    *pos = end;
    return true;
}

char *libvirt_xml_of_element(const char *start, const char *end, const char *element,
                             const char *name)
{
    const char *from = memmem(start, (size_t)(end - start), element, strlen(element));
    const char *stop = from ? memchr(from, '>', (size_t)(end - from)) : NULL;

    return stop ? libvirt_xml_attribute(from, stop, name) : NULL;
}

bool libvirt_xml_find_disk(const char *xml, const char *target, const char **ret_start,
                           const char **ret_end)
{
    while (libvirt_xml_next_disk(&xml, ret_start, ret_end)) {
        char *name AUTO_FREE = libvirt_xml_of_element(*ret_start, *ret_end, "<target ", "dev");

        if (name && strcmp(name, target) == 0) {
            return true;
        }
    }
    return false;
}
