/* SPDX-License-Identifier: Apache-2.0 */
/* Options of chardevs: the part of QEMU's qapi/char.json that there is. */
#include "block/socket_address.h"
#include "chardev/chardev.h"
#include "schema/define.h"

static const char *const names[] = {"file",    "memory", "null",  "pipe", "pty",
                                    "ringbuf", "socket", "stdio", NULL};
static const struct schema_type kind = {
    .kind = SCHEMA_ENUM, .name = "ChardevBackendKind", .values = names};

/* What all types have. */
#define COMMON                                                                                     \
    OPT("logfile", schema_str, .help = "file that records what is sent"),                          \
        OPT("logappend", schema_bool, .dflt = "false", .help = "keep what the file has already")

OBJECT(common, "ChardevCommon", COMMON);
OBJECT(file, "ChardevFile", COMMON, REQ("out", schema_str, .help = "file for output"),
       OPT("in", schema_str, .help = "file for input; default: there is none"),
       OPT("append", schema_bool, .dflt = "false", .help = "keep what the file has already"));
OBJECT(hostdev, "ChardevHostdev", COMMON,
       REQ("device", schema_str, .help = "a FIFO, or the name before .in and .out of two"));
OBJECT(pty, "ChardevPty", COMMON, OPT("path", schema_str, .help = "a symbolic link to make"));
OBJECT(ringbuf, "ChardevRingbuf", COMMON,
       OPT("size", schema_int, .dflt = "65536", .unit = "bytes", .help = "a power of two"));
OBJECT(stdio, "ChardevStdio", COMMON, OPT("signal", schema_bool, .help = "without effect"));
OBJECT(socket_options, "ChardevSocket", COMMON, REQ("addr", socket_address_legacy_type),
       OPT("tls-creds", schema_str, .help = "id of TLS credentials; default: no TLS"),
       OPT("tls-authz", schema_str, .help = "id of the authorization that clients have to pass"),
       OPT("server", schema_bool, .dflt = "true", .help = "listen, and do not connect"),
       OPT("wait", schema_bool, .dflt = "false", .help = "wait for the first client"),
       OPT("nodelay", schema_bool, .dflt = "false", .help = "send small pieces at once"),
       OPT("telnet", schema_bool, .dflt = "false", .help = "false only"),
       OPT("tn3270", schema_bool, .dflt = "false", .help = "false only"),
       OPT("websocket", schema_bool, .dflt = "false", .help = "false only"),
       OPT("reconnect", schema_int, DEPRECATED, .dflt = "0", .unit = "seconds",
           .help = "connect again so long after the connection was lost; 0: do not"),
       OPT("reconnect-ms", schema_int, .dflt = "0", .unit = "milliseconds", .help = "likewise"));

OBJECT(common_wrapper, "ChardevCommonWrapper", REQ("data", common));
OBJECT(file_wrapper, "ChardevFileWrapper", REQ("data", file));
OBJECT(hostdev_wrapper, "ChardevHostdevWrapper", REQ("data", hostdev));
OBJECT(pty_wrapper, "ChardevPtyWrapper", REQ("data", pty));
OBJECT(ringbuf_wrapper, "ChardevRingbufWrapper", REQ("data", ringbuf));
OBJECT(stdio_wrapper, "ChardevStdioWrapper", REQ("data", stdio));
OBJECT(socket_wrapper, "ChardevSocketWrapper", REQ("data", socket_options));

const struct schema_type chardev_backend_type = {
    .kind = SCHEMA_OBJECT,
    .name = "ChardevBackend",
    .members = MEMBERS(REQ("type", kind)),
    .tag = "type",
    .variants = (const struct schema_variant[]){{"file", &file_wrapper},
                                                {"memory", &ringbuf_wrapper},
                                                {"null", &common_wrapper},
                                                {"pipe", &hostdev_wrapper},
                                                {"pty", &pty_wrapper},
                                                {"ringbuf", &ringbuf_wrapper},
                                                {"socket", &socket_wrapper},
                                                {"stdio", &stdio_wrapper},
                                                {NULL, NULL}},
};

const char *const *chardev_type_names(void)
{
    return names;
}
