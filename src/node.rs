//! STUB: the daemon itself is written elsewhere; this file only holds the place of its entry point.

use std::error::Error;

use crate::config::Config;

/// Runs a node until it is told to stop.
pub fn run(_config: Config) -> Result<(), Box<dyn Error + Send + Sync>> {
    Err("this build has no node in it yet".into())
}
