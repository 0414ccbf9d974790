# What a person runs and what CI runs are the same commands. `just` lists them.

set shell := ["bash", "-euo", "pipefail", "-c"]

# Crates, in the order of their arrows.
crates := "opensandbox-api opensandbox-certs opensandbox-webhook opensandbox-operator task-executor opensandbox-tests"

# Cases of a soak; the same tests run with fewer in `just test`.
cases := "100000"

_list:
    @just --list --unsorted

# Fetch what Cargo.lock names; everything after it works offline.
fetch:
    cargo fetch --locked

fmt:
    cargo fmt --all

fmt-check:
    cargo fmt --all -- --check

clippy:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Check each crate alone, so that none leans on features which another one turns on.
check-each:
    for crate in {{ crates }}; do cargo check --locked --package "$crate"; done
    cargo check --locked --package opensandbox-api --no-default-features --lib

# All tests, on a real API server where they need one.
test:
    cargo test --workspace --locked

# Only those tests that need neither an API server nor a process.
test-unit:
    cargo test --workspace --locked --lib --bins

# Only those that run against a real API server.
test-api:
    OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests

# Only those on a real node: the node itself, and the executor in pods.
test-node:
    OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test node --test executor

# That the executor compiles for aarch64; needs the Rust target and a C cross compiler for ring.
check-aarch64:
    rustup target add aarch64-unknown-linux-gnu
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc cargo check --locked --package task-executor --target aarch64-unknown-linux-gnu

# Write the CRDs from the types.
gen:
    cargo crdgen

# Fail when config/crd is not what the types say.
gen-check: gen
    git diff --exit-code -- config/crd

# Bans, licences, sources; needs cargo-deny.
deny:
    cargo deny check bans licenses sources

# Known vulnerabilities; may fail without a change of ours.
advisories:
    cargo deny check advisories

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Render every kustomization, ours and the example.
render:
    for directory in config/crd config/rbac config/images config/webhook config/default examples/kustomize; do \
        kubectl kustomize "$directory" > /dev/null; echo "$directory"; \
    done

# The main job on a real local Kubernetes.
demo *arguments:
    cargo demo {{ arguments }}

# Everything that has to hold before a change lands.
ci: fmt-check clippy check-each test gen-check deny doc

# Injection of random templates, with two independent JSON Patch implementations.
soak-injection:
    OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-api --test sidecar -- --nocapture
    OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-webhook --test projection -- --nocapture

# The rules in Rust against the rules in the CRDs, on random specs.
soak-rules:
    OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-tests --test rules -- --nocapture

# Rotation of certificates under load, with many interleavings of replicas.
soak-certificates seconds="300":
    PROPTEST_CASES=5000 cargo test --release --locked --package opensandbox-certs -- --nocapture
    OPENSANDBOX_SOAK_SECONDS={{ seconds }} OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test certificates -- --nocapture

# Random Pools applied twice to the real API server, and everything else of the admission tests.
soak-admission:
    OPENSANDBOX_CASES=5000 OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test admission -- --nocapture

# The executor on a real node: many more tasks, storms, orphans and bytes than in `just test`.
soak-executor:
    OPENSANDBOX_CASES=10000 OPENSANDBOX_TASKS={{ cases }} OPENSANDBOX_STORM_ROUNDS=25 OPENSANDBOX_FLOOD_MIB=1024 \
        OPENSANDBOX_BODIES=5000 OPENSANDBOX_REQUIRE_CLUSTER=1 \
        cargo test --locked --package opensandbox-tests --test executor -- --nocapture

# The webhook's handler in process.
bench-handler:
    cargo bench --locked --package opensandbox-webhook --bench handler

# The webhook over TLS, with a rotation in the middle.
bench-tls:
    cargo bench --locked --package opensandbox-tests --bench admission_tls

# The executor in its modes, on a real node; beside upstream's, if given the path of that.
bench-executor upstream="":
    OPENSANDBOX_REQUIRE_CLUSTER=1 cargo bench --locked --package opensandbox-tests --bench executor -- \
        {{ if upstream == "" { "" } else { "--upstream-executor=" + upstream } }}
