/* SPDX-License-Identifier: Apache-2.0 */
/* block-latency-histogram-set and its answers, for exports and for disks. Nothing here yields. */
#ifndef TIDEMARK_QMP_LATENCY_H
#define TIDEMARK_QMP_LATENCY_H

#include <json-c/json.h>

#include "base/error.h"

struct latency_set;

/*
 * Make and remove the histograms of the device that `args`, of block-latency-histogram-set, names;
 * its set is `set`. -EINVAL: boundaries that do not rise from above 0; nothing has
 * changed then. -ENOMEM.
 */
int qmp_set_latencies(struct latency_set *set, struct json_object *args, struct error *err);
/* Put the histograms there are into a BlockDeviceStats, in place of others. */
void qmp_put_latencies(struct json_object *to, struct latency_set *set);
/* Put what a BlockDeviceStats says of appends to zones, which no driver has. */
void qmp_put_zone_figures(struct json_object *to);

#endif
