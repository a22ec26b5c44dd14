# The commands of the house; `just` alone lists them.

_:
    @just --list --unsorted

# all tests, as the README says
test *args:
    cargo test --workspace {{ args }}

# everything that must hold before a change comes in
ci:
    .ci/run

# format
fmt:
    cargo fmt --all

# clippy with warnings denied, and the core without the daemon
lint:
    cargo clippy --workspace --all-targets -- -D warnings
    cargo check --lib --no-default-features

# licences, sources and banned crates; advisories need their database: `cargo deny check`
deny:
    cargo deny check bans licenses sources

# the documentation of the code
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# three nodes, a race, a partition, a kill -9, and the result
demo:
    cargo run --release -- demo

# what it costs, beside a peer or a limit
bench *args:
    cargo bench {{ args }}

# outages of 70 s in real time, of an attached Asterisk and of its node
asterisk-outage seconds="70":
    KINFOLK_OUTAGE_S={{ seconds }} cargo test --test asterisk outage -- --nocapture

# fuzz the readers of SIP (message, body, digest), each for so long; needs a C++ compiler, no nightly
fuzz seconds="600" targets="message body digest":
    #!/usr/bin/env bash
    set -euo pipefail
    cd fuzz
    # What libFuzzer needs of the compiler: stable flags, for this directory alone. A target must be named, or build
    # scripts would be built with them.
    host=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1" cargo build --release --target "$host"
    mkdir -p artifacts
    for target in {{ targets }}; do
        mkdir -p "target/found/$target"
        nice "target/$host/release/$target" -max_total_time={{ seconds }} -max_len=8192 \
            -artifact_prefix="artifacts/$target-" "target/found/$target" "corpus/$target"
        # What reaches code that the corpus does not is kept: few and small ones, since tests run them all.
        "target/$host/release/$target" -set_cover_merge=1 -use_counters=0 -max_len=2048 "corpus/$target" "target/found/$target"
    done

# simulations with new seeds, all night unless told otherwise
swarm minutes="480" first=`date +%s`:
    cargo run --release -p simulations -- --seed {{ first }} --swarm 1000000000 --minutes {{ minutes }}

# the Debian package (needs cargo-deb)
deb:
    cargo deb
