/* SPDX-License-Identifier: GPL-2.0-only */
/* Files of one number each below /sys/kernel/fusor/, found by their place in a structure of numbers. */
#ifndef FUSOR_ATTRIBUTE_H
#define FUSOR_ATTRIBUTE_H

#include <linux/compiler.h>
#include <linux/container_of.h>
#include <linux/kobject.h>
#include <linux/stddef.h>
#include <linux/sysfs.h>

struct fusor_attribute {
	struct kobj_attribute attr;
	size_t offset;
};

/**
 * fusor_show_number - what a file made by FUSOR_NUMBER says
 * @structure: the numbers as they are now
 * @attr: the file
 * @buf: gets the text
 *
 * Return: its length.
 */
static inline ssize_t fusor_show_number(const void *structure, const struct kobj_attribute *attr,
					char *buf)
{
	size_t offset = container_of(attr, struct fusor_attribute, attr)->offset;

	return sysfs_emit(buf, "%llu\n", READ_ONCE(*(const u64 *)(structure + offset)));
}

/* The file `name_`, group_name_.attr.attr, of a u64 in `struct structure_`; group_show() shows it. */
#define FUSOR_NUMBER(group_, name_, structure_, member_)                                           \
	static struct fusor_attribute group_##_##name_ = {                                         \
		__ATTR(name_, 0444, group_##_show, NULL),                                          \
		offsetof(struct structure_, member_),                                              \
	}

#endif
