//! What is logged, checked when it is read.

use std::fmt;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// Levels for all or for parts of the program, as `tracing-subscriber` writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// `KINFOLK_LOG`, if it is set and makes sense, else what is configured.
    pub fn in_force(&self) -> EnvFilter {
        EnvFilter::try_from_env("KINFOLK_LOG").unwrap_or_else(|_| EnvFilter::new(&self.0))
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info,chitchat=warn".to_string())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match EnvFilter::try_new(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(format!("log = \"{text}\" is no filter ({error}): write a level, as in \"info\"")),
        }
    }
}

impl From<LogFilter> for String {
    fn from(filter: LogFilter) -> String {
        filter.0
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
