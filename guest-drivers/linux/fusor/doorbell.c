// SPDX-License-Identifier: GPL-2.0-only
/*
 * The doorbell: the interrupt of the ACPI device FUSR0001. A guest without ACPI asks for the target
 * every second instead.
 */
#include "balloon.h"

#include <linux/interrupt.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/platform_device.h>

static bool fusor_bound;

bool fusor_doorbell_present(void)
{
	return READ_ONCE(fusor_bound);
}

/* The line falls when the worker asks for the target. */
static irqreturn_t fusor_doorbell_rings(int irq, void *unused)
{
	fusor_balloon_ring();
	return IRQ_HANDLED;
}

static int fusor_doorbell_probe(struct platform_device *device)
{
	int irq = platform_get_irq(device, 0), err;

	if (irq < 0)
		return irq;
	err = devm_request_irq(&device->dev, irq, fusor_doorbell_rings, 0, "fusor", NULL);
	if (err)
		return err;
	WRITE_ONCE(fusor_bound, true);
	return 0;
}

static const struct acpi_device_id fusor_acpi_ids[] = {
	{ "FUSR0001", 0 },
	{}
};
MODULE_DEVICE_TABLE(acpi, fusor_acpi_ids);

/* Bound for as long as the driver is loaded. */
static struct platform_driver fusor_doorbell = {
	.probe = fusor_doorbell_probe,
	.driver = {
		.name = "fusor",
		.acpi_match_table = fusor_acpi_ids,
		.suppress_bind_attrs = true,
	},
};

int fusor_doorbell_start(void)
{
	return platform_driver_register(&fusor_doorbell);
}

void fusor_doorbell_stop(void)
{
	platform_driver_unregister(&fusor_doorbell);
	WRITE_ONCE(fusor_bound, false);
}
