//! Arguments in, exit code out; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    kinfolk::cli::run(std::env::args_os())
}
