//! One process to a data directory: a lock file beside the store.
//!
//! The operating system lets go of the lock when its holder ends, however it ends. The number of the
//! holder's process in the file is only for the message to the next one who tries.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::FILE_NAME;
use super::disk::from_io;
use crate::core::storage::StoreError;

const LOCK_NAME: &str = "kinfolk.lock";
/// The store holds what the telephone system knows of people: nobody else's business.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Enough of a command line to recognise it.
const COMMAND_MAX_CHARS: usize = 120;

/// Claims the directory, and opens the store's file in it. The claim holds until the first file is dropped.
pub(super) fn claim(dir: &Path) -> Result<(File, File), StoreError> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(|error| in_path(dir, &error))?;
    let lock = open(&dir.join(LOCK_NAME))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(holder(&lock))),
        Err(TryLockError::Error(error)) => return Err(in_path(dir, &error)),
    }
    // On a full disk the name may be missing; the lock is what counts.
    let _ = write_pid(&lock);
    Ok((lock, open(&dir.join(FILE_NAME))?))
}

fn open(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
    options.open(path).map_err(|error| in_path(path, &error))
}

fn in_path(path: &Path, error: &io::Error) -> StoreError {
    match from_io(error) {
        StoreError::Io(text) => StoreError::Io(format!("{}: {text}", path.display())),
        other => other,
    }
}

fn write_pid(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id())
}

/// The process that holds the lock, as far as it can be told.
fn holder(mut lock: &File) -> String {
    let mut text = String::new();
    let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
    match pid {
        Some(pid) => match command(pid) {
            Some(command) => format!("process {pid} ({command})"),
            None => format!("process {pid}"),
        },
        None => "another process".to_owned(),
    }
}

fn command(pid: u32) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let text: String = text.trim_end().chars().take(COMMAND_MAX_CHARS).collect();
    (!text.is_empty()).then_some(text)
}
