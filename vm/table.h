// SPDX-License-Identifier: BSD-2-Clause
#pragma once

#include "vm/vm_object.h"

// Adds a VM: E_EXIST when the name is taken, E_NOMEM when the table is full.
int vm_table_add(struct vm *vm);
void vm_table_remove(struct vm *vm);
