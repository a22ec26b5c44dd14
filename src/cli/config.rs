//! `kinfolk config`: an example to start from, and a check before the start.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, Failure, Outcome};
use crate::config::{Config, EXAMPLE};

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print a configuration with every key, its default and its unit
    Example,
    /// Say whether a configuration is good, and if not, all that is wrong with it
    Check {
        /// The configuration of a node
        file: PathBuf,
    },
}

pub fn run(command: &ConfigCommand, out: &mut dyn Write) -> Outcome {
    match command {
        ConfigCommand::Example => out.write_all(EXAMPLE.as_bytes())?,
        ConfigCommand::Check { file } => {
            Config::load(file).map_err(|error| Failure::new(Exit::No, error))?;
            writeln!(out, "{}: good", file.display())?;
        }
    }
    Ok(Exit::Done)
}
