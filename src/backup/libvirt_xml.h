/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parts of the XML that libvirt writes: attributes are in single quotes, and one element follows
 * the other in a fixed order. It is not for XML of other origin. Nothing here yields.
 */
#ifndef TIDEMARK_BACKUP_LIBVIRT_XML_H
#define TIDEMARK_BACKUP_LIBVIRT_XML_H

#include <stdbool.h>

/*
 * The value of NAME='...' that is first in [from, end), malloc'ed and without entities. NULL: there
 * is none, or no memory.
 */
char *libvirt_xml_attribute(const char *from, const char *end, const char *name);
/* The same of the first element in [start, end) that begins with `element`: "<source ". */
char *libvirt_xml_of_element(const char *start, const char *end, const char *element,
                             const char *name);
/* The next <disk> of a domain from *pos on; false at the end. */
bool libvirt_xml_next_disk(const char **pos, const char **ret_start, const char **ret_end);
/* Find the disk with this target; *ret_start and *ret_end enclose its description. */
bool libvirt_xml_find_disk(const char *xml, const char *target, const char **ret_start,
                           const char **ret_end);

#endif
