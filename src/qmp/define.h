/* SPDX-License-Identifier: Apache-2.0 */
/* Types of QMP are defined as all others. */
#ifndef TIDEMARK_QMP_DEFINE_H
#define TIDEMARK_QMP_DEFINE_H

#include "qmp/schema.h"
#include "schema/define.h"

#endif
