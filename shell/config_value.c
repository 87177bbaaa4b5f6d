// SPDX-License-Identifier: BSD-2-Clause
#include "shell/config_value.h"

#include "kernel/error.h"
#include "kernel/files.h"
#include "kernel/format.h"
#include "kernel/frames.h"
#include "kernel/string.h"

void config_clean(char *buffer, size_t size, const char *text)
{
    size_t i = 0;
    for (; i + 1 < size && text[i] != '\0'; i++)
        buffer[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    buffer[i] = '\0';
}

int config_expected(const struct config_attempt *a, int code, const char *what)
{
    char shown[CONFIG_SHOWN_MAX];
    config_clean(shown, sizeof(shown), a->value);
    format_text(a->message, CONFIG_MESSAGE_MAX, "%s: expected %s, got \"%s\"", a->key, what, shown);
    return code;
}

int config_parse_decimal(const char *text, uint64_t *number, const char **rest)
{
    uint64_t n = 0;
    if (*text < '0' || *text > '9')
        return E_FORMAT;
    for (; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (n > (UINT64_MAX - digit) / 10)
            return E_RANGE;
        n = n * 10 + digit;
    }
    *number = n;
    *rest = text;
    return 0;
}

int config_parse_size(const char *text, uint64_t *bytes)
{
    uint64_t n;
    const char *rest;
    int error = config_parse_decimal(text, &n, &rest);
    if (error < 0)
        return error;
    unsigned shift;
    switch (*rest) {
    case 'K':
        shift = 10;
        break;
    case 'M':
        shift = 20;
        break;
    case 'G':
        shift = 30;
        break;
    default:
        return E_FORMAT;
    }
    if (rest[1] != '\0')
        return E_FORMAT;
    if (n > UINT64_MAX >> shift)
        return E_RANGE;
    *bytes = n << shift;
    return 0;
}

bool config_valid_name(const char *name)
{
    size_t length = strnlen(name, VM_NAME_MAX + 1);
    if (length == 0 || length > VM_NAME_MAX || equal(name, "host") || equal(name, "all"))
        return false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool letter_or_digit = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!letter_or_digit && (i == 0 || (c != '_' && c != '-')))
            return false;
    }
    return true;
}

int config_set_size(const struct config_attempt *a, uint64_t *bytes)
{
    uint64_t n;
    int error = config_parse_size(a->value, &n);
    if (error == E_RANGE)
        return config_expected(a, E_RANGE, "a size below 16777216G");
    if (error < 0)
        return config_expected(a, E_FORMAT, "an integer with K, M or G");
    if ((n & PAGE_MASK) != 0)
        return config_expected(a, E_RANGE, "a multiple of 4K");
    *bytes = n;
    return 0;
}

int config_set_number(const struct config_attempt *a, uint64_t low, uint64_t high, uint64_t *number)
{
    uint64_t n;
    const char *rest;
    if (config_parse_decimal(a->value, &n, &rest) == 0 && *rest == '\0' && n >= low && n <= high) {
        *number = n;
        return 0;
    }
    char range[64];
    format_text(range, sizeof(range), "an integer from %llu to %llu", (unsigned long long)low,
                (unsigned long long)high);
    return config_expected(a, E_RANGE, range);
}

int config_set_switch(const struct config_attempt *a, bool *on)
{
    if (!equal(a->value, "on") && !equal(a->value, "off"))
        return config_expected(a, E_INVAL, "on or off");
    *on = equal(a->value, "on");
    return 0;
}

static char fold(char c)
{
    if (c >= 'A' && c <= 'Z')
        return (char)(c - 'A' + 'a');
    return c == '/' ? '\\' : c;
}

int config_path_remainder(const char *stored, const char *path)
{
    size_t i = 0;
    size_t length = strlen(path);
    while (length > 0 && fold(path[length - 1]) == '\\')
        length--;
    while (length > 0 && fold(*path) == '\\') {
        path++;
        length--;
    }
    while (i < BOOT_PATH_MAX && fold(stored[i]) == '\\')
        i++;
    if (length == 0)
        return '\\'; // the root is above all
    for (; length > 0; length--, i++, path++)
        if (i == BOOT_PATH_MAX || fold(stored[i]) != fold(*path))
            return -1;
    return i == BOOT_PATH_MAX ? '\0' : fold(stored[i]);
}

// Why the boot stage could not load a file that the config names.
static const char *file_trouble(const char *path)
{
    for (unsigned i = 0; i < files_count(); i++) {
        const struct boot_file *file = files_get(i);
        if (config_path_remainder(file->path, path) != '\0')
            continue;
        if (file->status == BOOT_FILE_MISSING)
            return "no such file on the boot volume";
        if (file->status == BOOT_FILE_NO_MEMORY)
            return "no memory was left to load it at boot";
    }
    return "the firmware could not read it at boot";
}

int config_set_path(const struct config_attempt *a, char path[VM_PATH_MAX])
{
    const uint8_t *data;
    uint64_t size;
    char shown[CONFIG_SHOWN_MAX];
    if (a->value[0] == '\0')
        return config_expected(a, E_INVAL, "the path of a file on the boot volume");
    if (strlen(a->value) >= VM_PATH_MAX)
        return config_expected(a, E_RANGE, "a path of at most 127 characters");
    config_clean(shown, sizeof(shown), a->value);
    int error = files_find(a->value, &data, &size);
    if (error == E_NOENT) {
        format_text(a->message, CONFIG_MESSAGE_MAX, "%s was not loaded at boot", shown);
        return error;
    }
    if (error < 0) {
        format_text(a->message, CONFIG_MESSAGE_MAX, "%s: expected a readable file, got %s: %s",
                    a->key, shown, file_trouble(a->value));
        return error;
    }
    memcpy(path, a->value, strlen(a->value) + 1);
    return 0;
}

static uint64_t machine_bytes(void)
{
    struct frames_snapshot frames;
    frames_snapshot(&frames, NULL, 0, NULL, NULL);
    return frames.total << PAGE_SHIFT;
}

int config_check_machine_has(const struct config_attempt *a, uint64_t bytes, unsigned part)
{
    char what[80];
    uint64_t most = machine_bytes() / part;
    if (bytes <= most)
        return 0;
    if (part == 1)
        format_text(what, sizeof(what), "at most the %lluK of this machine",
                    (unsigned long long)(most / KIB));
    else
        format_text(what, sizeof(what), "at most %lluK, 1/%u of this machine's memory",
                    (unsigned long long)(most / KIB), part);
    return config_expected(a, E_RANGE, what);
}

int config_find_key(const struct config_key *keys, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (equal(keys[i].name, name))
            return (int)i;
    return -1;
}

int config_set_key(const struct config_key *keys, size_t count, const struct config_attempt *a)
{
    int index = config_find_key(keys, count, a->key);
    a->message[0] = '\0';
    if (index < 0) {
        char shown[CONFIG_SHOWN_MAX];
        config_clean(shown, sizeof(shown), a->key);
        int used = format_text(a->message, CONFIG_MESSAGE_MAX,
                               "unknown key \"%s\", expected one of:", shown);
        for (size_t i = 0; i < count && used < (int)CONFIG_MESSAGE_MAX; i++)
            used += format_text(a->message + used, CONFIG_MESSAGE_MAX - (size_t)used, " %s",
                                keys[i].name);
        return E_NOENT;
    }
    int result = keys[index].set(a);
    if (result == 0 && keys[index].not_in_effect)
        result = CONFIG_NOT_IN_EFFECT;
    if (result == CONFIG_NOT_IN_EFFECT)
        format_text(a->message, CONFIG_MESSAGE_MAX, "%s is not in effect yet", a->key);
    return result;
}
