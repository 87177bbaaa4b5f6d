// SPDX-License-Identifier: GPL-2.0-only
/* /sys/kernel/fusor/balloon/: what the balloon did. */
#include "balloon.h"

#include <linux/kobject.h>
#include <linux/sysfs.h>

#include "attribute.h"

struct fusor_balloon_counters fusor_balloon_count;

static ssize_t balloon_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return fusor_show_number(&fusor_balloon_count, attr, buf);
}

#define NUMBER(name_, member_) FUSOR_NUMBER(balloon, name_, fusor_balloon_counters, member_)

NUMBER(pages, pages);
NUMBER(extents, extents);
NUMBER(inflated, inflated);
NUMBER(deflated, deflated[DEFLATE_TARGET]);
NUMBER(deflated_oom, deflated[DEFLATE_OOM]);
NUMBER(deflated_shrinker, deflated[DEFLATE_SHRINKER]);
NUMBER(refused, refused);
NUMBER(no_frames, no_frames);
NUMBER(strays, strays);
NUMBER(moved, moved);
NUMBER(ns_allocating, ns_allocating);
NUMBER(ns_giving, ns_giving);
NUMBER(ns_taking, ns_taking);
NUMBER(rings, rings);
NUMBER(reported, reported);

static ssize_t target_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", fusor_balloon_wanted());
}
static struct kobj_attribute balloon_target = __ATTR_RO(target);

static ssize_t room_show(struct kobject *kobj, struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", fusor_room());
}
static struct kobj_attribute balloon_room = __ATTR_RO(room);

static struct attribute *fusor_balloon_attributes[] = {
	&balloon_target.attr,
	&balloon_room.attr,
	&balloon_pages.attr.attr,
	&balloon_extents.attr.attr,
	&balloon_inflated.attr.attr,
	&balloon_deflated.attr.attr,
	&balloon_deflated_oom.attr.attr,
	&balloon_deflated_shrinker.attr.attr,
	&balloon_refused.attr.attr,
	&balloon_no_frames.attr.attr,
	&balloon_strays.attr.attr,
	&balloon_moved.attr.attr,
	&balloon_ns_allocating.attr.attr,
	&balloon_ns_giving.attr.attr,
	&balloon_ns_taking.attr.attr,
	&balloon_rings.attr.attr,
	&balloon_reported.attr.attr,
	NULL,
};

static const struct attribute_group fusor_balloon_group = {
	.name = "balloon",
	.attrs = fusor_balloon_attributes,
};

int fusor_balloon_stats_init(void)
{
	return sysfs_create_group(fusor_kobject, &fusor_balloon_group);
}

void fusor_balloon_stats_exit(void)
{
	sysfs_remove_group(fusor_kobject, &fusor_balloon_group);
}
