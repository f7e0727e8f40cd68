/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_HTTP_HTTP_H
#define TIDEMARK_HTTP_HTTP_H

/* Register the drivers "http" and "https". Once, at start; does not yield. */
void http_register_drivers(void);

#endif
