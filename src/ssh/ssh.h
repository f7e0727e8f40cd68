/* SPDX-License-Identifier: Apache-2.0 */
/* The protocol driver `ssh`: a file on another machine, over SFTP. */
#ifndef TIDEMARK_SSH_SSH_H
#define TIDEMARK_SSH_SSH_H

/* Add the driver to the table. Once, at start. Does not yield. */
void ssh_register_driver(void);

#endif
