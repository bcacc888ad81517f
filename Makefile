# Every target is one script, so that nothing happens in CI that a person cannot run with one word.
.PHONY: demo test test-oldest check check-native bench fuzz install
demo test test-oldest check check-native bench fuzz install:
	@scripts/$@
