# make          installs what is missing from Debian, builds build/dormoused, build/dormouse-imaged, build/dormouse, build/dormouse-agent
# make demo     real sandboxes: pause, resume, fork
# make test     all tests; ends with "N passed, N failed"
# make soak     the tests that look for what happens rarely, with many more rounds: half an hour
# make bench    the figures behind the claims
# make install  into PREFIX
#
# Meson builds; this gives the common tasks a name. For more control: meson setup, ninja.

PREFIX = /usr/local
SOURCES = git ls-files -z '*.c' '*.h' | xargs -0 clang-format

SOAK = $(addprefix tests/functional/test_, integrity.py storm.py power.py restart.py model.py)

all:
	@scripts/install-packages build run
	@test -f build/build.ninja || CC=gcc meson setup --prefix='$(PREFIX)' build
	@ninja -C build
	@ln -sf src/api/dormoused src/imaged/dormouse-imaged src/cli/dormouse src/agent/dormouse-agent build/

packages:
	@scripts/install-packages

test: all
	@scripts/install-packages test
	@scripts/test

soak: all
	@scripts/install-packages test
	@DORMOUSE_SOAK=1 /usr/bin/python3 -m pytest -v -o faulthandler_timeout=3600 --durations=0 $(SOAK)

demo: all
	@scripts/demo

bench: all
	@scripts/install-packages bench
	@bench/run

install: all
	@meson configure --prefix='$(PREFIX)' build
	@meson install -C build

format:
	@$(SOURCES) -i

check-format:
	@$(SOURCES) --dry-run -Werror

tidy: all packages
	@git ls-files '*.c' | xargs -P "$$(nproc)" -n 8 clang-tidy --quiet -p build

clean:
	@rm -rf build build-asan build-tsan

.PHONY: all packages test soak demo bench install format check-format tidy clean
