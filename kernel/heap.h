// SPDX-License-Identifier: BSD-2-Clause
// Small objects and buffers of Fusor itself, in size classes on top of frames. For objects that
// live long; nothing on an exit path allocates here.
#pragma once

#include <stddef.h>

// After frames_init, before the first allocation; forgets everything.
void heap_init(void);
// Returns zeroed memory aligned to 16 bytes (to a page from 4 KiB up), or NULL.
void *heap_alloc(size_t size);
// NULL is allowed.
void heap_free(void *p);
