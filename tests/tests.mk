# Host tests. Each tests/unit/test_NAME.c says in a line "// sources: a.c b.c" which files of the house it
# compiles with the sanitizers behind the fake arch.

UNIT_TESTS  := $(wildcard tests/unit/test_*.c)
UNIT_BIN    := $(UNIT_TESTS:tests/unit/%.c=$(BUILD)/unit/%)
UNIT_CFLAGS := -std=gnu17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all $(WARNINGS) -Wno-missing-prototypes -DFUSOR_DEBUG=1 -Itests/unit/fake -Itests/unit $(INCLUDES)

.PHONY: unit
unit: $(UNIT_BIN)
	@failed=0; for t in $(UNIT_BIN); do $$t || failed=1; done; exit $$failed

.SECONDEXPANSION:
$(BUILD)/unit/%: tests/unit/%.c $(wildcard tests/unit/fake/*.c tests/unit/fake/arch/*.h) $$(wildcard */*.h) \
		$$(shell sed -n 's,^// sources: ,,p' tests/unit/$$*.c)
	@mkdir -p $(@D)
	$(CC) $(UNIT_CFLAGS) -o $@ $(filter %.c,$^) $$(sed -n 's,^// libs: ,,p' $<) -lcmocka
