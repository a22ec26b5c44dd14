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

# simulations with new seeds, all night unless told otherwise
swarm minutes="480" first=`date +%s`:
    cargo run --release -p simulations -- --seed {{ first }} --swarm 1000000000 --minutes {{ minutes }}

# the Debian package (needs cargo-deb)
deb:
    cargo deb
