//! The file under redb, and what happens when it can no longer be written.
//!
//! redb answers the first failed write by refusing everything from then on, reads included, until the
//! database is opened anew; and opening writes. So redb never learns of a failed write. A [`Disk`] that
//! meets one *holds*: it keeps this write and all later ones in memory, in order, and answers reads from
//! the file and them. That leaves to those above:
//!
//! * A commit during which that happened is not durable: [`Disk::end_commit`] says so, and what the file
//!   has of it is taken back by restoring the last durable header. The disk is *lost*: what it holds must
//!   never reach the file, and the store opens a new one on the same file.
//! * Anything else that is held is redb's own housekeeping. [`Disk::catch_up`] writes it, in the same order
//!   and with the same syncs, so that a crash in between finds what redb knows to repair.
//!
//! Every disk begins by holding, so opening a database writes nothing: a node on a full disk starts, and
//! serves reads. Never here: what the bytes mean, but for one thing: redb's header is what it writes at
//! offset 0.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ::redb::StorageBackend;

use crate::core::storage::StoreError;

/// The file itself, shared by one disk after another; with the lock on its directory, if it has one.
#[derive(Debug)]
pub(super) struct RawFile {
    backend: Box<dyn StorageBackend>,
    _lock: Option<std::fs::File>,
}

impl RawFile {
    pub(super) fn new(backend: Box<dyn StorageBackend>, lock: Option<std::fs::File>) -> Self {
        Self { backend, _lock: lock }
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        // Nobody is left whom an error could be told.
        let _ = self.backend.close();
    }
}

#[derive(Debug)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
}

/// What is kept back from the file.
#[derive(Debug, Default)]
struct Held {
    ops: Vec<Op>,
    /// The failure that it began with; None while a database is being opened.
    failure: Option<StoreError>,
}

#[derive(Debug)]
enum State {
    Through,
    Holding(Held),
    /// The file has moved on without this disk.
    Fenced,
}

/// The header as last written, and as last synced.
#[derive(Debug, Default)]
struct Header {
    written: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Debug)]
struct Inner {
    raw: Arc<RawFile>,
    state: RwLock<State>,
    header: Mutex<Header>,
    committing: AtomicBool,
    lost: AtomicBool,
}

/// One opening of the file. Clones are the same disk: redb has one, the store another.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Inner>);

impl Disk {
    pub(super) fn new(raw: Arc<RawFile>) -> Self {
        Self(Arc::new(Inner {
            raw,
            state: RwLock::new(State::Holding(Held::default())),
            header: Mutex::default(),
            committing: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }))
    }

    pub(super) fn raw(&self) -> &Arc<RawFile> {
        &self.0.raw
    }

    /// Whether a commit of this disk was lost, so that its newest state must not be read.
    pub(super) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }

    /// Writes what is held. An error leaves the rest of it held.
    pub(super) fn catch_up(&self) -> Result<(), StoreError> {
        let mut state = self.state_mut();
        let State::Holding(held) = &mut *state else { return Ok(()) };
        let mut done = 0;
        let outcome = held.ops.iter().try_for_each(|op| {
            self.perform(op)?;
            done += 1;
            Ok(())
        });
        held.ops.drain(..done);
        match outcome.and_then(|()| self.perform(&Op::Sync)) {
            Ok(()) => {
                *state = State::Through;
                Ok(())
            }
            Err(error) => Err(held.failure.insert(from_io(&error)).clone()),
        }
    }

    /// From here to [`end_commit`](Self::end_commit) a failed write means a lost commit, until the sync that
    /// makes the new header durable has succeeded. An error means that nothing can be committed now.
    pub(super) fn begin_commit(&self) -> Result<(), StoreError> {
        match &*self.state() {
            State::Through => {}
            State::Holding(Held { failure: Some(failure), .. }) => return Err(failure.clone()),
            State::Holding(_) | State::Fenced => return Err(gone_by()),
        }
        self.0.committing.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn end_commit(&self) -> Result<(), StoreError> {
        self.0.committing.store(false, Ordering::Release);
        if !self.is_lost() {
            return Ok(());
        }
        match &*self.state() {
            State::Holding(Held { failure: Some(failure), .. }) => Err(failure.clone()),
            _ => Err(gone_by()),
        }
    }

    /// Writes nothing to the file any more. Reading goes on.
    pub(super) fn detach(&self) {
        let mut state = self.state_mut();
        if matches!(*state, State::Through) {
            *state = State::Holding(Held { ops: Vec::new(), failure: Some(gone_by()) });
        }
    }

    /// Ends reading from the file too, because it is about to be written through another disk. What is in
    /// redb's cache can still be read.
    pub(super) fn fence(&self) {
        *self.state_mut() = State::Fenced;
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn header(&self) -> MutexGuard<'_, Header> {
        self.0.header.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backend(&self) -> &dyn StorageBackend {
        &*self.0.raw.backend
    }

    fn perform(&self, op: &Op) -> io::Result<()> {
        match op {
            Op::Write(offset, data) => self.write_through(*offset, data),
            Op::SetLen(len) => self.backend().set_len(*len),
            Op::Sync => self.sync_through(),
        }
    }

    fn write_through(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 {
            self.header().written = data.to_vec();
        }
        self.backend().write(offset, data)
    }

    fn sync_through(&self) -> io::Result<()> {
        self.backend().sync_data()?;
        let mut header = self.header();
        // Where a commit lets the file grow, it syncs that too, before it writes its header.
        if header.written != header.durable {
            header.durable = header.written.clone();
            self.0.committing.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Does `op` on the file, or holds it. Fails only where nobody may listen any more.
    fn do_or_hold(&self, through: impl FnOnce() -> io::Result<()>, op: impl FnOnce() -> Op) -> io::Result<()> {
        // Looked at again below: the state may change while no guard is held.
        let failure = match &*self.state() {
            State::Through => match through() {
                Ok(()) => return Ok(()),
                Err(error) => Some(from_io(&error)),
            },
            State::Holding(_) => None,
            State::Fenced => return Err(fenced()),
        };
        let mut state = self.state_mut();
        match &mut *state {
            State::Through => {
                *state = State::Holding(Held { ops: vec![op()], failure });
                drop(state);
                self.note_lost_commit();
            }
            State::Holding(held) => held.ops.push(op()),
            State::Fenced => return Err(fenced()),
        }
        Ok(())
    }

    /// redb may have written the new header before the rest of the commit, and after a failed sync nobody
    /// knows what is on the disk. With the old header back in place the next opening finds the last
    /// commit that was acknowledged. Should even that not be written, redb's checksums decide.
    fn note_lost_commit(&self) {
        if !self.0.committing.swap(false, Ordering::AcqRel) {
            return;
        }
        self.0.lost.store(true, Ordering::Release);
        let header = self.header();
        if header.written != header.durable {
            let _ = self.backend().write(0, &header.durable);
            let _ = self.backend().sync_data();
        }
    }

    /// Reads what the file would hold if the held operations had been done.
    fn read_held(&self, held: &Held, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let in_file = self.backend().len()?.saturating_sub(offset);
        let in_file = usize::try_from(in_file).map_or(out.len(), |n| n.min(out.len()));
        let (from_file, beyond) = out.split_at_mut(in_file);
        if !from_file.is_empty() {
            self.backend().read(offset, from_file)?;
        }
        beyond.fill(0);
        for op in &held.ops {
            match op {
                Op::Write(at, data) => overlay(out, offset, data, *at),
                Op::SetLen(len) => {
                    let kept = usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX);
                    out.iter_mut().skip(kept).for_each(|byte| *byte = 0);
                }
                Op::Sync => {}
            }
        }
        Ok(())
    }
}

/// Copies the part of `data`, which stands at `data_at`, that falls into `out`, which stands at `out_at`.
fn overlay(out: &mut [u8], out_at: u64, data: &[u8], data_at: u64) {
    let start = out_at.max(data_at);
    let end = (out_at + out.len() as u64).min(data_at + data.len() as u64);
    if start < end {
        // Each is less than the length of a slice.
        let (to, from, len) = ((start - out_at) as usize, (start - data_at) as usize, (end - start) as usize);
        out[to..to + len].copy_from_slice(&data[from..from + len]);
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let state = self.state();
        let len = self.backend().len()?;
        let State::Holding(held) = &*state else { return Ok(len) };
        Ok(held.ops.iter().fold(len, |len, op| match op {
            Op::Write(at, data) => len.max(at + data.len() as u64),
            Op::SetLen(len) => *len,
            Op::Sync => len,
        }))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.state() {
            State::Through => self.backend().read(offset, out),
            State::Holding(held) => self.read_held(held, offset, out),
            State::Fenced => Err(fenced()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.do_or_hold(|| self.backend().set_len(len), || Op::SetLen(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.do_or_hold(|| self.sync_through(), || Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.do_or_hold(|| self.write_through(offset, data), || Op::Write(offset, data.to_vec()))
    }
}

fn fenced() -> io::Error {
    io::Error::other("this read began before the store was reopened: begin it anew")
}

pub(super) fn gone_by() -> StoreError {
    StoreError::Io("a commit failed before: the store must be reopened first".to_owned())
}

/// What the operating system's refusal means to the operator.
pub(super) fn from_io(error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
        _ => StoreError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::redb::backends::InMemoryBackend;

    #[derive(Debug, Default)]
    struct Failing {
        inner: InMemoryBackend,
        fails: Arc<AtomicBool>,
    }

    impl StorageBackend for Failing {
        fn len(&self) -> io::Result<u64> {
            self.inner.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.inner.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.inner.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            if self.fails.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.sync_data()?;
            self.inner.write(offset, data)
        }
    }

    fn disk() -> (Disk, Arc<AtomicBool>) {
        let backend = Failing::default();
        let fails = Arc::clone(&backend.fails);
        let disk = Disk::new(Arc::new(RawFile::new(Box::new(backend), None)));
        disk.set_len(8).expect("held");
        disk.write(0, b"old.").expect("held");
        disk.catch_up().expect("written");
        (disk, fails)
    }

    fn content(disk: &Disk) -> Vec<u8> {
        let mut bytes = vec![0; disk.len().expect("a length") as usize];
        disk.read(0, &mut bytes).expect("it reads");
        bytes
    }

    #[test]
    fn a_commit_that_fails_after_the_sync_of_a_grown_file_is_lost() {
        let (disk, fails) = disk();
        disk.begin_commit().expect("it can");
        disk.set_len(12).expect("done");
        disk.sync_data().expect("done");
        fails.store(true, Ordering::SeqCst);
        disk.write(0, b"new.").expect("held");
        disk.sync_data().expect("held");
        assert_eq!(disk.end_commit(), Err(StoreError::Full));
        assert!(disk.is_lost());
    }

    #[test]
    fn a_failure_after_the_sync_of_the_header_is_housekeeping() {
        let (disk, fails) = disk();
        disk.begin_commit().expect("it can");
        disk.write(0, b"new.").expect("done");
        disk.sync_data().expect("done");
        fails.store(true, Ordering::SeqCst);
        disk.write(4, b"tidy").expect("held");
        assert_eq!(disk.end_commit(), Ok(()));
        assert_eq!(content(&disk), b"new.tidy");
        assert_eq!(disk.catch_up(), Err(StoreError::Full));
        assert_eq!(content(&disk), b"new.tidy", "what could not be written is still held");
        fails.store(false, Ordering::SeqCst);
        assert_eq!(disk.catch_up(), Ok(()));
        assert_eq!(content(&disk), b"new.tidy");
    }

    #[test]
    fn a_failed_sync_takes_the_old_header_back_into_the_file() {
        let (disk, fails) = disk();
        disk.begin_commit().expect("it can");
        disk.write(0, b"new.").expect("done");
        fails.store(true, Ordering::SeqCst);
        let healed = Arc::clone(&fails);
        disk.do_or_hold(
            || {
                let failed = disk.sync_through();
                healed.store(false, Ordering::SeqCst);
                failed
            },
            || Op::Sync,
        )
        .expect("held");
        assert_eq!(disk.end_commit(), Err(StoreError::Full));
        assert_eq!(&content(&disk)[..4], b"old.");
    }

    #[test]
    fn what_is_held_reads_as_if_it_were_written() {
        let (disk, fails) = disk();
        fails.store(true, Ordering::SeqCst);
        disk.write(6, b"abcd").expect("held");
        disk.set_len(9).expect("held");
        disk.set_len(11).expect("held");
        assert_eq!(content(&disk), b"old.\0\0abc\0\0");
        let mut middle = [0; 3];
        disk.read(5, &mut middle).expect("it reads");
        assert_eq!(&middle, b"\0ab");
        disk.fence();
        assert!(disk.read(5, &mut middle).is_err());
        assert!(disk.write(5, &middle).is_err());
    }
}
