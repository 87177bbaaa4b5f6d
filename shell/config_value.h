// SPDX-License-Identifier: BSD-2-Clause
// Kinds of values that keys have: sizes, numbers, switches, paths; and the tables of keys.
#pragma once

#include "kernel/string.h"
#include "shell/config.h"

#define CONFIG_NOT_IN_EFFECT 1
#define CONFIG_SHOWN_MAX     64u // how much of a value a message quotes

// One attempt to set one key.
struct config_attempt {
    void *target; // struct vm_config or struct host_config
    const char *key;
    const char *value;
    char *message; // CONFIG_MESSAGE_MAX bytes
};

struct config_key {
    const char *name;
    int (*set)(const struct config_attempt *a);
    bool repeats;
    bool not_in_effect; // the feature does not exist yet: accepted with a warning
};

static inline bool equal(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

// Writes `KEY: expected WHAT, got "VALUE"` and returns `code`.
int config_expected(const struct config_attempt *a, int code, const char *what);

// Reads decimal digits up to the first other character, which *rest receives. E_FORMAT without a
// digit, E_RANGE beyond 64 bits.
int config_parse_decimal(const char *text, uint64_t *number, const char **rest);

// Each takes the value of the attempt, or says what was expected and changes nothing.
int config_set_size(const struct config_attempt *a, uint64_t *bytes); // a multiple of 4K
int config_set_number(const struct config_attempt *a, uint64_t low, uint64_t high,
                      uint64_t *number);
int config_set_switch(const struct config_attempt *a, bool *on);
int config_set_path(const struct config_attempt *a, char path[VM_PATH_MAX]); // a loaded file

// Refuses sizes above 1/part of the memory of this machine.
int config_check_machine_has(const struct config_attempt *a, uint64_t bytes, unsigned part);

// Compares a path of the boot stage, which need not be terminated, with one of the config by the
// rules of FAT, as files_find() does. Returns what follows in `stored` where it begins with `path`:
// '\0' when they are the same, '\\' when `path` is a folder above; -1 when it does not.
int config_path_remainder(const char *stored, const char *path);

// Finds the key in a table and sets it, as config_set_vm_key() says.
int config_set_key(const struct config_key *keys, size_t count, const struct config_attempt *a);
// Its position in the table, or -1.
int config_find_key(const struct config_key *keys, size_t count, const char *name);
