/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Figures as text for Prometheus, version 0.0.4 of its exposition format
 * (https://prometheus.io/docs/instrumenting/exposition_formats/). Any thread; nothing here yields.
 */
#ifndef TIDEMARK_STATS_PROMETHEUS_H
#define TIDEMARK_STATS_PROMETHEUS_H

#include "base/strbuf.h"
#include "stats/snapshot.h"

#define PROMETHEUS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

/*
 * Write all metrics of a snapshot, and of the process. Durations of CLOCK_MONOTONIC are counted
 * from `now_ns`, which was `now_unix` seconds after the epoch. text->failed: out of memory.
 */
void prometheus_put_all(struct strbuf *text, const struct snapshot *s, int64_t now_ns,
                        double now_unix);

/* process.c: what every exporter reports of its process: processor time, memory, descriptors. */
void prometheus_put_process(struct strbuf *text);

#endif
