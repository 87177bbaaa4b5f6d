// SPDX-License-Identifier: BSD-2-Clause
// Error codes inside Fusor: 0 or positive is success, these are failures. The console turns them
// into one line that says what happened, where, and what to do.
#pragma once

enum fusor_error {
    E_INVAL = -1,   // an argument makes no sense
    E_NOMEM = -2,   // no frame, or a fixed table is full; nothing was changed
    E_NOENT = -3,   // no such object
    E_EXIST = -4,   // the object exists already
    E_BUSY = -5,    // not in this state, or somebody else is at it
    E_RANGE = -6,   // outside the permitted range
    E_NOSYS = -7,   // the machine or this version cannot do it
    E_PERM = -8,    // the caller may not
    E_AGAIN = -9,   // nothing wrong, call again
    E_FAULT = -10,  // the address is not backed by RAM
    E_IO = -11,     // a device did not answer
    E_FORMAT = -12, // data is malformed
    E_TIMEOUT = -13,
};

// Returns a short English text for `error`, never NULL.
const char *error_text(int error);
