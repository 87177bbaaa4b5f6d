# Host tests. Each tests/unit/test_NAME.c says in a line "// sources: a.c b.c" which files of the house it
# compiles with the sanitizers behind the fake arch.

UNIT_TESTS  := $(wildcard tests/unit/test_*.c)
UNIT_BIN    := $(UNIT_TESTS:tests/unit/%.c=$(BUILD)/unit/%)
UNIT_CFLAGS := -std=gnu17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all $(WARNINGS) -Wno-missing-prototypes -DFUSOR_DEBUG=1 -Itests/unit/fake -Itests/unit $(INCLUDES)

.PHONY: unit unit-build
unit-build: $(UNIT_BIN)
unit: $(UNIT_BIN)
	@failed=0; for t in $(UNIT_BIN); do $$t || failed=1; done; exit $$failed

unit_sources = $(shell sed -n 's,^// sources: ,,p' tests/unit/$(1).c)
.SECONDEXPANSION:
$(BUILD)/unit/%: tests/unit/%.c $(wildcard tests/unit/*.h tests/unit/fake/*.[ch] tests/unit/fake/arch/*.h tests/unit/fake/vmx/*.h */*.h) \
		$$(call unit_sources,$$*)
	@mkdir -p $(@D)
	$(CC) $(UNIT_CFLAGS) -o $@ $(filter %.c,$^) $$(sed -n 's,^// libs: ,,p' $<) -lcmocka
