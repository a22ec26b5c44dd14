//! Every input that the fuzzers keep, the ones that once found a fault among them, on the stable compiler.

#[path = "../fuzz/checks.rs"]
mod checks;

use std::path::Path;

fn run_corpus(name: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = std::fs::read_dir(&dir).expect("a corpus").map(|file| file.expect("a file").path());
    let mut seen = 0;
    for file in files {
        // A failed assertion is preceded by the name of its input.
        eprintln!("{}", file.display());
        check(&std::fs::read(&file).expect("readable"));
        seen += 1;
    }
    assert!(seen > 0, "the corpus is there");
}

#[test]
fn every_kept_message_is_read_as_it_is_printed() {
    run_corpus("message", checks::message);
}

#[test]
fn every_kept_body_is_read_as_it_is_printed() {
    run_corpus("body", checks::body);
}

#[test]
fn every_kept_digest_header_is_read_as_it_is_printed() {
    run_corpus("digest", checks::digest);
}
