# What a person needs. CI runs the same: .ci/run calls `make lint` and `make test`.
#
#   make demo     the whole product on a LAN of namespaces: a Service gets an address, its node dies, another takes over
#   make test     all tests
#   make lab      the same LAN and cluster as in the demo, left up, with a shell
#   make lint     formatting, clippy, documentation, dependencies
#   make crds     write crds/ and the chart's copy after a change of src/api
#   make fuzz     what is read from the LAN, and the speaker's decisions, fuzzed for FUZZ_SECONDS (600) each
#   make bench    what an address costs the allocator, by their number
#   make bench-latency    how long an ARP answer takes with a core busy, beside a minimal responder in C and the kernel
#   make bench-failover   what a client feels when a node dies or an address moves, beside keepalived; ARGS: docs/moves.md

SHELL := /bin/bash
export PATH := $(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin
CARGO_DENY_VERSION := 0.20.2
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/l2lb/tools
NODES ?= 3
FUZZ_SECONDS ?= 600

.PHONY: help demo test fuzz bench bench-latency bench-failover lab lint crds setup kit build clean
help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))

# What the machine lacks: installed where this runs as root on Debian or Ubuntu, named otherwise.
setup:
	@scripts/setup.sh

# etcd, Kubernetes and helm for the lab: built once from their Go modules, then taken from the cache.
kit: setup
	@lab/kit/build.sh

build: setup
	cargo build --locked --workspace
	@target/debug/lab check --install

demo: build kit
	@cargo run --locked --quiet --package l2lb-lab -- demo --nodes $(NODES)

lab: build kit
	@cargo run --locked --quiet --package l2lb-lab -- up --nodes $(NODES)

test: setup kit
	@scripts/test.sh

fuzz: setup
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh

bench: setup
	cargo bench --locked --bench allocator

bench-latency: setup
	cargo bench --locked --bench latency

# Debian's keepalived, to compare with: measured where it is installed, and installed where this runs as root on Debian or Ubuntu.
bench-failover: setup kit
	cargo build --release --locked --workspace
	@target/release/lab check --install
	@command -v keepalived >/dev/null || [ $$(id -u) != 0 ] || ! command -v apt-get >/dev/null || scripts/install.sh keepalived
	target/release/lab bench-failover $(ARGS)

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --locked --workspace --no-deps --document-private-items --quiet
	@[ -x $(TOOLS)/bin/cargo-deny ] && $(TOOLS)/bin/cargo-deny --version | grep -qF $(CARGO_DENY_VERSION) || \
	  cargo install --quiet --locked --no-default-features --version $(CARGO_DENY_VERSION) --root $(TOOLS) cargo-deny
	$(TOOLS)/bin/cargo-deny --locked check bans licenses sources

crds: setup
	L2LB_WRITE_CRDS=1 cargo test --locked --quiet --test crds

clean:
	cargo clean
