# What a person runs and what CI runs are the same commands. `just` lists them.

set shell := ["bash", "-euo", "pipefail", "-c"]

# Crates, in the order of their arrows.
crates := "opensandbox-api opensandbox-certs opensandbox-program opensandbox-webhook opensandbox-operator task-executor opensandbox-tests"

# Cases of a soak; the same tests run with fewer in `just test`.
cases := "100000"

# Where the random cases of a soak begin: each time elsewhere, and in the line that is printed before it runs.
# `just seed=N soak-...` repeats it. In `just test` it is fixed, see `.cargo/config.toml`.
seed := `od -An -N4 -tu4 /dev/urandom | tr -d ' '`

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

# Only those on a real node: the node itself, the executor in pods, pools and sandboxes of pods, releases of the chart.
test-node:
    OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test node --test executor --test sandboxes --test walk --test release

# That the executor compiles for aarch64; needs the Rust target and a C cross compiler for ring.
check-aarch64:
    rustup target add aarch64-unknown-linux-gnu
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc cargo check --locked --package task-executor --target aarch64-unknown-linux-gnu

# Write what is generated: CRDs and API reference from the types, and the alerts as an object from their one file.
gen:
    cargo crdgen
    { sed '/^spec:/q' config/monitoring/rules.yaml; sed -n '/^groups:/,$p' config/helm/opensandbox/files/alerts.yaml | sed 's/^./  &/'; } > target/rules.yaml
    mv target/rules.yaml config/monitoring/rules.yaml

# Fail when that is not what is checked in.
gen-check: gen
    git diff --exit-code -- config docs/api.md

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
    for directory in config/crd config/rbac config/images config/webhook config/operator config/default config/with-cert-manager config/monitoring examples/kustomize; do \
        kubectl kustomize "$directory" > /dev/null; echo "$directory"; \
    done

# The three images as OCI archives in dist/, without a builder or a registry, each with a list of what is in
# it (CycloneDX); images/*/Dockerfile makes the same ones with a builder.
images *arguments:
    cargo run --locked --package opensandbox-tests --bin images -- {{ arguments }}

# The main job on a real local Kubernetes.
demo *arguments:
    cargo demo {{ arguments }}

# Everything that has to hold before a change lands.
ci: fmt-check clippy check-each test gen-check deny doc

# Injection of random templates, with two independent JSON Patch implementations.
soak-injection:
    PROPTEST_RNG_SEED={{ seed }} OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-api --test sidecar -- --nocapture
    PROPTEST_RNG_SEED={{ seed }} OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-webhook --test projection -- --nocapture

# The rules in Rust against the rules in the CRDs, on random specs.
soak-rules:
    PROPTEST_RNG_SEED={{ seed }} OPENSANDBOX_CASES={{ cases }} cargo test --release --locked --package opensandbox-tests --test rules -- --nocapture

# Rotation of certificates under load, with many interleavings of replicas.
soak-certificates seconds="300":
    PROPTEST_RNG_SEED={{ seed }} PROPTEST_CASES=5000 cargo test --release --locked --package opensandbox-certs -- --nocapture
    OPENSANDBOX_SOAK_SECONDS={{ seconds }} OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test certificates -- --nocapture

# Random Pools applied twice to the real API server, and everything else of the admission tests.
soak-admission:
    PROPTEST_RNG_SEED={{ seed }} OPENSANDBOX_CASES=5000 OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test admission -- --nocapture

# The executor on a real node: many more tasks, storms, orphans and bytes than in `just test`.
soak-executor:
    OPENSANDBOX_CASES=10000 OPENSANDBOX_TASKS={{ cases }} OPENSANDBOX_STORM_ROUNDS=25 OPENSANDBOX_FLOOD_MIB=1024 \
        PROPTEST_RNG_SEED={{ seed }} OPENSANDBOX_BODIES=5000 OPENSANDBOX_REQUIRE_CLUSTER=1 \
        cargo test --locked --package opensandbox-tests --test executor -- --nocapture

# Users at work and an operator that is killed every few seconds, for ten minutes; and thousands of random schedules.
soak-operator:
    OPENSANDBOX_SEED={{ seed }} OPENSANDBOX_SOAK_SECONDS=600 OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test invariants -- --nocapture
    OPENSANDBOX_SIM_FIRST={{ seed }} OPENSANDBOX_SIM_RUNS=3000 cargo test --locked --release --package opensandbox-operator --test simulation

# The chart with cert-manager's real controllers, which are built first: issued, renewed under load, upgraded.
soak-cert-manager:
    OPENSANDBOX_CERT_MANAGER=1 OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test chart -- --nocapture

# A cluster goes from upstream's controller to our operator and back, and each works with the other's executor; takes
# the paths of upstream's programs, see tests/upstream/README.md.
takeover controller executor:
    OPENSANDBOX_UPSTREAM_CONTROLLER="{{ absolute_path(controller) }}" OPENSANDBOX_UPSTREAM_EXECUTOR="{{ absolute_path(executor) }}" \
        OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --locked --package opensandbox-tests --test takeover -- --nocapture

# Whether webhook and operator ask for every right that config/rbac gives them, in a whole run of the tests.
rights:
    rm -rf target/audit && mkdir -p target/audit
    OPENSANDBOX_AUDIT_DIRECTORY="$PWD/target/audit" OPENSANDBOX_REQUIRE_CLUSTER=1 cargo test --workspace --locked
    cargo run --locked --package opensandbox-tests --bin rights -- target/audit

# The operator on a fresh API server with fake nodes; with a path, another controller beside it.
bench-operator *path:
    cargo bench --locked --package opensandbox-tests --bench operator -- {{ if path == "" { "" } else { "--against " + path } }}

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
