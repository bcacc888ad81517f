# Every target is one script, so that nothing happens in CI that a person cannot run with one word.
.PHONY: demo test check check-native bench fuzz install
demo test check check-native bench fuzz install:
	@scripts/$@
