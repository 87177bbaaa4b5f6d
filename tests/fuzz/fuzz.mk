# Fuzzing on the host: make fuzz SECONDS=60 runs each tests/fuzz/fuzz_NAME.c for so long (60 is the default). As in
# unit tests, its lines "// sources: a.c b.c" say which files of the house it compiles, "// libs: -lfoo" what it links,
# and fuzz_NAME.dict, if there is one, names words worth trying. What was found useful is kept in
# build/fuzz/NAME.corpus; an input that fails is left in build/fuzz and named.

FUZZ_CC     := clang
FUZZ_CFLAGS := -std=gnu17 -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined \
	-fno-sanitize-recover=all -DFUSOR_DEBUG=1 -Itests/unit/fake -Itests/unit $(INCLUDES)
FUZZ_TESTS  := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BIN    := $(FUZZ_TESTS:tests/fuzz/%.c=$(BUILD)/fuzz/%)

.PHONY: fuzz
fuzz: $(FUZZ_BIN)
	@for f in $(FUZZ_BIN); do \
		mkdir -p $$f.corpus; \
		dict=tests/fuzz/$$(basename $$f).dict; \
		[ -e $$dict ] && dict=-dict=$$dict || dict=; \
		$$f -max_total_time=$(or $(SECONDS),60) -max_len=20000 -timeout=10 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=$$f- $$dict $$f.corpus || exit 1; \
	done

fuzz_sources = $(shell sed -n 's,^// sources: ,,p' tests/fuzz/$(1).c)
.SECONDEXPANSION:
$(BUILD)/fuzz/%: tests/fuzz/%.c $(wildcard tests/unit/fake/*.[ch] tests/unit/fake/arch/*.h */*.h) \
		$$(call fuzz_sources,$$*)
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_CFLAGS) -o $@ $(filter %.c,$^) $$(sed -n 's,^// libs: ,,p' $<)
