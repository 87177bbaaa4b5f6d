// SPDX-License-Identifier: BSD-2-Clause
// The log: a ring of lines in memory, read with the console command `log`, copied to the serial
// line before the first prompt and after `log follow`.
#pragma once

#include <stdarg.h>
#include "kernel/types.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_LEVELS };

// Appends one line (without newline; longer than 200 characters is cut) with the time and the CPU.
// Safe in every context but NMI; never blocks on a device.
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)

// Copies out the first line with sequence number >= *sequence and level <= max_level, as
// "[seconds.micros] cpuN level: text", without newline. Returns false when there is none, else sets
// *sequence to the number after the returned line.
bool log_read(uint64_t *sequence, enum log_level max_level, char *buffer, size_t size);

const char *log_level_name(enum log_level level);

// While true (from boot until the first prompt), each line also goes to the serial line at once.
void log_set_early_console(bool on);
