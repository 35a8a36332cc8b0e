# `make run` starts Keylatch with a demo upstream; `make test` runs all checks; `make bench` runs the benchmarks.

.PHONY: help run test bench build fuzz dist deb bundle image try
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

build: ## build the release binary
	@scripts/need build
	cargo build --release --locked

run: build ## start Keylatch on 127.0.0.1:8080 with a demo upstream
	@scripts/run

test: ## run all checks: format, lints, docs, licences, unit and black-box tests
	@scripts/need test
	@scripts/test

dist: ## build the program that is shipped, target/dist/keylatch: optimised as a whole, guided by a profile (20 minutes or more)
	@scripts/need dist
	@scripts/dist

deb: ## build the Debian package in target/debian
	@scripts/need dist
	@scripts/deb

bundle: ## build an archive for offline hosts: program, package, units, configuration, Compose, steps, checksums
	@scripts/need dist
	@scripts/bundle

image: ## build the container image `keylatch` with docker, podman or buildah
	@if command -v docker >/dev/null; then docker build -t keylatch .; elif command -v podman >/dev/null; then podman build --format docker -t keylatch .; else buildah build --format docker -t keylatch .; fi

try: bundle ## test the package and the image in isolated systems (Debian, as root)
	@scripts/try-package
	@scripts/try-image

fuzz: ## run each fuzz target for SECONDS_EACH seconds (default 60)
	@scripts/fuzz

bench: ## compare with other proxies; measure workers, growth, streams, stores, access checks and lists (15 minutes)
	@scripts/need bench
	cargo build --release --locked -p keylatch
	cargo build --release --locked --manifest-path benches/passthrough/Cargo.toml --target-dir target
	python3 benches/run.py --quick
