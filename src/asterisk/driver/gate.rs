//! Who may speak at all, and the account of who was refused.
//!
//! Every refusal is counted. Lines are written as far as [`LINES_PER_S_MAX`] goes, and what was left out is
//! told by its number: a flood must not fill the disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::asterisk::event::{Refused, RefusedReason, Remote};
use crate::asterisk::message::{Headers, Message, Request};
use crate::asterisk::settings::AddressBlock;
use crate::status::utc;

/// Lines about refusals in one second.
pub const LINES_PER_S_MAX: u32 = 50;

/// Counts of refusals that concern no attachment.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<RefusedReason, u64>>);

impl Refusals {
    pub fn counts(&self) -> BTreeMap<RefusedReason, u64> {
        locked(&self.0).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Gate {
    listed: Vec<AddressBlock>,
    refusals: Arc<Refusals>,
    log: Mutex<Log>,
    unix_ms: fn() -> u64,
}

struct Log {
    file: Option<PathBuf>,
    second: u64,
    lines: u32,
    left_out: u64,
}

impl Gate {
    pub fn new(listed: Vec<AddressBlock>, file: Option<PathBuf>, unix_ms: fn() -> u64) -> Self {
        let log = Mutex::new(Log { file, second: 0, lines: 0, left_out: 0 });
        Self { listed, refusals: Arc::default(), log, unix_ms }
    }

    pub fn refusals(&self) -> Arc<Refusals> {
        self.refusals.clone()
    }

    pub fn lists(&self, address: IpAddr) -> bool {
        self.listed.iter().any(|block| block.contains(address))
    }

    /// A stranger has sent this, or has connected and sent nothing yet: no answer, no state.
    pub fn stranger(&self, from: Remote, bytes: &[u8]) {
        let request = match Message::parse(bytes) {
            Ok(Message::Request(request)) => request,
            _ => Request { method: "?".into(), uri: String::new(), headers: Headers::default(), body: Vec::new() },
        };
        self.refused(&Refused::new(None, &request, from, RefusedReason::Unlisted, ""));
    }

    /// Counts and logs. What concerns an attachment is counted there.
    pub fn refused(&self, refused: &Refused) {
        if refused.attachment.is_none() {
            *locked(&self.refusals.0).entry(refused.reason).or_default() += 1;
        }
        let mut log = locked(&self.log);
        let unix_ms = (self.unix_ms)();
        if log.second != unix_ms / 1_000 {
            let left_out = std::mem::take(&mut log.left_out);
            (log.second, log.lines) = (unix_ms / 1_000, 0);
            if left_out > 0 {
                tracing::warn!(left_out, "more was refused than is logged");
            }
        }
        log.lines += 1;
        if log.lines > LINES_PER_S_MAX {
            log.left_out += 1;
            return;
        }
        tracing::warn!(reason = refused.reason.as_str(), "{}", refused.line);
        if refused.reason.is_security()
            && let Some(file) = &log.file
        {
            let line = security_line(unix_ms, &refused.line);
            let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
            // Opened for each line, so that it may be moved away at any time.
            if let Err(error) = opened.and_then(|mut file| file.write_all(line.as_bytes())) {
                tracing::error!(file = %file.display(), %error, "the security log cannot be written");
            }
        }
    }
}

/// A line as Asterisk's own logger writes it, in universal time.
fn security_line(unix_ms: u64, line: &str) -> String {
    let time = utc(unix_ms / 1_000).replace(" UTC", "+0000");
    format!("[{time}] NOTICE[{}]: kinfolk: {line}\n", std::process::id())
}
