# The guest's DSDT, compiled by Debian's acpica-tools and embedded by vm/acpi.c.

$(BUILD)/dsdt.hex: vm/dsdt.asl
	@mkdir -p $(@D)
	iasl -we -vs -tc -p $(BUILD)/dsdt $< > $(BUILD)/dsdt.log || { cat $(BUILD)/dsdt.log; exit 1; }
	@sed -i 's/^unsigned char/static const unsigned char/' $@

$(BUILD)/obj/vm/acpi.o $(BUILD)/unit/test_acpi: $(BUILD)/dsdt.hex
