#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target takes one")]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::message(bytes));
