// SPDX-License-Identifier: GPL-2.0-only
/*
 * Finds Fusor and starts the driver's parts.
 *
 * Unloading at any moment is safe and leaves no duty behind: what Fusor has fused stays fused and
 * correct until it is written, and the balloon is emptied.
 */
#include "balloon.h"

#include <linux/crash_dump.h>
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <asm/cpu_device_id.h>
#include <asm/cpufeature.h>
#include <asm/processor.h>

#define FUSOR_FEATURES_USED                                                                         \
	(FUSOR_FEATURE_HINTS | FUSOR_FEATURE_STATS | FUSOR_FEATURE_BALLOON | FUSOR_FEATURE_FREE)
#define FUSOR_FEATURES_WITH_LISTS                                                                  \
	(FUSOR_FEATURE_HINTS | FUSOR_FEATURE_BALLOON | FUSOR_FEATURE_FREE)

u32 fusor_features __ro_after_init;
u32 fusor_list_max __ro_after_init;

/**
 * fusor_discover - look for the hypervisor and take down what it offers
 *
 * Return: 0, or -ENODEV with the reason in the log.
 */
static int __init fusor_discover(void)
{
	u32 highest, version, features, entries, ebx, ecx, edx;

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR)) {
		pr_info("not running under Fusor: no hypervisor\n");
		return -ENODEV;
	}
	cpuid(FUSOR_CPUID_SIGNATURE, &highest, &ebx, &ecx, &edx);
	if (ebx != FUSOR_SIGNATURE_EBX || ecx != FUSOR_SIGNATURE_ECX ||
	    edx != FUSOR_SIGNATURE_EDX || highest < FUSOR_CPUID_FEATURES) {
		pr_info("not running under Fusor\n");
		return -ENODEV;
	}
	cpuid(FUSOR_CPUID_FEATURES, &version, &features, &entries, &edx);
	if (version != FUSOR_ABI_VERSION) {
		pr_err("Fusor speaks version %u of its interface, this driver version %u\n",
		       version, FUSOR_ABI_VERSION);
		return -ENODEV;
	}
	fusor_features = features & FUSOR_FEATURES_USED;
	if (!entries)
		fusor_features &= ~(u32)FUSOR_FEATURES_WITH_LISTS;
	fusor_list_max = min_t(u32, entries, FUSOR_LIST_MAX);
	if (!fusor_features) {
		pr_info("Fusor offers nothing to this guest (features %#x)\n", features);
		return -ENODEV;
	}
	return 0;
}

static int __init fusor_init(void)
{
	int err;

	/*
	 * A crash kernel lives for a dump, in memory of its own that is too small to give any of it. The
	 * target and the balloon are the crashed kernel's, whose memory is to stay as it was.
	 */
	if (is_kdump_kernel()) {
		pr_info("crash kernel: memory is left as it is\n");
		return -ENODEV;
	}
	err = fusor_discover();
	if (err)
		return err;
	fusor_checksum_init();
	err = fusor_sender_init();
	if (err)
		return err;
	err = fusor_stats_init();
	if (err)
		goto no_stats;
	err = fusor_balloon_stats_init();
	if (err)
		goto no_balloon_stats;
	err = fusor_balloon_start();
	if (err)
		goto no_balloon;
	/* A feature that this kernel does not allow us to use. */
	if (fusor_reporting_start())
		fusor_features &= ~(u32)FUSOR_FEATURE_FREE;
	err = fusor_scanner_start();
	if (err)
		goto no_scanner;
	pr_info("interface version %u, features %#x\n", FUSOR_ABI_VERSION, fusor_features);
	return 0;

no_scanner:
	fusor_reporting_stop();
	fusor_balloon_stop();
no_balloon:
	fusor_balloon_stats_exit();
no_balloon_stats:
	fusor_stats_exit();
no_stats:
	fusor_sender_exit();
	return err;
}
module_init(fusor_init);

static void __exit fusor_exit(void)
{
	fusor_scanner_stop();
	fusor_reporting_stop();
	fusor_balloon_stop();
	fusor_balloon_stats_exit();
	fusor_stats_exit();
	fusor_state_exit();
	fusor_sender_exit();
}
module_exit(fusor_exit);

/* Loaded by udev in every virtual machine; leaves again where the hypervisor is another. */
static const struct x86_cpu_id fusor_cpu_ids[] __maybe_unused = {
	X86_MATCH_FEATURE(X86_FEATURE_HYPERVISOR, NULL),
	{}
};
MODULE_DEVICE_TABLE(x86cpu, fusor_cpu_ids);

MODULE_DESCRIPTION("Page fusion hints, balloon and free-page reports for guests of Fusor");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.1");
