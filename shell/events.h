// SPDX-License-Identifier: BSD-2-Clause
// Events on their way to the console's `* ` lines.
#pragma once

#include "kernel/types.h"

#define EVENT_MAX 200u // bytes of one line with its terminator; longer ones are cut

bool events_pending(void);
// How many were ever posted, those dropped included. Takes no lock.
uint64_t events_posted(void);
// Takes the oldest event; false when there is none. When events were dropped for lack of room, a
// line that says how many stands in for them.
bool events_take(char line[EVENT_MAX]);
