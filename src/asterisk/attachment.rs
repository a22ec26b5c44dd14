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
use super::update::{Scene, Update};
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
    shadows: BTreeMap<RecordKey, Shadow>,
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

    // ---- what arrives -------------------------------------------------------------------------

    /// A PUBLISH from an address of this Asterisk, for its user.
    pub fn on_publish(&mut self, request: Request, from: Remote, now: Moment, effects: &mut Vec<Effect>) {
        self.status.last_heard = Some(now);
        self.asking.noise = Some(now);
        let key = ServerKey::of(&request.headers, &request.method);
        if let Some(key) = &key {
            match self.servers.arrive(key, now) {
                Arrival::New => {}
                Arrival::Pending => {
                    self.status.counts.repeated += 1;
                    return;
                }
                Arrival::Answered(bytes) => {
                    self.status.counts.repeated += 1;
                    effects.push(Effect::Send { to: Destination::Reply(from), bytes });
                    return;
                }
            }
        }
        let reply = Reply { request, from, key };
        if let Some(challenge) = self.challenge(&reply, now, effects) {
            return self.answer(reply, challenge, now, effects);
        }
        match inbound::read(&reply.request, &self.settings) {
            Err(refusal) => self.refuse(reply, refusal, now, effects),
            Ok(_) if self.waiting.len() >= WAITING_MAX => {
                // It will be repeated; by then there is room.
                self.forget(&reply);
                self.note(RefusedReason::Flood, &reply, "too many requests wait", effects);
            }
            Ok(publish) => self.waiting.push_back(Arrived { reply, publish, refused: 0, since: now }),
        }
    }

    /// The answer that asks for credentials, if they are wanted and not there.
    fn challenge(&mut self, reply: &Reply, now: Moment, effects: &mut Vec<Effect>) -> Option<Response> {
        let credentials = self.settings.credentials.as_ref()?;
        let algorithm = self.settings.algorithm;
        let given = reply.request.headers.get("Authorization").map(Authorization::parse);
        let verdict = match &given {
            Some(Ok(given)) => self.guard.check(given, credentials, "PUBLISH", &reply.request.uri, &[algorithm], now),
            _ => Verdict::Wrong,
        };
        if verdict == Verdict::Good {
            return None;
        }
        if verdict == Verdict::Wrong && given.is_some() {
            self.note(RefusedReason::Credentials, reply, "Failed to authenticate", effects);
        }
        let challenge = self.guard.challenge(algorithm, verdict == Verdict::Stale, now);
        let mut response = Response::new(401);
        response.headers.push("WWW-Authenticate", challenge.print());
        Some(response)
    }

    /// An answer to something of ours. False if it belongs to another attachment.
    pub fn on_response(&mut self, response: &Response, now: Moment, effects: &mut Vec<Effect>) -> bool {
        if self.commit.is_some() && !matches!(response.status, 100..200) && self.publication.is_answer(response) {
            // The link is being committed as it was: the answer is taken when that is over. It is repeated
            // by nobody, so it waits here.
            self.publication.keep(response.clone());
            return true;
        }
        match self.publication.on_response(response, &mut self.ids, now) {
            Answered::Nothing => return self.publication.is_answer(response),
            answered => self.answered(answered, now, effects),
        }
        true
    }

    fn answered(&mut self, answered: Answered, now: Moment, effects: &mut Vec<Effect>) {
        self.status.last_heard = Some(now);
        match answered {
            Answered::Nothing => {}
            Answered::Again(bytes) => self.send(bytes, effects),
            Answered::Accepted { etag } => self.accepted(etag, now),
            Answered::Gone => {
                // Restarted, or our last request was carried out and its answer lost: everything goes once more.
                self.pushing = None;
                let link = self.link.as_mut().expect("something was sent");
                send_everything(link, &mut self.window);
                link.etag = None;
                self.ask_and_hold(now);
            }
            Answered::Failed(text) => self.failed(text, now),
        }
    }

    fn accepted(&mut self, etag: String, now: Moment) {
        let link = self.link.as_mut().expect("something was sent");
        link.etag = Some(etag);
        self.unsaved = true;
        if !self.status.reachable {
            self.status.reachable = true;
            // What it could not tell meanwhile it tells when it is asked.
            self.asking.due = now;
            self.asking.hold = true;
        }
        self.status.fault = None;
        self.status.counts.delivered += 1;
        match self.pushing.take() {
            None | Some(Pushing::Initial) => {}
            Some(Pushing::Ask) => {
                self.asking.due = now + self.settings.times.ask_every_ms;
                if std::mem::take(&mut self.asking.hold) {
                    self.asking.held_until = now + self.settings.times.hold_ms;
                }
            }
            Some(Pushing::Batch { told, overtaken, epoch, lineage }) => {
                self.status.counts.delivered_entries += told.len() as u64;
                let asks = link.asks;
                for (record, agreed, past) in told {
                    if overtaken.contains(&record) && !mutant!(OvertakenForgotten) {
                        continue;
                    }
                    self.extras.remove(&record);
                    let (owed, sent, unsure) = (false, true, false);
                    let shadow = Shadow { agreed, owed, sent, unsure, epoch, lineage, asks, past };
                    self.staged.insert(record, shadow);
                }
            }
        }
    }

    /// It is rendered and sent afresh when the pause is over; the window and the cursor stand where they
    /// stood.
    fn failed(&mut self, text: String, now: Moment) {
        self.status.counts.failed += 1;
        self.status.reachable = false;
        self.status.fault = Some(text);
        if mutant!(PushNotRepeated)
            && let (Some(Pushing::Batch { told, .. }), Some(window)) = (&self.pushing, &mut self.window)
        {
            window.keys.retain(|record| !told.iter().any(|(sent, ..)| sent == record));
        }
        self.pushing = None;
        self.asking.noise = Some(now);
        self.ask_and_hold(now);
    }

    fn ask_and_hold(&mut self, now: Moment) {
        self.asking.due = now;
        self.asking.hold = true;
    }

    pub fn on_unreachable(&mut self, now: Moment) {
        if self.publication.is_busy()
            && let Answered::Failed(text) = self.publication.failed("it cannot be reached".into(), now)
        {
            self.failed(text, now);
        }
    }

    pub fn on_timer(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        match self.publication.on_timer(now) {
            None => {}
            Some(Ok(bytes)) => {
                self.asking.noise = Some(now);
                self.send(bytes, effects);
            }
            Some(Err(answered)) => self.answered_late(answered, now),
        }
        while self.held.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, reply, response) = self.held.pop_front().expect("it is there");
            self.answer(reply, response, now, effects);
        }
    }

    fn answered_late(&mut self, answered: Answered, now: Moment) {
        if let Answered::Failed(text) = answered {
            self.failed(text, now);
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

    // ---- the loop -----------------------------------------------------------------------------

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
            self.carry_out(arrived, now, sight, effects)?;
            return Ok(true);
        }
        self.push(now, sight, effects)
    }

    fn carry_out<R: Read>(
        &mut self,
        arrived: Arrived,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let link = self.link.as_ref().expect("read before");
        let publish = &arrived.publish;
        match inbound::standing(&link.inbound, publish, now) {
            Standing::Answered => {
                self.status.counts.repeated += 1;
                let response = ok(&link.inbound, publish);
                self.answer(arrived.reply, response, now, effects);
                Ok(())
            }
            Standing::Empty => {
                let refusal = Refusal::new(400, RefusedReason::Malformed, "neither SIP-If-Match nor a body");
                self.refuse(arrived.reply, refusal, now, effects);
                Ok(())
            }
            Standing::Stale { told } => {
                let refusal = Refusal::new(412, RefusedReason::Stale, "SIP-If-Match is not the last ETag");
                if !told || link.inbound.told_stale {
                    self.refuse(arrived.reply, refusal, now, effects);
                    return Ok(());
                }
                let mut link = link.clone();
                self.note(RefusedReason::Stale, &arrived.reply, &refusal.text, effects);
                link.inbound.told_stale = true;
                let then = Then::Answer {
                    arrived,
                    response: refusal.response,
                    update: Box::default(),
                    afresh: false,
                    entries: 0,
                };
                self.begin(link, then, effects);
                Ok(())
            }
            Standing::Continues => self.take(arrived, false, false, now, sight, effects),
            Standing::Begins { restarted, repeated } => self.take(arrived, restarted, repeated, now, sight, effects),
        }
    }

    /// A PUBLISH that is accepted: what it changes is committed, and then it is answered.
    fn take<R: Read>(
        &mut self,
        arrived: Arrived,
        restarted: bool,
        repeated: bool,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let mut link = self.link.clone().expect("read before");
        let mut afresh = false;
        if restarted {
            link.lineage += 1;
            link.etag = None;
            afresh = true;
        }
        let publish = &arrived.publish;
        let mut update = Update::default();
        match publish.body.as_ref().map(|body| &body.content) {
            None => {}
            Some(Content::Refresh) => afresh = true,
            Some(Content::State(state)) => {
                let scene = Scene {
                    settings: &self.settings,
                    sight,
                    link: &link,
                    staged: &self.staged,
                    repeated,
                    asked: self.asking.asked,
                    quiet: self.asking.quiet,
                };
                update = scene.update(state)?;
            }
        }
        if afresh {
            send_everything(&mut link, &mut self.window);
        }
        self.note_entries(&update, &arrived.reply, effects);
        let response = if update.forbidden {
            Response::new(403)
        } else {
            link.inbound = Inbound {
                etag: (publish.expires_s > 0).then(|| self.ids.token()),
                expires_at: now + u64::from(publish.expires_s) * 1_000,
                expires_s: publish.expires_s,
                call_id: publish.call_id.clone(),
                cseq: publish.cseq,
                body_hash: publish.body_hash,
                told_stale: false,
            };
            ok(&link.inbound, publish)
        };
        let entries = update.writes.len() as u64;
        self.status.counts.repeated += u64::from(repeated);
        self.begin(
            link,
            Then::Answer { arrived, response, update: Box::new(update), afresh: restarted, entries },
            effects,
        );
        Ok(())
    }

    // ---- commits ------------------------------------------------------------------------------

    /// Hands a transaction to the driver: the link as given, what is staged, and what `then` brings.
    fn begin(&mut self, mut link: Link, mut then: Then, effects: &mut Vec<Effect>) {
        let mut shadows = std::mem::take(&mut self.staged);
        let mut writes = Vec::new();
        if let Then::Answer { update, .. } = &mut then {
            writes = std::mem::take(&mut update.writes);
            for (record, seq) in &update.owed {
                rewind(&mut link, record, *seq);
            }
            if !mutant!(ShadowNotKept) {
                shadows.append(&mut update.shadows);
            }
        }
        let mut rows: Vec<_> =
            shadows.iter().map(|(record, shadow)| shadow_row(self.settings.eid, record, shadow)).collect();
        rows.push(link_row(self.settings.eid, &link));
        effects.push(Effect::Submit { attachment: self.id, input: Input::Adapter(Adapted { writes, rows }) });
        if mutant!(AnsweredBeforeCommit)
            && let Then::Answer { arrived, response, .. } = &then
        {
            let (reply, response) = (arrived.reply.clone(), response.clone());
            self.answer(reply, response, 0, effects);
        }
        self.commit = Some(Commit { link, shadows, then });
    }

    pub fn on_committed<R: Read>(
        &mut self,
        outcome: Result<Outcome, StoreError>,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(commit) = self.commit.take() else { return };
        match outcome {
            Ok(Outcome::Adapted { written }) => self.committed(commit, written, now, sight, effects),
            Ok(other) => {
                self.restage(commit.shadows, &commit.then);
                let text = match other {
                    Outcome::Refused(refusal) => refusal.to_string(),
                    other => format!("an outcome of something else: {other:?}"),
                };
                self.not_taken(commit.then, text, now, effects);
            }
            Err(error) => {
                self.restage(commit.shadows, &commit.then);
                self.status.fault = Some(error.to_string());
                self.commit_after = now + COMMIT_RETRY_MS;
                self.not_committed(commit.then, now, effects);
            }
        }
    }

    fn committed<R: Read>(
        &mut self,
        commit: Commit,
        written: u64,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) {
        self.link = Some(commit.link);
        self.unsaved = false;
        match commit.then {
            Then::Nothing => {}
            Then::Ask => {
                self.asking.asked = true;
                let body = Body { eid: self.node, content: Content::Refresh };
                self.publish(&body, Pushing::Ask, now, effects);
            }
            Then::Push { chosen } => self.push_chosen(&chosen, now, sight, effects),
            Then::Answer { arrived, response, update, afresh, entries } => {
                self.status.counts.written += written;
                self.settle(*update, afresh, now);
                if response.status == 200 {
                    self.status.counts.accepted += 1;
                }
                self.answer_at_rate(arrived.reply, response, entries, now, effects);
            }
        }
    }

    /// What an update that is durable means for what goes out.
    fn settle(&mut self, update: Update, restarted: bool, now: Moment) {
        if let Some(Pushing::Batch { overtaken, .. }) = &mut self.pushing {
            overtaken.extend(update.touched);
        }
        if !update.owed.is_empty() {
            self.window = None;
        }
        for (record, seq) in update.owed {
            if seq.is_none() && self.extras.len() < EXTRAS_MAX {
                self.extras.insert(record);
            }
        }
        self.asking.unfilled |= update.unfilled;
        if self.asking.held_until > now {
            // Answers are coming in: a little longer, and no longer than planned.
            self.asking.held_until = self.asking.held_until.min(now + QUIET_MS);
        }
        if restarted {
            self.status.counts.restarts += 1;
            self.publication.abandon();
            (self.pushing, self.window) = (None, None);
            self.ask_and_hold(now);
        }
    }

    /// What was staged stays so; what an answer would have changed is forgotten.
    fn restage(&mut self, shadows: BTreeMap<RecordKey, Shadow>, then: &Then) {
        if let Then::Answer { update, .. } = then
            && !update.touched.is_empty()
        {
            // The update's own shadows are among them, and tell of a write that was not made.
            let keep = shadows.into_iter().filter(|(record, _)| !update.touched.contains(record));
            self.staged.extend(keep);
            return;
        }
        self.staged.extend(shadows);
    }

    /// The database refused it: what it goes by has changed since. Once more, and then not again.
    fn not_taken(&mut self, then: Then, text: String, now: Moment, effects: &mut Vec<Effect>) {
        let Then::Answer { mut arrived, .. } = then else {
            self.status.fault = Some(text);
            self.commit_after = now + COMMIT_RETRY_MS;
            return;
        };
        arrived.refused += 1;
        if arrived.refused < 2 {
            return self.waiting.push_front(arrived);
        }
        self.refuse(arrived.reply, Refusal::new(403, RefusedReason::Entry, text), now, effects);
    }

    /// The store failed. The sender waits, and repeats: it gets its answer when there is room again.
    fn not_committed(&mut self, then: Then, now: Moment, effects: &mut Vec<Effect>) {
        let Then::Answer { arrived, .. } = then else { return };
        if now < arrived.since + GIVE_UP_MS {
            return self.waiting.push_front(arrived);
        }
        self.answer(arrived.reply, Response::new(500), now, effects);
    }

    // ---- what goes out ------------------------------------------------------------------------

    /// Sends the next thing, if it may; false if nothing is to be done now.
    fn push<R: Read>(
        &mut self,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, StoreError> {
        if self.publication.is_busy() || now < self.publication.not_before {
            return Ok(false);
        }
        let link = self.link.as_ref().expect("read before");
        if link.etag.is_none() {
            let family = sight.ledger.families.marks().keys().next();
            let body = nothing(self.node, family.filter(|family| super::update::takes_part(&self.settings, family)));
            self.publish(&body, Pushing::Initial, now, effects);
            return Ok(false);
        }
        if self.asking.unfilled && sight.ready {
            self.asking.unfilled = false;
            self.asking.due = now;
        }
        if now >= self.asking.due {
            let noise = *self.asking.noise.get_or_insert(now);
            self.asking.quiet = now >= noise + QUEUE_EMPTY_MS;
            let mut link = link.clone();
            link.asks += 1;
            self.begin(link, Then::Ask, effects);
            return Ok(false);
        }
        if now < self.asking.held_until {
            return Ok(false);
        }
        self.asking.held_until = 0;
        self.push_window(sight, effects)
    }

    fn push_window<R: Read>(&mut self, sight: Sight<'_, R>, effects: &mut Vec<Effect>) -> Result<bool, StoreError> {
        if self.window.is_none() && !self.next_window(sight)? {
            if self.unsaved {
                let link = self.link.clone().expect("read before");
                self.begin(link, Then::Nothing, effects);
            }
            return Ok(false);
        }
        let mut window = self.window.take().expect("just made");
        let (batch, too_long) = self.teller(sight).batch(&mut window.keys, None)?;
        self.status.counts.undeliverable += too_long;
        let Some(batch) = batch else {
            let link = self.link.as_mut().expect("read before");
            link.cursors.insert(window.family, window.end);
            self.unsaved = true;
            return Ok(true);
        };
        if mutant!(CursorBeforePush) {
            self.link.as_mut().expect("read before").cursors.insert(window.family.clone(), window.end);
        }
        self.window = Some(window);
        let link = self.link.clone().expect("read before");
        let chosen: BTreeMap<_, _> = batch.told.into_iter().collect();
        for (record, agreed) in &chosen {
            let mut shadow = self.teller(sight).shadow(record)?.unwrap_or_default();
            (shadow.sent, shadow.unsure, shadow.asks) = (true, true, link.asks);
            shadow.held(*agreed);
            self.staged.insert(record.clone(), shadow);
        }
        self.begin(link, Then::Push { chosen }, effects);
        Ok(false)
    }

    /// Records outside the feed first, then the feed. False if the Asterisk has everything.
    fn next_window<R: Read>(&mut self, sight: Sight<'_, R>) -> Result<bool, StoreError> {
        let mut link = self.link.clone().expect("read before");
        let extras = std::mem::take(&mut self.extras);
        if let Some(family) = extras.first().and_then(|record| sight.ledger.families.of_record(record)) {
            let end = link.cursors.get(family.0).copied();
            let end = end.unwrap_or(FeedCursor { since: family.1.since, seq: 0 });
            self.window = Some(Window { family: family.0.clone(), end, keys: extras.into_iter().collect() });
            return Ok(true);
        }
        self.window = self.teller(sight).window(&mut link.cursors)?;
        self.link = Some(link);
        Ok(self.window.is_some())
    }

    /// What was chosen is marked as sent: now it is, as it is at this moment.
    fn push_chosen<R: Read>(
        &mut self,
        chosen: &BTreeMap<RecordKey, Agreed>,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut window) = self.window.take() else { return };
        let Ok((batch, too_long)) = self.teller(sight).batch(&mut window.keys, Some(chosen)) else { return };
        self.status.counts.undeliverable += too_long;
        self.window = Some(window);
        let Some(batch) = batch else { return };
        let link = self.link.as_ref().expect("read before");
        let (epoch, lineage) = (link.epoch, link.lineage);
        let teller = self.teller(sight);
        let past = |record: &RecordKey| teller.shadow(record).ok().flatten().unwrap_or_default().past;
        let told = batch.told.into_iter().map(|(record, agreed)| (past(&record), record, agreed));
        let told = told.map(|(past, record, agreed)| (record, agreed, past)).collect();
        let pushing = Pushing::Batch { told, overtaken: BTreeSet::new(), epoch, lineage };
        self.publish(&batch.body, pushing, now, effects);
    }

    fn publish(&mut self, body: &Body, pushing: Pushing, now: Moment, effects: &mut Vec<Effect>) {
        let etag = self.link.as_ref().and_then(|link| link.etag.clone());
        let bytes = self.publication.send(etag, body.print(), &mut self.ids, now);
        self.pushing = Some(pushing);
        self.send(bytes, effects);
    }

    fn teller<'a, R>(&'a self, sight: Sight<'a, R>) -> Teller<'a, R> {
        let link = self.link.as_ref().expect("read before");
        Teller {
            node: self.node,
            settings: &self.settings,
            sight,
            link,
            staged: &self.staged,
            body_max_bytes: self.publication.body_max_bytes(link.etag.as_deref()),
        }
    }

    fn send(&self, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send { to: Destination::Asterisk(self.id), bytes });
    }

    // ---- answers ------------------------------------------------------------------------------

    /// Too many updates are slowed down by answering late: the sender waits for the answer.
    fn answer_at_rate(
        &mut self,
        reply: Reply,
        response: Response,
        entries: u64,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let wait_ms = if response.status == 200 { self.rate.take(entries, now) } else { 0 };
        if wait_ms == 0 {
            return self.answer(reply, response, now, effects);
        }
        self.status.counts.delayed += 1;
        let at = self.held.back().map_or(now, |(at, ..)| *at).max(now + wait_ms);
        self.held.push_back((at, reply, response));
    }

    fn answer(&mut self, reply: Reply, response: Response, now: Moment, effects: &mut Vec<Effect>) {
        let response = inbound::answer(&reply.request, response, &reply.from, &self.ids.token(), AGENT);
        let bytes = response.print();
        if let Some(key) = &reply.key {
            self.servers.answer(key, bytes.clone(), reply.from.transport, now);
        }
        effects.push(Effect::Send { to: Destination::Reply(reply.from), bytes });
    }

    fn refuse(&mut self, reply: Reply, refusal: Refusal, now: Moment, effects: &mut Vec<Effect>) {
        self.note(refusal.reason, &reply, &refusal.text, effects);
        self.answer(reply, refusal.response, now, effects);
    }

    fn forget(&mut self, reply: &Reply) {
        if let Some(key) = &reply.key {
            self.servers.forget(key);
        }
    }

    fn note(&mut self, reason: RefusedReason, reply: &Reply, text: &str, effects: &mut Vec<Effect>) {
        *self.status.refused.entry(reason).or_default() += 1;
        effects.push(Effect::Refused(Refused::new(Some(self.id), &reply.request, reply.from, reason, text)));
    }

    fn note_entries(&mut self, update: &Update, reply: &Reply, effects: &mut Vec<Effect>) {
        for (reason, (count, text)) in &update.refused {
            self.note(*reason, reply, text, effects);
            *self.status.refused.entry(*reason).or_default() += count - 1;
        }
    }

    pub fn status<R: Read>(&self, sight: Sight<'_, R>) -> AttachmentStatus {
        const LAG_MAX: u64 = 100_000;
        let in_flight = match &self.pushing {
            Some(Pushing::Batch { told, .. }) => told.len(),
            _ => 0,
        };
        let lag = if self.link.is_some() { self.teller(sight).lag(LAG_MAX).unwrap_or(0) } else { 0 };
        AttachmentStatus { in_flight, lag, ..self.status.clone() }
    }
}

fn ok(inbound: &Inbound, publish: &Publish) -> Response {
    let mut response = Response::new(200);
    // An ended publication has an ETag as well in the answer (RFC 3903 section 6, step 8).
    response.headers.push("SIP-ETag", inbound.etag.as_deref().unwrap_or("0"));
    response.headers.push("Expires", publish.expires_s.to_string());
    response
}

/// From now on nothing is known of what the Asterisk has.
fn send_everything(link: &mut Link, window: &mut Option<Window>) {
    link.epoch += 1;
    link.cursors.clear();
    *window = None;
}

/// Lets the feed be read again from before a record.
fn rewind(link: &mut Link, record: &RecordKey, seq: Option<u64>) {
    let Some(seq) = seq else { return };
    let covering: Vec<Family> =
        link.cursors.keys().filter(|family| record.path.key_in(family).is_some()).cloned().collect();
    for family in covering {
        let cursor = link.cursors.get_mut(&family).expect("just listed");
        cursor.seq = cursor.seq.min(seq.saturating_sub(1));
    }
}
