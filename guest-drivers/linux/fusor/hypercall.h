/* SPDX-License-Identifier: GPL-2.0-only */
/* The instruction that asks Fusor: number in RAX, arguments in RDI, RSI, RDX, R10. */
#ifndef FUSOR_HYPERCALL_H
#define FUSOR_HYPERCALL_H

#include <linux/types.h>

#include "fusor_abi.h"

/**
 * fusor_call - one hypercall with two arguments
 * @number: enum fusor_call
 * @address: guest physical address of the list or structure
 * @size: its entries or bytes
 *
 * Only after fusor_discover() said that this is Fusor: elsewhere VMCALL is an invalid opcode, or
 * means something else. The buffer must come from the direct map, not from vmalloc or a stack.
 *
 * Return: a value >= 0, or a negative enum fusor_error_code.
 */
static inline s64 fusor_call(u64 number, phys_addr_t address, u64 size)
{
	register u64 reserved asm("r10") = 0;
	s64 result;

	asm volatile("vmcall"
		     : "=a" (result)
		     : "a" (number), "D" (address), "S" (size), "d" (0ULL), "r" (reserved)
		     : "memory", "cc");
	return result;
}

#endif
