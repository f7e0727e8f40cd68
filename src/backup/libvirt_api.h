/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is used of libvirt's C interface (libvirt.org/html, from 6.0 on), so that its headers are
 * not needed to build. Functions return NULL or a negative number on failure; strings that they
 * return are malloc'ed, but for names and messages. They block.
 */
#ifndef TIDEMARK_BACKUP_LIBVIRT_API_H
#define TIDEMARK_BACKUP_LIBVIRT_API_H

struct vir_connect;
struct vir_domain;
struct vir_checkpoint;

/* virDomainBlockInfo */
struct vir_block_info {
    unsigned long long capacity, allocation, physical;
};

/* Flags of the functions below. */
enum {
    VIR_CHECKPOINT_REDEFINE = 1 << 0,
    VIR_CHECKPOINT_REDEFINE_VALIDATE = 1 << 2,
    VIR_CHECKPOINT_XML_SIZE = 1 << 2,
};

/* Connections and errors. A handler of errors replaces printing. */
struct vir_connect *virConnectOpen(const char *uri);
int virConnectClose(struct vir_connect *c);
const char *virGetLastErrorMessage(void);
void virSetErrorFunc(void *data, void (*handler)(void *data, void *error));

/* Domains. A block info is of the disk with this target. */
struct vir_domain *virDomainLookupByName(struct vir_connect *c, const char *name);
int virDomainFree(struct vir_domain *d);
int virDomainIsActive(struct vir_domain *d);
char *virDomainGetXMLDesc(struct vir_domain *d, unsigned flags);
int virDomainGetBlockInfo(struct vir_domain *d, const char *disk, struct vir_block_info *info,
                          unsigned flags);

/* The backup job: XML of formatbackup and formatcheckpoint (NULL: no checkpoint). */
int virDomainBackupBegin(struct vir_domain *d, const char *backup, const char *checkpoint,
                         unsigned flags);
char *virDomainBackupGetXMLDesc(struct vir_domain *d, unsigned flags);
int virDomainAbortJob(struct vir_domain *d);

/* The guest agent. NULL and 0: all file systems. */
int virDomainAgentSetResponseTimeout(struct vir_domain *d, int seconds, unsigned flags);
int virDomainFSFreeze(struct vir_domain *d, const char **mountpoints, unsigned count,
                      unsigned flags);
int virDomainFSThaw(struct vir_domain *d, const char **mountpoints, unsigned count, unsigned flags);

/* Checkpoints. A list is malloc'ed, and so are its elements. */
struct vir_checkpoint *virDomainCheckpointCreateXML(struct vir_domain *d, const char *xml,
                                                    unsigned flags);
int virDomainCheckpointDelete(struct vir_checkpoint *c, unsigned flags);
int virDomainCheckpointFree(struct vir_checkpoint *c);
const char *virDomainCheckpointGetName(struct vir_checkpoint *c);
char *virDomainCheckpointGetXMLDesc(struct vir_checkpoint *c, unsigned flags);
struct vir_checkpoint *virDomainCheckpointLookupByName(struct vir_domain *d, const char *name,
                                                       unsigned flags);
int virDomainListAllCheckpoints(struct vir_domain *d, struct vir_checkpoint ***list,
                                unsigned flags);

#endif
