# SPDX-License-Identifier: Apache-2.0
# The one door: everything a person or a machine does with this repository is a target here.
#
#   make run            installs what is missing, builds, and shows a disk served end to end
#   make test           format lint, build, house rules, unit and process tests
#   make guest          the same on a whole machine: systemd, VFIO and a controller by QEMU; FILTER=, KEEP=1
#   make bench          benchmarks, one JSON object a line; ARGS= goes to nvmed-bench
#   make soak           verified load while workers, supervisor and clients are killed, for SECONDS=
#                       (default 60), with the times of SEED=
#   make crash          workers killed at each crash point, with each kind of request
#   make servicing      everything above the devices stopped and started; TRIALS= names a few, SEED=
#   make fuzz           random input to every parser for SECONDS= (default 60), replayed by SEED=
#   make sanitize       rings, queues and clients under the thread and the address sanitizer
#   make install        installs what was built: DESTDIR=, PREFIX= (default /usr/local)
#   make deb            a Debian package of it: .build/nvmed.deb
#   make fmt            formats the Swift code
#   make protos         regenerates Sources/CWire from Proto
#   make install-deps   installs the Debian packages that are missing, and nothing else
#   make clean          removes what was built

SECONDS ?= 60
SEED ?=
DESTDIR ?=
PREFIX ?= /usr/local

export SWIFT_BACKTRACE = enable=no
export NVMED_BIN_DIR ?= $(CURDIR)/.build/release

.PHONY: run test guest bench soak crash servicing fuzz sanitize install deb fmt protos install-deps build clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

run:
	@.ci/bootstrap run
	@.ci/build
	@.ci/demo

test:
	@.ci/test

guest:
	@.ci/guest

bench:
	@.ci/bootstrap test
	@.ci/build
	@.ci/bench $(ARGS)

soak:
	@.ci/bootstrap run
	@.ci/build
	@.ci/soak "$(SECONDS)" "$(SEED)"

crash:
	@.ci/bootstrap run
	@.ci/build
	@.ci/crash matrix

servicing:
	@.ci/bootstrap run
	@.ci/build
	@SEED="$(SEED)" .ci/servicing $(TRIALS)

fuzz:
	@.ci/bootstrap run
	@.ci/random-tests fuzz "$(SECONDS)" "$(SEED)"

sanitize:
	@.ci/bootstrap test
	@.ci/build
	@.ci/sanitize

build:
	@.ci/bootstrap run
	@.ci/build

# Root installs what somebody else built: nothing is built here, so that no file of root's is left.
install:
	@.ci/install "$(DESTDIR)" "$(PREFIX)"

deb: build
	@.ci/deb

fmt:
	swift format --in-place --recursive Sources Tests Package.swift
	@.ci/wrap-comments

protos:
	@.ci/bootstrap test
	@.ci/protos

install-deps:
	@.ci/bootstrap test

clean:
	rm -rf .build
