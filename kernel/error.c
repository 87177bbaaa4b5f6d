// SPDX-License-Identifier: BSD-2-Clause
#include "kernel/error.h"

const char *error_text(int error)
{
    if (error >= 0)
        return "success";
    switch ((enum fusor_error)error) {
    case E_INVAL:
        return "invalid argument";
    case E_NOMEM:
        return "out of memory";
    case E_NOENT:
        return "not found";
    case E_EXIST:
        return "exists already";
    case E_BUSY:
        return "busy";
    case E_RANGE:
        return "out of range";
    case E_NOSYS:
        return "not supported";
    case E_PERM:
        return "not permitted";
    case E_AGAIN:
        return "try again";
    case E_FAULT:
        return "address not backed by RAM";
    case E_IO:
        return "device does not answer";
    case E_FORMAT:
        return "malformed data";
    case E_TIMEOUT:
        return "timed out";
    }
    return "unknown error";
}
