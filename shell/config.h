// SPDX-License-Identifier: BSD-2-Clause
// fusor.conf: from text to configured VMs. The line lexer is shared with the boot stage
// (boot/config_lex.h).
#pragma once

#include "kernel/types.h"
#include "vm/config.h"

struct host_config {
    uint16_t console_port;
    uint32_t console_baud;
    uint64_t reserve; // bytes
    bool overcommit;
    bool auto_balloon;
    bool apicv; // where the CPU has it
};

#define CONFIG_MESSAGE_MAX 240u

void config_host_defaults(struct host_config *host);
void config_vm_defaults(struct vm_config *vm);

// Sets one key of a VM from text; `message` gets what was expected ("memory: expected an integer
// with K, M or G, got \"12\""), or the warning that the key is not in effect yet (return value 1).
// Shared by the file parser and `vm create`/`vm set`.
int config_set_vm_key(struct vm_config *vm, const char *key, const char *value, char *message);
int config_set_host_key(struct host_config *host, const char *key, const char *value,
                        char *message);
int config_set_group_key(const char *key, const char *value, char *message);

// What no single key can tell: required keys, and values that must fit together. Returns 0, or
// E_INVAL with the line for the operator in `message` and in *key the key that is at fault.
int config_check_vm(const struct vm_config *vm, const char **key, char *message);

// Position of a key in the table of its section, from 0, or -1 for an unknown one; and whether it
// may be given more than once. For the parser's check of repeated keys.
#define CONFIG_KEYS_MAX 32
int config_vm_key_index(const char *key);
int config_host_key_index(const char *key);
bool config_vm_key_repeats(const char *key);
bool config_host_key_repeats(const char *key);

// Reads the whole file. For every VM whose section is free of errors calls `vm` (defaults applied)
// in order; for every error or warning calls `complain` with "fusor.conf:LINE: ...". A section with
// an error is left out, the others stand.
struct config_sink {
    void (*vm)(void *context, const struct vm_config *vm, unsigned line);
    void (*complain)(void *context, bool is_error, const char *message);
    void *context;
};
void config_parse(const char *text, size_t size, struct host_config *host,
                  const struct config_sink *sink);

// Copies `text` for a message: at most size - 1 characters, those that are not printable ASCII as
// '?'.
void config_clean(char *buffer, size_t size, const char *text);

// Parses SIZE (integer with K, M or G). E_FORMAT, E_RANGE.
int config_parse_size(const char *text, uint64_t *bytes);
bool config_valid_name(const char *name);
