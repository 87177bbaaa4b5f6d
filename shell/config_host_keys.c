// SPDX-License-Identifier: BSD-2-Clause
// The keys of [host] and [group NAME]: names, values, defaults (design section 7).
#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/format.h"
#include "kernel/string.h"
#include "shell/config_value.h"

static struct host_config *host_of(const struct config_attempt *a)
{
    return a->target;
}

static int parse_hexadecimal(const char *text, uint64_t *number, const char **rest)
{
    uint64_t n = 0;
    const char *start = text;
    for (;; text++) {
        unsigned digit;
        if (*text >= '0' && *text <= '9')
            digit = (unsigned)(*text - '0');
        else if (*text >= 'a' && *text <= 'f')
            digit = (unsigned)(*text - 'a') + 10;
        else if (*text >= 'A' && *text <= 'F')
            digit = (unsigned)(*text - 'A') + 10;
        else
            break;
        if (n > UINT64_MAX >> 4)
            return E_RANGE;
        n = n << 4 | digit;
    }
    *number = n;
    *rest = text;
    return text == start ? E_FORMAT : 0;
}

// com1..com4 or an I/O port, then perhaps a baud rate: "com1:115200", "0x3f8", "0x3f8:9600".
static int set_console(const struct config_attempt *a)
{
    static const uint16_t com_ports[] = {0x3f8, 0x2f8, 0x3e8, 0x2e8};
    static const char what[] = "com1 to com4 or an I/O port, then :BAUD, as in com1:115200";
    const char *at = a->value;
    uint64_t port;
    uint64_t baud = 115200;
    if (strncmp(at, "com", 3) == 0) {
        if (at[3] < '1' || at[3] > '4')
            return config_expected(a, E_INVAL, what);
        port = com_ports[at[3] - '1'];
        at += 4;
    } else if (strncmp(at, "0x", 2) == 0) {
        if (parse_hexadecimal(at + 2, &port, &at) < 0)
            return config_expected(a, E_FORMAT, what);
    } else if (config_parse_decimal(at, &port, &at) < 0) {
        return config_expected(a, E_FORMAT, what);
    }
    // A 16550 has eight registers.
    if (port == 0 || port > 0xfff8 || (port & 7) != 0)
        return config_expected(a, E_RANGE, "an I/O port that is a multiple of 8, up to 0xfff8");
    if (*at == ':' && config_parse_decimal(at + 1, &baud, &at) < 0)
        return config_expected(a, E_FORMAT, what);
    if (*at != '\0')
        return config_expected(a, E_FORMAT, what);
    // The 16550 divides 115200 by a 16-bit integer.
    if (baud < 50 || baud > 115200 || 115200 % baud != 0)
        return config_expected(a, E_RANGE, "a baud rate from 50 to 115200 that divides 115200");
    host_of(a)->console_port = (uint16_t)port;
    host_of(a)->console_baud = (uint32_t)baud;
    return 0;
}

static int set_reserve(const struct config_attempt *a)
{
    uint64_t bytes = 0;
    int error = config_set_size(a, &bytes);
    if (error == 0)
        error = config_check_machine_has(a, bytes, 4); // the rest is for the guests
    if (error == 0)
        host_of(a)->reserve = bytes;
    return error;
}

static int set_overcommit(const struct config_attempt *a)
{
    return config_set_switch(a, &host_of(a)->overcommit);
}

static int set_auto_balloon(const struct config_attempt *a)
{
    return config_set_switch(a, &host_of(a)->auto_balloon);
}

static int set_apicv(const struct config_attempt *a)
{
    return config_set_switch(a, &host_of(a)->apicv);
}

// Names a file, or a folder whose files the boot stage loads.
static int check_files(const struct config_attempt *a)
{
    char unused[VM_PATH_MAX];
    for (unsigned i = 0; i < files_count(); i++)
        if (config_path_remainder(files_get(i)->path, a->value) == '\\')
            return 0;
    return config_set_path(a, unused);
}

static const struct config_key host_keys[] = {
    {"console", set_console, false, false},       {"reserve", set_reserve, false, false},
    {"overcommit", set_overcommit, false, false}, {"auto-balloon", set_auto_balloon, false, false},
    {"files", check_files, true, false},          {"apicv", set_apicv, false, false},
};
_Static_assert(ARRAY_SIZE(host_keys) <= CONFIG_KEYS_MAX, "the parser remembers a line per key");

void config_host_defaults(struct host_config *host)
{
    memset(host, 0, sizeof(*host));
    host->console_port = 0x3f8;
    host->console_baud = 115200;
    host->reserve = 16 * MIB;
    host->overcommit = true;
    host->apicv = true;
}

int config_host_key_index(const char *key)
{
    return config_find_key(host_keys, ARRAY_SIZE(host_keys), key);
}

bool config_host_key_repeats(const char *key)
{
    int index = config_host_key_index(key);
    return index >= 0 && host_keys[index].repeats;
}

int config_set_host_key(struct host_config *host, const char *key, const char *value, char *message)
{
    struct config_attempt a = {host, key, value, message};
    return config_set_key(host_keys, ARRAY_SIZE(host_keys), &a);
}

static int set_secure(const struct config_attempt *a)
{
    bool secure = false;
    int error = config_set_switch(a, &secure);
    if (error == 0 && secure) {
        format_text(a->message, CONFIG_MESSAGE_MAX,
                    "secure: expected off, on is not supported yet");
        return E_NOSYS;
    }
    return error;
}

static const struct config_key group_keys[] = {{"secure", set_secure, false, false}};

int config_set_group_key(const char *key, const char *value, char *message)
{
    struct config_attempt a = {NULL, key, value, message};
    return config_set_key(group_keys, ARRAY_SIZE(group_keys), &a);
}
