//! One configured Asterisk: both directions, and the rules that keep the two databases equal.
//!
//! **Durable before 200.** What a PUBLISH changes, its ETag, Call-ID, CSeq and body hash, and the shadow of
//! each key are one transaction; the answer leaves after it. One transaction is under way at a time; what
//! arrives meanwhile waits.
//!
//! **Edge convergence.** The Asterisk writes before it publishes, so it may hold a value that lost, or a push
//! may cross an update. If anything was sent for a record since its last inbound update, every inbound update of
//! it is followed by a push of the winner; so "something was sent" is committed before it is sent. A push
//! that was accepted settles the record only if no update of it came in meanwhile. Records that were never
//! pushed are not echoed.
//!
//! **Asking.** Its content is asked for at the start, after an outage and at least every minute: that keeps our
//! publication alive, and brings back what the Asterisk could not tell.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::body::{Body, Content};
use super::digest::{Authorization, Guard, Verdict};
use super::event::{
    AttachmentId, AttachmentStatus, Destination, Effect, Moment, Refused, RefusedReason, Remote, Sight,
};
use super::feed::{Teller, Window, nothing};
use super::ids::{Ids, derived};
use super::inbound::{self, Publish, Refusal, Standing};
use super::message::{Request, Response};
use super::outbound::{AGENT, Answered, Publication};
use super::rate::Rate;
use super::rows::{Agreed, FeedCursor, Inbound, Link, Shadow, link_row, read_link, shadow_row};
use super::settings::AttachmentSettings;
use super::transaction::{Arrival, GIVE_UP_MS, ServerKey, Servers, T2_MS};
use super::update::{Scene, Update, takes_part};
use crate::core::eid::Eid;
use crate::core::mutant;
use crate::core::path::Family;
use crate::core::record::RecordKey;
use crate::core::replica::{Adapted, Input, Outcome};
use crate::core::storage::{Read, StoreError};

/// Messages that may wait for a commit. A sender that waits for its answers never has so many.
const WAITING_MAX: usize = 64;
/// Server transactions of one Asterisk that are remembered.
const TRANSACTIONS_MAX: usize = 4_096;
/// A pause after a commit that failed.
const COMMIT_RETRY_MS: u64 = 1_000;
/// Its answers come one after the other: after the last of them pushes wait so long yet.
const QUIET_MS: u64 = 300;
/// A request of its queue is repeated at least every T2 and given up after 64·T1: if nothing came for longer,
/// its queue was empty.
const QUEUE_EMPTY_MS: u64 = GIVE_UP_MS + T2_MS;
/// Records to be sent outside the feed.
const EXTRAS_MAX: usize = 1_024;

mod answers;
mod commits;
mod pushes;
mod requests;
mod responses;

pub struct Attachment {
    id: AttachmentId,
    node: Eid,
    pub settings: AttachmentSettings,
    ids: Ids,
    guard: Guard,
    servers: Servers,
    rate: Rate,
    waiting: VecDeque<Arrived>,
    /// Answers held back because of the rate.
    held: VecDeque<(Moment, Reply, Response)>,
    /// As it is committed, and cursors that are further than that. None before the first event.
    link: Option<Link>,
    /// Shadows of pushes that were accepted: they go with the next commit.
    staged: BTreeMap<RecordKey, Shadow>,
    /// The ETag in `link` is newer than the committed one.
    unsaved: bool,
    commit: Option<Commit>,
    /// No commit is begun before this moment.
    commit_after: Moment,
    publication: Publication,
    pushing: Option<Pushing>,
    window: Option<Window>,
    extras: BTreeSet<RecordKey>,
    asking: Asking,
    status: AttachmentStatus,
}

/// A PUBLISH that waits, and how often it was refused by the database.
struct Arrived {
    reply: Reply,
    publish: Publish,
    refused: u32,
    since: Moment,
}

/// Whom to answer.
#[derive(Clone)]
struct Reply {
    request: Request,
    from: Remote,
    key: Option<ServerKey>,
}

/// What is under way at the Asterisk.
enum Pushing {
    Initial,
    Ask,
    Batch { told: Vec<Sent>, overtaken: BTreeSet<RecordKey>, epoch: u32, lineage: u32 },
}

/// A record as it was sent, and the former values that its shadow knew then.
type Sent = (RecordKey, Agreed, Vec<Agreed>);

/// A transaction under way, and what follows it.
struct Commit {
    link: Link,
    /// Staged before it, should it fail.
    staged: BTreeMap<RecordKey, Shadow>,
    then: Then,
}

#[expect(clippy::large_enum_variant, reason = "few exist at a time, and none is kept")]
enum Then {
    Answer {
        arrived: Arrived,
        response: Response,
        update: Box<Update>,
        afresh: bool,
        entries: u64,
    },
    /// Send what was marked as sent, as it is now.
    Push {
        chosen: BTreeMap<RecordKey, Agreed>,
    },
    Ask,
    Nothing,
}

/// When the Asterisk is asked for its content, and what waits for the answer.
#[derive(Debug)]
struct Asking {
    due: Moment,
    /// Pushes wait for the answer to the next question.
    hold: bool,
    held_until: Moment,
    /// It was asked since this process started.
    asked: bool,
    /// Nothing had come from it for so long, and nothing of ours had been lost, that it had nothing left to
    /// send when it was asked last.
    quiet: bool,
    /// When something last came from it that it repeats until it is answered, or was lost.
    noise: Option<Moment>,
    /// Entries of an answer were left because the node was not ready.
    unfilled: bool,
}

impl Attachment {
    pub fn new(id: AttachmentId, node: Eid, settings: AttachmentSettings, seed: &[u8; 32]) -> Self {
        let mut ids = Ids::new(derived(seed, &format!("ids of {id}")));
        let key = derived(seed, &format!("nonces of {id}"));
        Self {
            id,
            node,
            guard: Guard::new(key, "kinfolk".into(), settings.times.nonce_ms),
            servers: Servers::new(TRANSACTIONS_MAX),
            rate: Rate::new(settings.quotas.updates_per_s),
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            link: None,
            staged: BTreeMap::new(),
            unsaved: false,
            commit: None,
            commit_after: 0,
            publication: Publication::new(&settings, &mut ids),
            pushing: None,
            window: None,
            extras: BTreeSet::new(),
            asking: Asking {
                due: 0,
                hold: true,
                held_until: 0,
                asked: false,
                quiet: false,
                noise: None,
                unfilled: false,
            },
            status: AttachmentStatus { name: settings.name.clone(), ..AttachmentStatus::default() },
            settings,
            ids,
        }
    }

    pub fn accepts(&self, address: IpAddr) -> bool {
        self.settings.accept_from.iter().any(|block| block.contains(address))
    }

    /// Goes on as far as it can: what waits is carried out, what is due is sent.
    pub fn advance<R: Read>(&mut self, now: Moment, sight: Sight<'_, R>, effects: &mut Vec<Effect>) {
        loop {
            match self.step(now, sight, effects) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // A read failed: nothing was decided. What waits is repeated by its sender.
                    self.status.fault = Some(error.to_string());
                    self.window = None;
                    self.commit_after = now + COMMIT_RETRY_MS;
                    return;
                }
            }
        }
    }

    /// One thing; false if there is nothing to do now.
    fn step<R: Read>(
        &mut self,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, StoreError> {
        if self.commit.is_some() || now < self.commit_after {
            return Ok(false);
        }
        if self.link.is_none() {
            self.link = Some(read_link(sight.read, self.settings.eid)?.unwrap_or_default());
        }
        if let Some(response) = self.publication.kept() {
            let answered = self.publication.on_response(&response, &mut self.ids, now);
            self.answered(answered, now, effects);
            return Ok(true);
        }
        if let Some(arrived) = self.waiting.pop_front() {
            let key = arrived.reply.key.clone();
            let carried_out = self.carry_out(arrived, now, sight, effects);
            if let (Err(_), Some(key)) = (&carried_out, &key) {
                self.servers.forget(key);
            }
            return carried_out.map(|()| true);
        }
        self.push(now, sight, effects)
    }

    pub fn on_unreachable(&mut self, now: Moment) {
        if self.publication.is_busy() {
            self.publication.failed(now);
            self.failed("it cannot be reached".into(), now);
        }
    }

    pub fn on_timer(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        match self.publication.on_timer(now) {
            None => {}
            Some(Ok(bytes)) => {
                self.asking.noise = Some(now);
                self.send(bytes, effects);
            }
            Some(Err(text)) => self.failed(text, now),
        }
        while self.held.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, reply, response) = self.held.pop_front().expect("it is there");
            self.answer(reply, response, now, effects);
        }
    }

    pub fn next_timer(&self) -> Option<Moment> {
        let mut times: Vec<Moment> = self.held.front().map(|(at, ..)| *at).into_iter().collect();
        match self.publication.due() {
            Some(due) => times.push(due),
            None if self.commit.is_none() => {
                let next = if self.idle_now() { self.asking.due } else { self.asking.due.min(self.asking.held_until) };
                times.push(next.max(self.publication.not_before).max(self.commit_after));
            }
            None => {}
        }
        if self.commit.is_none() && !self.waiting.is_empty() {
            times.push(self.commit_after);
        }
        times.into_iter().min()
    }

    /// Nothing waits for the end of a pause but the next question.
    fn idle_now(&self) -> bool {
        self.window.is_none()
            && self.asking.held_until == 0
            && self.link.as_ref().is_some_and(|link| link.etag.is_some())
    }
}

/// From now on nothing is known of what the Asterisk has.
fn send_everything(link: &mut Link, window: &mut Option<Window>) {
    link.epoch += 1;
    link.cursors.clear();
    *window = None;
}
