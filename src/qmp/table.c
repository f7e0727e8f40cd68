/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names and members are those of QEMU's QAPI schema (QMP reference manual of qemu-storage-daemon),
 * as far as they are supported. docs/qmp.md says which commands are Tidemark's own.
 */
#include "qmp/table.h"

#include <string.h>

#include "block/option_types.h"
#include "block/socket_address.h"
#include "block/user_object.h"
#include "export/export.h"
#include "qmp/commands.h"
#include "qmp/define.h"
#include "qmp/introspect.h"
#include "qmp/types.h"

/* --- misc ------------------------------------------------------------------------------------- */

ENUM(capability, "QMPCapability", "oob");
ARRAY(capabilities, capability);
OBJECT(capabilities_args, "q_obj_qmp_capabilities-arg", OPT("enable", capabilities));

OBJECT(give_up_args, "q_obj_x-tidemark-give-up-arg", REQ("id", schema_any));

OBJECT(version_triple, "VersionTriple", REQ("major", schema_int), REQ("minor", schema_int),
       REQ("micro", schema_int));
OBJECT(version_info, "VersionInfo", REQ("qemu", version_triple), REQ("package", schema_str));

OBJECT(command_info, "CommandInfo", REQ("name", schema_str));
ARRAY(command_infos, command_info);

/* --- query-qmp-schema ------------------------------------------------------------------------- */

ENUM(meta_type, "SchemaMetaType", "builtin", "enum", "array", "object", "alternate", "command",
     "event");
ENUM(schema_json_type, "JSONType", "string", "number", "int", "boolean", "null", "object", "array",
     "value");
ARRAY(strings, schema_str);
OBJECT(schema_builtin, "SchemaInfoBuiltin", REQ("json-type", schema_json_type));
OBJECT(schema_enum_member, "SchemaInfoEnumMember", REQ("name", schema_str),
       OPT("features", strings));
ARRAY(schema_enum_members, schema_enum_member);
OBJECT(schema_enum, "SchemaInfoEnum", REQ("members", schema_enum_members),
       REQ("values", strings, DEPRECATED));
OBJECT(schema_array, "SchemaInfoArray", REQ("element-type", schema_str));
OBJECT(schema_member, "SchemaInfoObjectMember", REQ("name", schema_str), REQ("type", schema_str),
       OPT("default", schema_any), OPT("features", strings));
ARRAY(schema_members, schema_member);
OBJECT(schema_variant, "SchemaInfoObjectVariant", REQ("case", schema_str), REQ("type", schema_str));
ARRAY(schema_variants, schema_variant);
OBJECT(schema_object, "SchemaInfoObject", REQ("members", schema_members), OPT("tag", schema_str),
       OPT("variants", schema_variants));
OBJECT(schema_choice, "SchemaInfoAlternateMember", REQ("type", schema_str));
ARRAY(schema_choices, schema_choice);
OBJECT(schema_alternate, "SchemaInfoAlternate", REQ("members", schema_choices));
OBJECT(schema_command, "SchemaInfoCommand", REQ("arg-type", schema_str),
       REQ("ret-type", schema_str), OPT("allow-oob", schema_bool));
OBJECT(schema_event, "SchemaInfoEvent", REQ("arg-type", schema_str));
static const struct schema_type schema_info = {
    .kind = SCHEMA_OBJECT,
    .name = "SchemaInfo",
    .members =
        MEMBERS(REQ("name", schema_str), REQ("meta-type", meta_type), OPT("features", strings)),
    .tag = "meta-type",
    .variants = (const struct schema_variant[]){{"builtin", &schema_builtin},
                                                {"enum", &schema_enum},
                                                {"array", &schema_array},
                                                {"object", &schema_object},
                                                {"alternate", &schema_alternate},
                                                {"command", &schema_command},
                                                {"event", &schema_event},
                                                {NULL, NULL}},
};
ARRAY(schema_infos, schema_info);

/* --- statistics ------------------------------------------------------------------------------- */

ARRAY(ints, schema_int);
OBJECT(blockstats_args, "q_obj_query-blockstats-arg", OPT("query-nodes", schema_bool));
OBJECT(latency_histogram, "BlockLatencyHistogramInfo", REQ("boundaries", ints), REQ("bins", ints));
OBJECT(timed_stats, "BlockDeviceTimedStats", REQ("interval_length", schema_int),
       REQ("min_rd_latency_ns", schema_int), REQ("max_rd_latency_ns", schema_int),
       REQ("avg_rd_latency_ns", schema_int), REQ("min_wr_latency_ns", schema_int),
       REQ("max_wr_latency_ns", schema_int), REQ("avg_wr_latency_ns", schema_int),
       REQ("min_flush_latency_ns", schema_int), REQ("max_flush_latency_ns", schema_int),
       REQ("avg_flush_latency_ns", schema_int), REQ("avg_rd_queue_depth", schema_number),
       REQ("avg_wr_queue_depth", schema_number), REQ("min_zone_append_latency_ns", schema_int),
       REQ("max_zone_append_latency_ns", schema_int), REQ("avg_zone_append_latency_ns", schema_int),
       REQ("avg_zone_append_queue_depth", schema_number));
ARRAY(timed_stats_list, timed_stats);
OBJECT(device_stats, "BlockDeviceStats", REQ("rd_bytes", schema_int), REQ("wr_bytes", schema_int),
       REQ("zone_append_bytes", schema_int), REQ("unmap_bytes", schema_int),
       REQ("rd_operations", schema_int), REQ("wr_operations", schema_int),
       REQ("zone_append_operations", schema_int), REQ("flush_operations", schema_int),
       REQ("unmap_operations", schema_int), REQ("rd_total_time_ns", schema_int),
       REQ("wr_total_time_ns", schema_int), REQ("zone_append_total_time_ns", schema_int),
       REQ("flush_total_time_ns", schema_int), REQ("unmap_total_time_ns", schema_int),
       REQ("wr_highest_offset", schema_int), REQ("rd_merged", schema_int),
       REQ("wr_merged", schema_int), REQ("zone_append_merged", schema_int),
       REQ("unmap_merged", schema_int), OPT("idle_time_ns", schema_int),
       REQ("failed_rd_operations", schema_int), REQ("failed_wr_operations", schema_int),
       REQ("failed_zone_append_operations", schema_int), REQ("failed_flush_operations", schema_int),
       REQ("failed_unmap_operations", schema_int), REQ("invalid_rd_operations", schema_int),
       REQ("invalid_wr_operations", schema_int), REQ("invalid_zone_append_operations", schema_int),
       REQ("invalid_flush_operations", schema_int), REQ("invalid_unmap_operations", schema_int),
       REQ("account_invalid", schema_bool), REQ("account_failed", schema_bool),
       REQ("timed_stats", timed_stats_list), OPT("rd_latency_histogram", latency_histogram),
       OPT("wr_latency_histogram", latency_histogram),
       OPT("zone_append_latency_histogram", latency_histogram),
       OPT("flush_latency_histogram", latency_histogram));
OBJECT(file_stats, "BlockStatsSpecificFile", REQ("discard-nb-ok", schema_int),
       REQ("discard-nb-failed", schema_int), REQ("discard-bytes-ok", schema_int));
static const struct schema_type specific_stats = {
    .kind = SCHEMA_OBJECT,
    .name = "BlockStatsSpecific",
    .members = MEMBERS(REQ("driver", block_driver_names_type)),
    .tag = "driver",
    .variants = (const struct schema_variant[]){{"file", &file_stats},
                                                {"host_device", &file_stats},
                                                {NULL, NULL}},
};
static const struct schema_type block_stats;
static const struct schema_type block_stats = OBJECT_INIT(
    "BlockStats", OPT("device", schema_str), OPT("qdev", schema_str), OPT("node-name", schema_str),
    REQ("stats", device_stats), OPT("driver-specific", specific_stats), OPT("parent", block_stats),
    OPT("backing", block_stats));
ARRAY(block_stats_list, block_stats);

ENUM(stats_target, "StatsTarget", "node", "export", "connection", "reactor");
OBJECT(own_stats_args, "q_obj_x-tidemark-query-stats-arg", OPT("target", stats_target));
OBJECT(own_stats, "TidemarkStats", REQ("target", stats_target), REQ("group", schema_str),
       REQ("labels", schema_any), REQ("stats", schema_any));
ARRAY(own_stats_list, own_stats);

/* QEMU's types, with the targets and the provider that there are here. */
ENUM(stats_provider, "StatsProvider", "tidemark");
OBJECT(stats_request, "StatsRequest", REQ("provider", stats_provider), OPT("names", strings));
ARRAY(stats_requests, stats_request);
OBJECT(stats_filter, "StatsFilter", REQ("target", stats_target), OPT("providers", stats_requests));
ARRAY(stats_bins, schema_uint64);
static const struct schema_type stats_value = {
    .kind = SCHEMA_ALTERNATE,
    .name = "StatsValue",
    .choice = (const struct schema_type *const[]){&schema_uint64, &stats_bins, NULL},
};
OBJECT(stats_figure, "Stats", REQ("name", schema_str), REQ("value", stats_value));
ARRAY(stats_figures, stats_figure);
OBJECT(stats_result, "StatsResult", REQ("provider", stats_provider), REQ("labels", schema_any),
       REQ("stats", stats_figures));
ARRAY(stats_results, stats_result);
ENUM(stats_type, "StatsType", "cumulative", "instant", "peak", "log2-histogram");
ENUM(stats_unit, "StatsUnit", "bytes", "seconds");
OBJECT(stats_row, "StatsSchemaValue", REQ("name", schema_str), REQ("type", stats_type),
       OPT("unit", stats_unit), OPT("base", schema_int), REQ("exponent", schema_int));
ARRAY(stats_rows, stats_row);
OBJECT(stats_schema, "StatsSchema", REQ("provider", stats_provider), REQ("target", stats_target),
       REQ("stats", stats_rows));
ARRAY(stats_schemas, stats_schema);
OBJECT(stats_schemas_args, "q_obj_query-stats-schemas-arg", OPT("provider", stats_provider));

/* --- query-named-block-nodes ------------------------------------------------------------------ */

OBJECT(named_nodes_args, "q_obj_query-named-block-nodes-arg", OPT("flat", schema_bool));
ARRAY(device_infos, qmp_type_device_info);

ENUM(graph_node_type, "XDbgBlockGraphNodeType", "block-backend", "block-job", "block-driver");
OBJECT(graph_node, "XDbgBlockGraphNode", REQ("id", schema_int), REQ("type", graph_node_type),
       REQ("name", schema_str));
ARRAY(graph_nodes, graph_node);
ARRAY(block_permissions, block_permission_type);
OBJECT(graph_edge, "XDbgBlockGraphEdge", REQ("parent", schema_int), REQ("child", schema_int),
       REQ("name", schema_str), REQ("perm", block_permissions),
       REQ("shared-perm", block_permissions));
ARRAY(graph_edges, graph_edge);
OBJECT(block_graph, "XDbgBlockGraph", REQ("nodes", graph_nodes), REQ("edges", graph_edges));

/* --- dirty bitmaps ---------------------------------------------------------------------------- */

OBJECT(bitmap_add, "BlockDirtyBitmapAdd", REQ("node", schema_str), REQ("name", schema_str),
       OPT("granularity", schema_uint32), OPT("persistent", schema_bool),
       OPT("disabled", schema_bool));
OBJECT(bitmap_merge, "BlockDirtyBitmapMerge", REQ("node", schema_str), REQ("target", schema_str),
       REQ("bitmaps", block_bitmaps_or_names_type));

/* --- exports ---------------------------------------------------------------------------------- */

ENUM(export_mode, "BlockExportRemoveMode", "safe", "hard");
OBJECT(export_del, "q_obj_block-export-del-arg", REQ("id", schema_str), OPT("mode", export_mode));
OBJECT(nbd_server_add, "NbdServerAddOptions", REQ("device", schema_str), OPT("name", schema_str),
       OPT("description", schema_str), OPT("writable", schema_bool), OPT("bitmap", schema_str));
OBJECT(nbd_server_remove, "q_obj_nbd-server-remove-arg", REQ("name", schema_str),
       OPT("mode", export_mode));
OBJECT(export_info, "BlockExportInfo", REQ("id", schema_str), REQ("type", export_type_names_type),
       REQ("node-name", schema_str), REQ("shutting-down", schema_bool));
ARRAY(export_infos, export_info);
OBJECT(export_id, "q_obj_BLOCK_EXPORT_DELETED-arg", REQ("id", schema_str));
OBJECT(image_corrupted, "q_obj_BLOCK_IMAGE_CORRUPTED-arg", REQ("device", schema_str),
       OPT("node-name", schema_str), REQ("msg", schema_str), OPT("offset", schema_int),
       OPT("size", schema_int), REQ("fatal", schema_bool));

ENUM(quorum_op, "QuorumOpType", "read", "write", "flush");
OBJECT(quorum_failure, "q_obj_QUORUM_FAILURE-arg", REQ("reference", schema_str),
       REQ("sector-num", schema_int), REQ("sectors-count", schema_int));
OBJECT(quorum_report_bad, "q_obj_QUORUM_REPORT_BAD-arg", REQ("type", quorum_op),
       OPT("error", schema_str), REQ("node-name", schema_str), REQ("sector-num", schema_int),
       REQ("sectors-count", schema_int));

OBJECT(nbd_server_start, "NbdServerOptionsLegacy", REQ("addr", socket_address_legacy_type),
       OPT("handshake-max-seconds", schema_uint32), OPT("tls-creds", schema_str),
       OPT("tls-authz", schema_str), OPT("max-connections", schema_uint32),
       OPT("x-max-connections-per-address", schema_uint32, UNSTABLE));
const struct schema_type qmp_type_nbd_server_options =
    OBJECT_INIT("NbdServerOptions", REQ("addr", socket_address_type),
                OPT("handshake-max-seconds", schema_uint32), OPT("tls-creds", schema_str),
                OPT("tls-authz", schema_str), OPT("max-connections", schema_uint32),
                OPT("x-max-connections-per-address", schema_uint32, UNSTABLE));
OBJECT(nbd_server_info, "NbdServerInfo", REQ("running", schema_bool),
       OPT("address", socket_address_type), OPT("directory", schema_str));

/* --- nodes ------------------------------------------------------------------------------------ */

ARRAY(blockdevs, block_options_type);
OBJECT(blockdev_reopen, "q_obj_blockdev-reopen-arg", REQ("options", blockdevs));
OBJECT(blockdev_del, "q_obj_blockdev-del-arg", REQ("node-name", schema_str));
OBJECT(blockdev_replace, "q_obj_blockdev-replace-arg", REQ("export", schema_str),
       REQ("node-name", schema_str));

/* --- objects ---------------------------------------------------------------------------------- */

OBJECT(object_del, "q_obj_object-del-arg", REQ("id", schema_str));

/* --- transactions ----------------------------------------------------------------------------- */

ENUM(action_kind, "TransactionActionKind", "abort", "block-dirty-bitmap-add",
     "block-dirty-bitmap-remove", "block-dirty-bitmap-clear", "block-dirty-bitmap-enable",
     "block-dirty-bitmap-disable", "block-dirty-bitmap-merge", "block-export-add",
     "block-export-del", "blockdev-add", "blockdev-backup", "blockdev-del", "blockdev-replace",
     "blockdev-snapshot", "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync",
     "drive-backup");
OBJECT(abort_wrapper, "AbortWrapper", REQ("data", schema_empty));
OBJECT(bitmap_wrapper, "BlockDirtyBitmapWrapper", REQ("data", block_bitmap_ref_type));
OBJECT(bitmap_add_wrapper, "BlockDirtyBitmapAddWrapper", REQ("data", bitmap_add));
OBJECT(bitmap_merge_wrapper, "BlockDirtyBitmapMergeWrapper", REQ("data", bitmap_merge));
OBJECT(export_add_wrapper, "BlockExportAddWrapper", REQ("data", export_options_type));
OBJECT(export_del_wrapper, "BlockExportDelWrapper", REQ("data", export_del));
OBJECT(blockdev_add_wrapper, "BlockdevAddWrapper", REQ("data", block_options_type));
OBJECT(blockdev_del_wrapper, "BlockdevDelWrapper", REQ("data", blockdev_del));
OBJECT(blockdev_replace_wrapper, "BlockdevReplaceWrapper", REQ("data", blockdev_replace));
const struct schema_type qmp_type_transaction_action = {
    .kind = SCHEMA_OBJECT,
    .name = "TransactionAction",
    .members = MEMBERS(REQ("type", action_kind)),
    .tag = "type",
    .variants =
        (const struct schema_variant[]){
            {"abort", &abort_wrapper},
            {"block-dirty-bitmap-add", &bitmap_add_wrapper},
            {"block-dirty-bitmap-remove", &bitmap_wrapper},
            {"block-dirty-bitmap-clear", &bitmap_wrapper},
            {"block-dirty-bitmap-enable", &bitmap_wrapper},
            {"block-dirty-bitmap-disable", &bitmap_wrapper},
            {"block-dirty-bitmap-merge", &bitmap_merge_wrapper},
            {"block-export-add", &export_add_wrapper},
            {"block-export-del", &export_del_wrapper},
            {"blockdev-add", &blockdev_add_wrapper},
            {"blockdev-backup", &qmp_type_blockdev_backup_wrapper},
            {"blockdev-del", &blockdev_del_wrapper},
            {"blockdev-replace", &blockdev_replace_wrapper},
            {"blockdev-snapshot", &qmp_type_snapshot_wrapper},
            {"blockdev-snapshot-internal-sync", &qmp_type_snapshot_internal_wrapper},
            {"blockdev-snapshot-sync", &qmp_type_snapshot_sync_wrapper},
            {"drive-backup", &qmp_type_drive_backup_wrapper},
            {NULL, NULL}},
};
ARRAY(actions, qmp_type_transaction_action);
ENUM(completion_mode, "ActionCompletionMode", "individual", "grouped");
OBJECT(transaction_properties, "TransactionProperties", OPT("completion-mode", completion_mode));
OBJECT(transaction, "q_obj_transaction-arg", REQ("actions", actions),
       OPT("properties", transaction_properties));

/* --- trace events ----------------------------------------------------------------------------- */

ENUM(trace_state, "TraceEventState", "unavailable", "disabled", "enabled");
OBJECT(trace_event_info, "TraceEventInfo", REQ("name", schema_str), REQ("state", trace_state));
ARRAY(trace_event_infos, trace_event_info);
OBJECT(trace_get_state, "q_obj_trace-event-get-state-arg", REQ("name", schema_str));
OBJECT(trace_set_state, "q_obj_trace-event-set-state-arg", REQ("name", schema_str),
       REQ("enable", schema_bool), OPT("ignore-unavailable", schema_bool));

static qmp_co_command co_query_commands, co_query_schema;

/* --- the table -------------------------------------------------------------------------------- */

const struct qmp_command qmp_commands[] = {
    {"add-fd", &qmp_type_add_fd, &qmp_type_add_fd_info, qmp_co_add_fd},
    {"block-commit", &qmp_type_block_commit, &schema_empty, qmp_co_block_commit},
    {"block-dirty-bitmap-add", &bitmap_add, &schema_empty, qmp_co_bitmap_add},
    {"block-dirty-bitmap-clear", &block_bitmap_ref_type, &schema_empty, qmp_co_bitmap_clear},
    {"block-dirty-bitmap-disable", &block_bitmap_ref_type, &schema_empty, qmp_co_bitmap_disable},
    {"block-dirty-bitmap-enable", &block_bitmap_ref_type, &schema_empty, qmp_co_bitmap_enable},
    {"block-dirty-bitmap-merge", &bitmap_merge, &schema_empty, qmp_co_bitmap_merge},
    {"block-dirty-bitmap-remove", &block_bitmap_ref_type, &schema_empty, qmp_co_bitmap_remove},
    {"block-export-add", &export_options_type, &schema_empty, qmp_co_block_export_add},
    {"block-export-del", &export_del, &schema_empty, qmp_co_block_export_del},
    {"block-job-cancel", &qmp_type_block_job_cancel, &schema_empty, qmp_co_block_job_cancel},
    {"block-job-change", &qmp_type_block_job_change, &schema_empty, qmp_co_block_job_change},
    {"block-job-complete", &qmp_type_block_job, &schema_empty, qmp_co_block_job_complete},
    {"block-job-dismiss", &qmp_type_job, &schema_empty, qmp_co_block_job_dismiss},
    {"block-job-finalize", &qmp_type_job, &schema_empty, qmp_co_block_job_finalize},
    {"block-job-pause", &qmp_type_block_job, &schema_empty, qmp_co_block_job_pause},
    {"block-job-resume", &qmp_type_block_job, &schema_empty, qmp_co_block_job_resume},
    {"block-job-set-speed", &qmp_type_block_job_speed, &schema_empty, qmp_co_block_job_set_speed},
    {"block-latency-histogram-set", &qmp_type_latency_set, &schema_empty,
     qmp_co_block_latency_histogram_set},
    {"block-set-write-threshold", &qmp_type_set_write_threshold, &schema_empty,
     qmp_co_block_set_write_threshold},
    {"block-stream", &qmp_type_block_stream, &schema_empty, qmp_co_block_stream},
    {"block_resize", &qmp_type_block_resize, &schema_empty, qmp_co_block_resize},
    {"blockdev-add", &block_options_type, &schema_empty, qmp_co_blockdev_add},
    {"blockdev-backup", &qmp_type_blockdev_backup, &schema_empty, qmp_co_blockdev_backup},
    {"blockdev-create", &qmp_type_blockdev_create, &schema_empty, qmp_co_blockdev_create},
    {"blockdev-del", &blockdev_del, &schema_empty, qmp_co_blockdev_del},
    {"blockdev-mirror", &qmp_type_blockdev_mirror, &schema_empty, qmp_co_blockdev_mirror},
    {"blockdev-reopen", &blockdev_reopen, &schema_empty, qmp_co_blockdev_reopen},
    {"blockdev-replace", &blockdev_replace, &schema_empty, qmp_co_blockdev_replace},
    {"blockdev-set-active", &qmp_type_set_active, &schema_empty, qmp_co_blockdev_set_active},
    {"blockdev-snapshot", &qmp_type_snapshot, &schema_empty, qmp_co_blockdev_snapshot},
    {"blockdev-snapshot-delete-internal-sync", &qmp_type_snapshot_delete_internal,
     &qmp_type_snapshot_info, qmp_co_snapshot_delete_internal},
    {"blockdev-snapshot-internal-sync", &qmp_type_snapshot_internal, &schema_empty,
     qmp_co_snapshot_internal},
    {"blockdev-snapshot-sync", &qmp_type_snapshot_sync, &schema_empty,
     qmp_co_blockdev_snapshot_sync},
    {"change-backing-file", &qmp_type_change_backing, &schema_empty, qmp_co_change_backing_file},
    {"chardev-add", &qmp_type_chardev_add, &qmp_type_chardev_return, qmp_co_chardev_add},
    {"chardev-change", &qmp_type_chardev_add, &qmp_type_chardev_return, qmp_co_chardev_change},
    {"chardev-remove", &qmp_type_chardev_id, &schema_empty, qmp_co_chardev_remove},
    {"chardev-send-break", &qmp_type_chardev_id, &schema_empty, qmp_co_chardev_send_break},
    {"closefd", &qmp_type_fd_name, &schema_empty, qmp_co_closefd},
    {"drive-backup", &qmp_type_drive_backup, &schema_empty, qmp_co_drive_backup},
    {"drive-mirror", &qmp_type_drive_mirror, &schema_empty, qmp_co_drive_mirror},
    {"getfd", &qmp_type_fd_name, &schema_empty, qmp_co_getfd},
    {"job-cancel", &qmp_type_job, &schema_empty, qmp_co_job_cancel},
    {"job-complete", &qmp_type_job, &schema_empty, qmp_co_job_complete},
    {"job-dismiss", &qmp_type_job, &schema_empty, qmp_co_job_dismiss},
    {"job-finalize", &qmp_type_job, &schema_empty, qmp_co_job_finalize},
    {"job-pause", &qmp_type_job, &schema_empty, qmp_co_job_pause},
    {"job-resume", &qmp_type_job, &schema_empty, qmp_co_job_resume},
    {"nbd-server-add", &nbd_server_add, &schema_empty, qmp_co_nbd_server_add},
    {"nbd-server-remove", &nbd_server_remove, &schema_empty, qmp_co_nbd_server_remove},
    {"nbd-server-start", &nbd_server_start, &schema_empty, qmp_co_nbd_server_start},
    {"nbd-server-stop", &schema_empty, &schema_empty, qmp_co_nbd_server_stop},
    {"object-add", &user_object_options_type, &schema_empty, qmp_co_object_add},
    {"object-del", &object_del, &schema_empty, qmp_co_object_del},
    {"qmp_capabilities", &capabilities_args, &schema_empty, qmp_co_capabilities},
    {"qom-get", &qmp_type_qom_get, &schema_any, qmp_co_qom_get},
    {"qom-list", &qmp_type_qom_path, &qmp_type_property_infos, qmp_co_qom_list},
    {"qom-list-properties", &qmp_type_qom_list_properties, &qmp_type_property_infos,
     qmp_co_qom_list_properties},
    {"qom-list-types", &qmp_type_qom_list_types, &qmp_type_type_infos, qmp_co_qom_list_types},
    {"qom-set", &qmp_type_qom_set, &schema_empty, qmp_co_qom_set},
    {"query-block", &schema_empty, &qmp_type_block_infos, qmp_co_query_block},
    {"query-block-exports", &schema_empty, &export_infos, qmp_co_query_block_exports},
    {"query-block-jobs", &schema_empty, &qmp_type_block_job_infos, qmp_co_query_block_jobs},
    {"query-blockstats", &blockstats_args, &block_stats_list, qmp_co_query_blockstats},
    {"query-chardev", &schema_empty, &qmp_type_chardev_infos, qmp_co_query_chardev},
    {"query-chardev-backends", &schema_empty, &qmp_type_chardev_backend_infos,
     qmp_co_query_chardev_backends},
    {"query-commands", &schema_empty, &command_infos, co_query_commands},
    {"query-fdsets", &schema_empty, &qmp_type_fdset_infos, qmp_co_query_fdsets},
    {"query-jobs", &schema_empty, &qmp_type_job_infos, qmp_co_query_jobs},
    {"query-named-block-nodes", &named_nodes_args, &device_infos, qmp_co_query_named_block_nodes},
    {"query-nbd-server", &schema_empty, &nbd_server_info, qmp_co_query_nbd_server},
    {"query-qmp-schema", &schema_empty, &schema_infos, co_query_schema},
    {"query-stats", &stats_filter, &stats_results, qmp_co_query_stats},
    {"query-stats-schemas", &stats_schemas_args, &stats_schemas, qmp_co_query_stats_schemas},
    {"query-version", &schema_empty, &version_info, qmp_co_query_version},
    {"query-yank", &schema_empty, &qmp_type_yank_instances, qmp_co_query_yank},
    {"quit", &schema_empty, &schema_empty, qmp_co_quit},
    {"remove-fd", &qmp_type_remove_fd, &schema_empty, qmp_co_remove_fd},
    {"ringbuf-read", &qmp_type_ringbuf_read, &schema_str, qmp_co_ringbuf_read},
    {"ringbuf-write", &qmp_type_ringbuf_write, &schema_empty, qmp_co_ringbuf_write},
    {"trace-event-get-state", &trace_get_state, &trace_event_infos, qmp_co_trace_event_get_state},
    {"trace-event-set-state", &trace_set_state, &schema_empty, qmp_co_trace_event_set_state},
    {"transaction", &transaction, &schema_empty, qmp_co_transaction},
    {"x-blockdev-amend", &qmp_type_blockdev_amend, &schema_empty, qmp_co_x_blockdev_amend},
    {"x-blockdev-change", &qmp_type_change_children, &schema_empty, qmp_co_x_blockdev_change},
    {"x-blockdev-checksums", &qmp_type_checksums_args, &qmp_type_checksums,
     qmp_co_x_blockdev_checksums},
    {"x-blockdev-set-iothread", &qmp_type_set_iothread, &schema_empty,
     qmp_co_x_blockdev_set_iothread},
    {"x-debug-block-dirty-bitmap-sha256", &block_bitmap_ref_type, &qmp_type_bitmap_sha256,
     qmp_co_x_debug_bitmap_sha256},
    {"x-debug-query-block-graph", &schema_empty, &block_graph, qmp_co_x_debug_query_block_graph},
    {"x-tidemark-give-up", &give_up_args, &schema_empty, qmp_co_x_tidemark_give_up},
    {"x-tidemark-lease", &qmp_type_lease, &schema_empty, qmp_co_x_tidemark_lease},
    {"x-tidemark-query-stats", &own_stats_args, &own_stats_list, qmp_co_x_tidemark_query_stats},
    {"x-tidemark-snapshot-apply", &qmp_type_snapshot_apply, &schema_empty,
     qmp_co_x_tidemark_snapshot_apply},
    {"yank", &qmp_type_yank, &schema_empty, qmp_co_yank},
    {NULL, NULL, NULL, NULL},
};

const struct qmp_event qmp_events[] = {
    {"BLOCK_EXPORT_DELETED", &export_id},
    {"BLOCK_IMAGE_CORRUPTED", &image_corrupted},
    {"BLOCK_IO_ERROR", &qmp_type_io_error},
    {"BLOCK_JOB_CANCELLED", &qmp_type_block_job_event},
    {"BLOCK_JOB_COMPLETED", &qmp_type_block_job_completed},
    {"BLOCK_JOB_ERROR", &qmp_type_block_job_error},
    {"BLOCK_JOB_PENDING", &qmp_type_block_job_pending},
    {"BLOCK_JOB_READY", &qmp_type_block_job_event},
    {"BLOCK_WRITE_THRESHOLD", &qmp_type_write_threshold},
    {"JOB_STATUS_CHANGE", &qmp_type_job_status_change},
    {"QUORUM_FAILURE", &quorum_failure},
    {"QUORUM_REPORT_BAD", &quorum_report_bad},
    {NULL, NULL},
};

/* --- with what a program adds ----------------------------------------------------------------- */

static const struct qmp_command no_commands[] = {{NULL, NULL, NULL, NULL}};
static const struct qmp_event no_events[] = {{NULL, NULL}};
static const struct qmp_addition nothing = {no_commands, no_events};
static const struct qmp_addition *added = &nothing;

void qmp_add(const struct qmp_addition *addition)
{
    added = addition;
}

/* --- finding commands ------------------------------------------------------------------------- */

/* The row of this name; the row at the end of the table if there is none. */
static const struct qmp_command *row_of_command(const struct qmp_command *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0) {
        table++;
    }
    return table;
}

const struct qmp_command *qmp_find_command(const char *name)
{
    const struct qmp_command *row = row_of_command(added->commands, name);

    row = row->name ? row : row_of_command(qmp_commands, name);
    return row->name ? row : NULL;
}

/* The row after `command`, of either table; the end of the second one at the end. */
static const struct qmp_command *next_row(const struct qmp_command *command)
{
    const struct qmp_command *next = command ? command + 1 : added->commands;
    const struct qmp_command *end = added->commands;

    while (end->name) {
        end++;
    }
    return next == end ? qmp_commands : next;
}

const struct qmp_command *qmp_next_command(const struct qmp_command *command)
{
    do {
        command = next_row(command);
    } while (command->name && qmp_find_command(command->name) != command);
    return command->name ? command : NULL;
}

/* --- finding events --------------------------------------------------------------------------- */

static const struct qmp_event *row_of_event(const struct qmp_event *table, const char *name)
{
    while (table->name && strcmp(table->name, name) != 0) {
        table++;
    }
    return table;
}

static const struct qmp_event *find_event(const char *name)
{
    const struct qmp_event *row = row_of_event(added->events, name);

    return row->name ? row : row_of_event(qmp_events, name);
}

static const struct qmp_event *next_event_row(const struct qmp_event *event)
{
    const struct qmp_event *next = event ? event + 1 : added->events, *end = added->events;

    while (end->name) {
        end++;
    }
    return next == end ? qmp_events : next;
}

const struct qmp_event *qmp_next_event(const struct qmp_event *event)
{
    do {
        event = next_event_row(event);
    } while (event->name && find_event(event->name) != event);
    return event->name ? event : NULL;
}

/* --- the two commands that read the table ----------------------------------------------------- */

static int co_query_commands(struct qmp_call *call, struct json_object *args,
                             struct json_object **ret_value, struct error *err)
{
    struct json_object *list = json_object_new_array();
    const struct qmp_command *c = NULL;

    while ((c = qmp_next_command(c))) {
        struct json_object *o = json_object_new_object();

        qmp_put_str(o, "name", c->name);
        json_object_array_add(list, o);
    }
    *ret_value = list;
    return 0;
}

struct json_object *qmp_introspect(void)
{
    return qmp_describe(qmp_next_command, qmp_next_event, false);
}

struct json_object *qmp_introspect_with_texts(void)
{
    return qmp_describe(qmp_next_command, qmp_next_event, true);
}

static int co_query_schema(struct qmp_call *call, struct json_object *args,
                           struct json_object **ret_value, struct error *err)
{
    *ret_value = qmp_introspect();
    return 0;
}
