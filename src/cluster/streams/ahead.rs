//! Frames of a followed stream that are read while what came before them is being written, and are then written as one:
//! the more a follower lags, the more it commits at once.
//!
//! Invariant: streams that lag hold no more memory together than [`BYTES_AHEAD_MAX`], but for one frame each.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::cluster::frames::FrameError;
use crate::core::message::Entries;

/// Frames of one stream.
const FRAMES_AHEAD_MAX: usize = 8;
/// Payloads of all streams of a node together.
const BYTES_AHEAD_MAX: usize = 16 * 1024 * 1024;

/// What all streams of a node may hold.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BYTES_AHEAD_MAX)))
    }
}

struct Frame {
    entries: Result<Entries, FrameError>,
    budgeted: Option<OwnedSemaphorePermit>,
}

/// The end that reads.
pub(super) struct Ahead {
    frames: mpsc::Sender<Frame>,
    budget: Budget,
}

/// The end that writes.
pub(super) struct Pieces {
    frames: mpsc::Receiver<Frame>,
    /// What came and does not belong with what came before.
    next: Option<Frame>,
    /// Of the piece that is being written.
    budgeted: Vec<OwnedSemaphorePermit>,
}

pub(super) fn channel(budget: &Budget) -> (Ahead, Pieces) {
    let (sender, frames) = mpsc::channel(FRAMES_AHEAD_MAX);
    (Ahead { frames: sender, budget: budget.clone() }, Pieces { frames, next: None, budgeted: Vec::new() })
}

impl Ahead {
    /// Waits while too many frames wait already. False: nobody wants them any more.
    pub async fn push(&self, entries: Result<Entries, FrameError>, payload_bytes: usize) -> bool {
        let bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        let budgeted = self.budget.0.clone().try_acquire_many_owned(bytes).ok();
        if budgeted.is_none() && self.frames.reserve_many(FRAMES_AHEAD_MAX).await.is_err() {
            return false;
        }
        self.frames.send(Frame { entries, budgeted }).await.is_ok()
    }
}

impl Pieces {
    /// All frames that wait, as one; waits for the first. The piece before is written by now.
    pub async fn recv(&mut self) -> Result<Entries, FrameError> {
        self.budgeted.clear();
        let first = match self.next.take() {
            Some(next) => Some(next),
            None => self.frames.recv().await,
        };
        let Frame { entries, budgeted } = first.ok_or(FrameError::Ended)?;
        let mut entries = entries?;
        self.budgeted.extend(budgeted);
        while self.next.is_none()
            && let Ok(Frame { entries: next, budgeted }) = self.frames.try_recv()
        {
            match next.map(|next| entries.join(next)) {
                Ok(Ok(())) => self.budgeted.extend(budgeted),
                Ok(Err(next)) => self.next = Some(Frame { entries: Ok(next), budgeted }),
                Err(error) => self.next = Some(Frame { entries: Err(error), budgeted }),
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{Hlc, Stamp};
    use crate::core::eid::Eid;
    use crate::core::path::Path;
    use crate::core::record::{Record, RecordKey};
    use crate::core::register::{Register, value_hash};

    fn piece(paths: &[&str], complete_to: u64) -> Entries {
        let stamp = Stamp { hlc: Hlc::ZERO, eid: Eid::new([2, 0, 0, 0, 0, 1]), hash: value_hash(None) };
        let record = |path: &&str| Record {
            key: RecordKey::plain(Path::new(path).expect("a path")),
            register: Register::new(None, stamp),
            crossed: false,
        };
        Entries { records: paths.iter().map(record).collect(), complete_to, head: complete_to + 10 }
    }

    #[tokio::test]
    async fn what_waits_is_one_piece_and_what_goes_back_or_fails_comes_in_its_turn() {
        let (ahead, mut pieces) = channel(&Budget::default());
        for entries in [piece(&["/foo/a"], 3), piece(&[], 4), piece(&["/foo/b", "/foo/c"], 7), piece(&["/foo/d"], 5)] {
            assert!(ahead.push(Ok(entries), 100).await);
        }
        assert!(ahead.push(Err(FrameError::TimedOut(1)), 0).await);
        assert_eq!(pieces.recv().await.expect("came"), piece(&["/foo/a", "/foo/b", "/foo/c"], 7));
        assert_eq!(pieces.recv().await.expect("came"), piece(&["/foo/d"], 5), "for the session to judge");
        assert!(matches!(pieces.recv().await, Err(FrameError::TimedOut(1))));
        drop(ahead);
        assert!(matches!(pieces.recv().await, Err(FrameError::Ended)));
    }

    #[tokio::test]
    async fn without_budget_a_stream_has_one_frame_that_waits_and_goes_on() {
        let budget = Budget::default();
        let (rich, mut theirs) = channel(&budget);
        assert!(rich.push(Ok(piece(&[], 1)), BYTES_AHEAD_MAX).await);
        let (ahead, mut pieces) = channel(&budget);
        assert!(ahead.push(Ok(piece(&[], 1)), 1).await, "the first waits for nobody");
        let mut second = Box::pin(ahead.push(Ok(piece(&[], 2)), 1));
        tokio::select! {
            biased;
            _ = &mut second => panic!("it was to wait"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(pieces.recv().await.expect("came").complete_to, 1);
        assert!(second.await, "the first has been taken");
        assert_eq!(pieces.recv().await.expect("came").complete_to, 2);
        theirs.recv().await.expect("came");
        assert_eq!(budget.0.available_permits(), 0, "what is being written counts");
        drop(theirs);
        assert_eq!(budget.0.available_permits(), BYTES_AHEAD_MAX, "all of it was given back");
    }
}
