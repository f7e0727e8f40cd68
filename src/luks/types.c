/* SPDX-License-Identifier: Apache-2.0 */
#include "luks/types.h"

#include "block/option_types.h"
#include "schema/define.h"

ENUM(cipher_type, "QCryptoCipherAlgo", "aes-128", "aes-192", "aes-256", "des", "3des", "cast5-128",
     "serpent-128", "serpent-192", "serpent-256", "twofish-128", "twofish-192", "twofish-256",
     "sm4");
ENUM(mode_type, "QCryptoCipherMode", "ecb", "cbc", "xts", "ctr");
ENUM(ivgen_type, "QCryptoIVGenAlgo", "plain", "plain64", "essiv");
ENUM(hash_type, "QCryptoHashAlgo", "md5", "sha1", "sha224", "sha256", "sha384", "sha512",
     "ripemd160", "sm3");
ENUM(state_type, "QCryptoBlockLUKSKeyslotState", "active", "inactive");

#define KEY_MEMBER                                                                                 \
    OPT("key-secret", schema_str,                                                                  \
        .help = "id of the secret; required unless only metadata are read")
#define FORMAT_MEMBERS                                                                             \
    KEY_MEMBER, OPT("cipher-alg", cipher_type, .dflt = "aes-256"),                                 \
        OPT("cipher-mode", mode_type, .dflt = "xts"),                                              \
        OPT("ivgen-alg", ivgen_type, .dflt = "plain64",                                            \
            .help = "what initialization vectors are made from"),                                  \
        OPT("ivgen-hash-alg", hash_type, .dflt = "sha256 with essiv"),                             \
        OPT("hash-alg", hash_type, .dflt = "sha256", .help = "of the key derivation"),             \
        OPT("iter-time", schema_int, .dflt = "2000", .unit = "milliseconds",                       \
            .help = "what computing the key from the passphrase takes")
#define CHANGE_MEMBERS                                                                             \
    REQ("state", state_type),                                                                      \
        OPT("new-secret", schema_str, .help = "id of the secret for a slot that becomes active"),  \
        OPT("old-secret", schema_str, .help = "id of the secret whose slots are erased"),          \
        OPT("keyslot", schema_int, .max = 7, .dflt = "the first free one",                         \
            .help = "the slot to change"),                                                         \
        OPT("iter-time", schema_int, .dflt = "2000", .unit = "milliseconds"),                      \
        OPT("secret", schema_str, .dflt = "that of the node",                                      \
            .help = "id of the secret that opens the image")

const struct schema_type luks_key_type = OBJECT_INIT("QCryptoBlockOptionsLUKS", KEY_MEMBER);
const struct schema_type luks_format_type =
    OBJECT_INIT("QCryptoBlockCreateOptionsLUKS", FORMAT_MEMBERS);
const struct schema_type luks_change_type =
    OBJECT_INIT("QCryptoBlockAmendOptionsLUKS", CHANGE_MEMBERS);

const struct schema_type luks_options_type =
    OBJECT_INIT("BlockdevOptionsLUKS", REQ("file", block_ref_type), KEY_MEMBER,
                OPT("header", block_ref_type, .help = "where the header is; default: in the file"));
const struct schema_type luks_create_type =
    OBJECT_INIT("BlockdevCreateOptionsLUKS", FORMAT_MEMBERS, OPT("file", block_ref_type),
                OPT("header", block_ref_type, .help = "for the header; default: the file"),
                REQ("size", schema_size, .unit = "bytes"),
                OPT("preallocation", block_prealloc_type, .dflt = "off"));
const struct schema_type luks_amend_type = OBJECT_INIT("BlockdevAmendOptionsLUKS", CHANGE_MEMBERS);

/* --- what info shows -------------------------------------------------------------------------- */

OBJECT(slot_info_type, "QCryptoBlockInfoLUKSSlot", REQ("active", schema_bool),
       OPT("iters", schema_int), OPT("stripes", schema_int), REQ("key-offset", schema_int));
static const struct schema_type slot_infos_type =
    ARRAY_INIT("QCryptoBlockInfoLUKSSlotList", slot_info_type);
const struct schema_type luks_info_type = OBJECT_INIT(
    "QCryptoBlockInfoLUKS", REQ("cipher-alg", cipher_type), REQ("cipher-mode", mode_type),
    REQ("ivgen-alg", ivgen_type), OPT("ivgen-hash-alg", hash_type), REQ("hash-alg", hash_type),
    REQ("detached-header", schema_bool), REQ("payload-offset", schema_int),
    REQ("master-key-iters", schema_int), REQ("uuid", schema_str), REQ("slots", slot_infos_type));
const struct schema_type luks_specific_info_type =
    OBJECT_INIT("ImageInfoSpecificLUKSWrapper", REQ("data", luks_info_type));
