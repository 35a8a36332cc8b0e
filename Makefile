# `make run` starts Keylatch beside a demo upstream; `make test` passes everything; `make bench` measures.

.PHONY: help run test bench build fuzz deb bundle image try
.DEFAULT_GOAL := help

help:
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

build: ## build the release binary
	@scripts/need build
	cargo build --release --locked

run: build ## start Keylatch on 127.0.0.1:8080 beside a demo upstream
	@scripts/run

test: ## everything: format, lints, docs, licences, unit and black-box tests
	@scripts/need test
	@scripts/test

deb: ## build the Debian package, into target/debian
	@scripts/need build
	@scripts/deb

bundle: ## one archive for a host without internet: program, package, units, configuration, Compose, steps, checksums
	@scripts/need build
	@scripts/bundle

image: ## build the container image `keylatch`, by docker, podman or buildah
	@if command -v docker >/dev/null; then docker build -t keylatch .; elif command -v podman >/dev/null; then podman build --format docker -t keylatch .; else buildah build --format docker -t keylatch .; fi

try: bundle ## try package and image in machines of their own (Debian, as root)
	@scripts/try-package
	@scripts/try-image

fuzz: ## run each fuzz target for SECONDS (default 60)
	@scripts/fuzz

bench: ## measure against a bare Pingora, nginx, HAProxy and Caddy, what the stores cost, and what checks cost; prints tables
	@scripts/need bench
	cargo build --release --locked -p keylatch -p passthrough
	python3 benches/run.py
	python3 benches/stores.py
	python3 benches/access.py
	python3 benches/lists.py
