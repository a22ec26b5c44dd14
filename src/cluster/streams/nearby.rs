//! Carries what [`core::nearby`](crate::core::nearby) says between relays: one short stream for each note, on which the one
//! that lacks something asks for it.
//!
//! Never here: what is kept, who lacks what (the core decides). Invariant: nothing waits for any of this, and a failure is
//! no fault: the source's own frame comes anyway.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::time::Instant;

use super::Shared;
use super::wan;
use crate::cluster::frames::{FrameError, read_frame, read_message, write_frame};
use crate::cluster::mesh::Incoming;
use crate::core::codec::{FRAME_MAX_BYTES, HEADER_BYTES};
use crate::core::eid::Eid;
use crate::core::message::{Entries, FollowReply, Heard, Missing};
use crate::core::nearby::{self, Due, Nearby, nearest};
use crate::core::path::Family;
use crate::core::record::{Classes, Record};
use crate::core::replica::{Input, Outcome};
use crate::core::session::{Follower, Next};
use crate::core::storage::{Cursor, Reads, Run};

/// The source's own frame may be this much later than the link is long: it is gathered, packed and committed.
const GRACE: Duration = Duration::from_millis(10);
/// Of a link that has not been measured.
const DELAY_ASSUMED: Duration = Duration::from_millis(50);

/// What this node keeps for others, and how far it is itself.
pub(super) struct Known {
    began: Instant,
    nearby: Mutex<Nearby>,
}

impl Default for Known {
    fn default() -> Self {
        Self { began: Instant::now(), nearby: Mutex::default() }
    }
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Nearby> {
        self.nearby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        ms(self.began.elapsed())
    }

    /// The plan does not name this source any more.
    pub fn leaves(&self, family: &Family, source: Eid) {
        self.lock().leaves(family, source);
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One stream that a relay follows at another site, as this room sees it.
pub(super) struct Followed<'a, R> {
    pub room: &'a Shared<R>,
    pub family: &'a Family,
    pub source: Eid,
    /// The source's run, once it has answered.
    run: Option<Run>,
}

/// What a frame brings, until it is durable.
pub(super) struct Brought {
    from: u64,
    cursor: Cursor,
    news: bool,
    records: Vec<Record>,
}

impl<'a, R: Reads> Followed<'a, R> {
    pub fn new(room: &'a Shared<R>, family: &'a Family, source: Eid) -> Self {
        Self { room, family, source, run: None }
    }

    /// The stream has been answered, from where the follower is.
    pub fn answered(&mut self, reply: &FollowReply, follower: &Follower) {
        let FollowReply::Resume { run, .. } = reply else { return };
        if follower.asked() == Classes::OF_SITE {
            self.run = Some(*run);
            let cursor = Cursor { run: *run, seq: follower.cursor_seq() };
            self.room.nearby.lock().follows(self.family, self.source, cursor);
        }
    }

    /// A frame has been read, which began at `from` of the source. `news`: until then the follower was caught up.
    pub fn brings(&self, from: u64, news: bool, follower: &Follower, next: &Next) -> Option<Brought> {
        let cursor = Cursor { run: self.run?, seq: follower.cursor_seq() };
        let records = match next {
            Next::Apply(apply) => apply.records.clone(),
            Next::Read => Vec::new(),
            _ => return None,
        };
        Some(Brought { from, cursor, news, records })
    }

    /// It is durable: others are told of it.
    pub fn brought(&self, brought: Brought) {
        let Brought { from, cursor, news, records } = brought;
        let brought = nearby::Brought { from, cursor, news, records: &records };
        let heard = self.room.nearby.lock().came(self.family, self.source, brought);
        let Some(heard) = heard else { return };
        for peer in self.others() {
            let (room, heard) = (self.room.clone(), heard.clone());
            let told = async move {
                if let Err(error) = tell(&room, peer, &heard).await {
                    tracing::debug!(%peer, "telling a relay nearby ended: {error}");
                }
            };
            let cancel = self.room.cancel.clone();
            self.room.tracker.spawn(async move { cancel.run_until_cancelled(told).await });
        }
    }

    /// The nearest relays of other sites that may follow the same source.
    fn others(&self) -> Vec<Eid> {
        let peers = self.room.mesh.peers();
        let peers = peers.borrow();
        let site_of = |eid: &Eid| peers.get(eid).map(|peer| peer.site.as_str());
        let of_source = site_of(&self.source);
        let follows = self.room.streams.follows.borrow();
        let others =
            follows.iter().filter(|((_, family), _)| family == self.family).filter_map(|((eid, _), progress)| {
                let apart = site_of(eid) != of_source && site_of(eid) != Some(self.room.mesh.config().site.as_str());
                let tells = apart && progress.connected && progress.classes == Classes::OF_SITE;
                tells.then(|| Some((ms(self.room.mesh.round_trip(*eid)?), *eid)))?
            });
        nearest(others.collect())
    }
}

/// Tells one relay, and sends what it lacks.
async fn tell<R: Reads>(room: &Shared<R>, peer: Eid, heard: &Heard) -> Result<(), FrameError> {
    if !room.mesh.allows(peer, &heard.family) {
        return Ok(());
    }
    let Ok((mut send, mut recv)) = room.mesh.open_bi(peer).await else { return Ok(()) };
    write_frame(&mut send, heard).await?;
    let timeout = Duration::from_millis(room.config.request_timeout_ms);
    let missing: Missing = match read_message(&mut recv, FRAME_MAX_BYTES, timeout).await {
        // It has all of it by now.
        Err(FrameError::Ended | FrameError::Read(_)) => return Ok(()),
        missing => missing?,
    };
    let records = room.nearby.lock().answer(heard, missing);
    if !records.is_empty() {
        let entries = Entries { records, complete_to: heard.to, head: heard.to };
        room.wan.send(peer, &mut send, &entries, &room.mesh.counters().wan).await?;
    }
    let _ = send.finish();
    let _ = send.stopped().await;
    Ok(())
}

/// Another has told this node: waits for the source's own frame, and asks if it does not come.
pub(super) async fn told<R: Reads>(room: &Shared<R>, stream: Incoming, heard: Heard) -> Result<(), FrameError> {
    match wait_and_fetch(room, stream, &heard).await {
        // Nobody's fault: the source's own frame comes anyway.
        Err(FrameError::TimedOut(_) | FrameError::Read(_) | FrameError::Write(_)) => Ok(()),
        ended => ended,
    }
}

async fn wait_and_fetch<R: Reads>(room: &Shared<R>, stream: Incoming, heard: &Heard) -> Result<(), FrameError> {
    let Incoming { peer, mut send, mut recv, .. } = stream;
    let delay = |eid| room.mesh.round_trip(eid).map_or(DELAY_ASSUMED, |round_trip| round_trip / 2);
    let answer_within = 2 * delay(peer) + GRACE;
    let mut wait = delay(heard.source) + GRACE;
    let missing = loop {
        if !room.mesh.allows(peer, &heard.family) || !room.nearby.lock().lacks(heard) {
            let _ = send.finish();
            return Ok(());
        }
        tokio::time::sleep(wait).await;
        let now = room.nearby.now_ms();
        let due = room.nearby.lock().due(heard, now, ms(answer_within));
        match due {
            Due::Nothing => {}
            Due::Ask(missing) => break missing,
            Due::Again(at) => wait = Duration::from_millis(at.saturating_sub(now)),
        }
    };
    write_frame(&mut send, &missing).await?;
    fetch(room, peer, heard, &mut send, &mut recv).await
}

async fn fetch<R: Reads>(
    room: &Shared<R>,
    peer: Eid,
    heard: &Heard,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), FrameError> {
    let timeout = Duration::from_millis(room.config.request_timeout_ms);
    let frame = tokio::time::timeout(timeout, read_frame(recv)).await;
    let frame = frame.map_err(|_| FrameError::TimedOut(timeout.as_millis()))??;
    let _ = send.finish();
    // It does not keep all of that any more.
    let Some((header, payload)) = frame else { return Ok(()) };
    let entries = wan::read(header, &payload)?;
    let records = entries.records.len() as u64;
    let counters = &room.mesh.counters().wan;
    counters.received_records.add(records);
    counters.received_bytes.add((HEADER_BYTES + payload.len()) as u64);
    let Some(mode) = room.database.published().ledger.families.mode_of(&heard.family) else { return Ok(()) };
    if !room.nearby.lock().lacks(heard) || !room.knows(&heard.family, peer) {
        return Ok(());
    }
    let apply = Nearby::apply(heard, mode, entries.records);
    if let Ok(Outcome::Applied(_)) = room.database.submit(Input::Apply(apply)).await {
        room.nearby.lock().fetched(heard);
        counters.fetched_nearby.add(records);
    }
    Ok(())
}
