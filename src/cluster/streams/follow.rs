//! The follower's side: one task for each source and family.

use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Shared;
use super::ahead::{self, Ahead, Pieces};
use super::nearby::{Brought, Followed};
use super::reconcile::{Compared, ReconcileError, reconcile};
use super::serve::refuse;
use super::wan;
use crate::cluster::frames::{FrameError, read_frame, read_message, write_frame};
use crate::cluster::mesh::OpenError;
use crate::core::codec::{FRAME_MAX_BYTES, HEADER_BYTES, Header};
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::message::{Entries, FollowReply};
use crate::core::path::Family;
use crate::core::reconcile::Peer;
use crate::core::record::Classes;
use crate::core::replica::{Apply, Input, Outcome, Refusal};
use crate::core::session::{Follower, Next, Violation};
use crate::core::storage::{Reads, StoreError};
use crate::store::writer::SubmitError;

/// How far one followed stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The scope of the present stream.
    pub classes: Classes,
    pub cursor_seq: u64,
    /// The source's head when last heard of.
    pub head: u64,
    pub connected: bool,
    pub caught_up: bool,
    /// The source does not serve the family to this node, whatever it gossips.
    pub turned_away: bool,
    /// When this follower last had everything that it knew of; none: not since it began.
    pub last_current: Option<Instant>,
    pub since: Instant,
}

impl Progress {
    pub fn lag_entries(&self) -> u64 {
        self.head.saturating_sub(self.cursor_seq)
    }

    /// How long it has been behind: since it was last current, or since it began.
    pub fn lag(&self, now: Instant) -> Duration {
        if self.caught_up && self.connected {
            return Duration::ZERO;
        }
        now.saturating_duration_since(self.last_current.unwrap_or(self.since))
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the source broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("what the source sent was refused: {0}")]
    Refused(Refusal),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the source does not share the family as we do")]
    NotShared,
    #[error("the two have different purge floors: one of them has not adopted the higher one yet")]
    OtherFloor,
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    #[error("the source cannot compare now")]
    NotCompared,
    #[error("the source is not trusted for the family")]
    NotAllowed,
}

pub(super) struct Follow<R> {
    room: Shared<R>,
    source: Eid,
    crossing: bool,
    family: Family,
    mode: Mode,
    classes: Classes,
}

impl<R: Reads> Follow<R> {
    pub fn new(room: Shared<R>, source: Eid, crossing: bool, family: Family, mode: Mode, classes: Classes) -> Self {
        Self { room, source, crossing, family, mode, classes }
    }

    /// Follows for ever; whoever planned it cancels it.
    pub async fn run(self) {
        let mut backoff_ms = self.room.config.backoff_min_ms;
        let mut taken_up = false;
        loop {
            let (error, was_current) = self.follow(&mut taken_up).await;
            self.publish(|progress| {
                progress.connected = false;
                progress.turned_away |= matches!(error, FollowError::NotShared | FollowError::NotAllowed);
            });
            self.report(&error);
            let config = &self.room.config;
            backoff_ms = if was_current { config.backoff_min_ms } else { (backoff_ms * 2).min(config.backoff_max_ms) };
            #[expect(clippy::disallowed_methods, reason = "jitter, so that followers do not come back all at once")]
            let pause_ms = rand::random_range(backoff_ms / 2..=backoff_ms);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    fn report(&self, error: &FollowError) {
        let (source, family) = (self.source, &self.family);
        match error {
            FollowError::Frame(error) => refuse(&self.room, source, error),
            FollowError::Refused(_) | FollowError::Violation(_) => {
                if self.room.mesh.counters().refuse("follow") {
                    tracing::error!(%source, %family, %error, "following failed; nothing was skipped, it is tried again");
                }
            }
            FollowError::Store(_) | FollowError::Submit(SubmitError::Store(_)) => {
                tracing::error!(%source, %family, %error, "following failed: the store");
            }
            _ => tracing::debug!(%source, %family, %error, "following ended"),
        }
    }

    /// Follows over one stream after another until something ends it. Says why, and whether it was current
    /// in between. `taken_up`: whether it has been compared since the plan named it.
    async fn follow(&self, taken_up: &mut bool) -> (FollowError, bool) {
        self.room.introduced(&self.family, self.source).await;
        let follower = self.room.database.view().and_then(|view| {
            Follower::new(&view.read, self.source, self.crossing, self.family.clone(), self.mode, self.classes)
        });
        let mut follower = match follower {
            Ok(follower) => follower,
            Err(error) => return (error.into(), false),
        };
        if !*taken_up {
            follower.take_up();
        }
        let mut was_current = false;
        let mut right = None;
        loop {
            if follower.must_compare() {
                right = self.right_to_compare(right).await;
                if let Err(error) = self.compare(&mut follower).await {
                    return (error, was_current);
                }
            }
            *taken_up = true;
            if follower.asked() == self.classes {
                right = None;
            } else if right.is_none() {
                right = self.right_to_fetch().await;
            }
            if let Err(error) = self.stream(&mut follower, &mut was_current).await {
                return (error, was_current);
            }
        }
    }

    /// The first that compares brings what all have, and then the others may compare at once: they find little.
    async fn right_to_compare(&self, held: Option<OwnedSemaphorePermit>) -> Option<OwnedSemaphorePermit> {
        if held.is_some() {
            return held;
        }
        let waits = self.room.is_fetched(&self.family);
        self.right_to_fetch().await.filter(|_| !waits)
    }

    /// Of several sources a family is fetched whole from one, and then compared with the others.
    async fn right_to_fetch(&self) -> Option<OwnedSemaphorePermit> {
        let patience = Duration::from_millis(self.room.config.fetch_patience_ms);
        tokio::time::timeout(patience, self.room.fetching(&self.family).acquire_owned()).await.ok()?.ok()
    }

    /// Without a cursor: what is here already needs not come again.
    async fn compare(&self, follower: &mut Follower) -> Result<(), FollowError> {
        let peer = Peer { eid: self.source, crossing: self.crossing };
        let Compared { ended, .. } = reconcile(&self.room, peer, &self.family).await?;
        match follower.on_compared(&ended) {
            Some(Next::ApplyThenReopen(apply) | Next::Apply(apply)) => self.apply(apply).await,
            Some(Next::GiveUp { .. }) => Err(FollowError::NotShared),
            Some(Next::OtherFloor { .. }) => Err(FollowError::OtherFloor),
            Some(Next::Read | Next::Reopen) => Ok(()),
            None => Err(FollowError::NotCompared),
        }
    }

    /// One stream, to the point where the session wants another one.
    async fn stream(&self, follower: &mut Follower, was_current: &mut bool) -> Result<(), FollowError> {
        if !self.room.mesh.allows(self.source, &self.family) {
            return Err(FollowError::NotAllowed);
        }
        let (mut send, mut recv) = self.room.mesh.open_bi(self.source).await?;
        let timeout = Duration::from_millis(self.room.config.request_timeout_ms);
        write_frame(&mut send, &follower.request()).await?;
        let reply: FollowReply = read_message(&mut recv, FRAME_MAX_BYTES, timeout).await?;
        let mut followed = Followed::new(&self.room, &self.family, self.source);
        if self.crossing {
            followed.answered(&reply, follower);
        }
        let next = follower.on_reply(reply)?;
        // While one piece is being written the next one is read.
        let (ahead, pieces) = ahead::channel(&self.room.read_ahead);
        let ended = tokio::select! {
            ended = self.take(pieces, next, follower, &mut followed, was_current) => ended,
            never = self.read_ahead(&mut recv, ahead) => match never {},
        };
        if ended.is_ok() {
            close(send, recv);
        }
        ended
    }

    /// Does what the session asks for, piece by piece: the next one only when the last one is durable.
    async fn take(
        &self,
        mut pieces: Pieces,
        mut next: Next,
        follower: &mut Follower,
        followed: &mut Followed<'_, R>,
        was_current: &mut bool,
    ) -> Result<(), FollowError> {
        let mut brought: Option<Brought> = None;
        loop {
            match next {
                Next::Read => self.publish_follower(follower, was_current),
                Next::Apply(apply) => {
                    self.apply(apply).await?;
                    self.publish_follower(follower, was_current);
                }
                Next::ApplyThenReopen(apply) => return self.apply(apply).await,
                Next::Reopen => return Ok(()),
                Next::GiveUp { .. } => return Err(FollowError::NotShared),
                Next::OtherFloor { .. } => return Err(FollowError::OtherFloor),
            }
            if let Some(brought) = brought.take() {
                followed.brought(brought);
            }
            let entries = pieces.recv().await?;
            let (from, news) = (follower.cursor_seq(), follower.caught_up());
            next = follower.on_entries(entries)?;
            brought = followed.brings(from, news, follower, &next);
        }
    }

    /// Reads frames until there is none, or what came is none: then it waits to be dropped.
    async fn read_ahead(&self, recv: &mut RecvStream, ahead: Ahead) -> std::convert::Infallible {
        loop {
            let (entries, bytes) = match read_frame(recv).await {
                Ok(Some((header, payload))) => (self.read(header, &payload), payload.len()),
                Ok(None) => (Err(FrameError::Ended), 0),
                Err(error) => (Err(error), 0),
            };
            let last = entries.is_err();
            if !ahead.push(entries, bytes).await || last {
                return std::future::pending().await;
            }
        }
    }

    fn read(&self, header: Header, payload: &[u8]) -> Result<Entries, FrameError> {
        let entries = wan::read(header, payload)?;
        if self.crossing {
            let counters = &self.room.mesh.counters().wan;
            counters.received_records.add(entries.records.len() as u64);
            counters.received_bytes.add((HEADER_BYTES + payload.len()) as u64);
        }
        Ok(entries)
    }

    /// Returns when the records and the cursor are durable.
    async fn apply(&self, apply: Apply) -> Result<(), FollowError> {
        match self.room.database.submit(Input::Apply(apply)).await? {
            Outcome::Applied(_) => Ok(()),
            // Unshared here a moment ago: the planner ends this task.
            Outcome::Refused(Refusal::NotShared(_)) => Err(FollowError::NotShared),
            Outcome::Refused(Refusal::OtherFloor(_)) => Err(FollowError::OtherFloor),
            Outcome::Refused(refusal) => Err(FollowError::Refused(refusal)),
            other => unreachable!("records are applied or refused, not {other:?}"),
        }
    }

    fn publish_follower(&self, follower: &Follower, was_current: &mut bool) {
        let caught_up = follower.caught_up();
        *was_current |= caught_up;
        self.publish(|progress| {
            progress.classes = follower.asked();
            progress.cursor_seq = follower.cursor_seq();
            progress.head = follower.head();
            progress.connected = true;
            progress.turned_away = false;
            progress.caught_up = caught_up;
            if caught_up {
                progress.last_current = Some(Instant::now());
            }
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Progress)) {
        let fresh = || Progress {
            classes: self.classes,
            cursor_seq: 0,
            head: 0,
            connected: false,
            caught_up: false,
            turned_away: false,
            last_current: None,
            since: Instant::now(),
        };
        self.room.streams.follows.send_modify(|follows| {
            change(follows.entry((self.source, self.family.clone())).or_insert_with(fresh));
        });
    }
}

/// Ends a stream from our side; the source sees that it is not wanted any more.
fn close(mut send: SendStream, mut recv: RecvStream) {
    let _ = send.finish();
    let _ = recv.stop(0u32.into());
}
