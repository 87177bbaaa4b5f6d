# The Linux guest's driver. Its module for the test guests is built by tools/debian-guest.
#
#   make driver-deb                     build/fusor-dkms_VERSION_all.deb
#   make driver HEADERS=DIR             build/driver/fusor.ko against the kernel headers in DIR,
#                                       by default those of the running kernel.
#   make driver C=1                     and looks at it with sparse, if that is installed
# Without type information for BPF: that would need pahole and the kernel's vmlinux.

HEADERS ?= /lib/modules/$(shell uname -r)/build
LINUX_DRIVER := guest-drivers/linux

.PHONY: driver driver-deb
driver:
	@mkdir -p $(BUILD)/driver
	cp $(LINUX_DRIVER)/fusor/*.[ch] $(LINUX_DRIVER)/fusor/Kbuild hypercall/fusor_abi.h $(BUILD)/driver/
	$(MAKE) -C $(HEADERS) M=$(abspath $(BUILD)/driver) W=1 CONFIG_DEBUG_INFO_BTF_MODULES= modules

driver-deb:
	$(LINUX_DRIVER)/make-deb $(BUILD)
