//! All attached Asterisks of a node behind one state machine: who may speak, and what goes where.
//!
//! The driver's part is small. It hands in what arrives ([`Event`]), with the time and a view of the
//! database ([`Sight`]), and does what comes back ([`Effect`]), in that order; when [`Adapter::next_timer`]
//! is due it hands in [`Event::Timer`]. Duties of the driver:
//!
//! * the view is at least as new as the last outcome that it handed in;
//! * an [`Effect::Submit`] is answered by one [`Event::Committed`], and each attachment has at most one
//!   under way: several attachments commit in one group;
//! * [`Event::Woken`] is handed in when the feed or the marks have changed (as often as is convenient:
//!   one event may stand for many changes).
//!
//! An answer of 200 leaves only after its outcome: durable before 200.

use super::attachment::Attachment;
use super::body;
use super::digest::tag;
use super::inbound::{self, Refusal};
use super::message::{Headers, Message, Request, Response};
use super::outbound::AGENT;
use crate::core::eid::Eid;
use crate::core::storage::Read;

pub use super::event::{
    AttachmentCounts, AttachmentId, AttachmentStatus, Destination, Effect, Event, Moment, Refused, RefusedReason,
    Remote, Sight, Transport,
};
pub use super::settings::{AddressBlock, AttachmentSettings, Credentials, Quotas, Times};

/// The state machine.
pub struct Adapter {
    attachments: Vec<Attachment>,
    seed: [u8; 32],
}

impl Adapter {
    /// `seed` is drawn afresh at each start: tags, branches, ETags and nonces come from it.
    pub fn new(node: Eid, attachments: Vec<AttachmentSettings>, seed: [u8; 32]) -> Self {
        let attachments = attachments.into_iter().enumerate();
        let attachments = attachments.map(|(id, settings)| Attachment::new(id, node, settings, &seed)).collect();
        Self { attachments, seed }
    }

    /// Handles one event. Reads that fail are shown in the status; what they were for is tried again.
    pub fn handle<R: Read>(&mut self, event: Event, now: Moment, sight: Sight<'_, R>) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Received { from, bytes } => self.on_received(from, &bytes, now, sight, &mut effects),
            Event::Committed { attachment, outcome } => {
                if let Some(attachment) = self.attachments.get_mut(attachment) {
                    attachment.on_committed(outcome, now, sight, &mut effects);
                    attachment.advance(now, sight, &mut effects);
                }
            }
            Event::Unreachable { attachment } => {
                if let Some(attachment) = self.attachments.get_mut(attachment) {
                    attachment.on_unreachable(now);
                }
            }
            Event::Woken | Event::Timer => {
                for attachment in &mut self.attachments {
                    attachment.on_timer(now, &mut effects);
                    attachment.advance(now, sight, &mut effects);
                }
            }
        }
        effects
    }

    fn on_received<R: Read>(
        &mut self,
        from: Remote,
        bytes: &[u8],
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) {
        let listed = self.attachments.iter().any(|one| one.accepts(from.address.ip()));
        if !listed {
            // No answer, so that nobody can be made to send anything to a third.
            let request = match Message::parse(bytes) {
                Ok(Message::Request(request)) => request,
                _ => Request { method: "?".into(), uri: String::new(), headers: Headers::default(), body: Vec::new() },
            };
            effects.push(Effect::Refused(Refused::new(None, &request, from, RefusedReason::Unlisted, "")));
            return;
        }
        match Message::parse(bytes) {
            Err(error) => {
                if !bytes.iter().all(|b| matches!(b, b'\r' | b'\n')) {
                    effects.push(Effect::Refused(malformed(from, &error.to_string())));
                }
            }
            Ok(Message::Response(response)) => {
                for attachment in &mut self.attachments {
                    if attachment.on_response(&response, now, effects) {
                        return attachment.advance(now, sight, effects);
                    }
                }
            }
            Ok(Message::Request(request)) => self.on_request(request, from, now, sight, effects),
        }
    }

    fn on_request<R: Read>(
        &mut self,
        request: Request,
        from: Remote,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) {
        if inbound::answerable(&request).is_none() {
            effects.push(Effect::Refused(malformed(from, "a header is missing or malformed")));
            return;
        }
        let refusal = match request.method.as_str() {
            // An ACK is never answered (RFC 3261 section 17).
            "ACK" => return,
            "OPTIONS" => return self.reply(&request, options(), &from, effects),
            "PUBLISH" => match inbound::called_user(&request.uri) {
                Err(refusal) => refusal,
                Ok(user) => {
                    let called =
                        |one: &&mut Attachment| one.accepts(from.address.ip()) && one.settings.listen_user == user;
                    match self.attachments.iter_mut().find(called) {
                        Some(attachment) => {
                            attachment.on_publish(request, from, now, effects);
                            return attachment.advance(now, sight, effects);
                        }
                        None => Refusal::new(404, RefusedReason::Unknown, format!("nobody is called '{user}'")),
                    }
                }
            },
            _ => {
                let mut refusal = Refusal::new(405, RefusedReason::Method, "only PUBLISH and OPTIONS are done here");
                refusal.response.headers.push("Allow", inbound::ALLOW);
                refusal
            }
        };
        effects.push(Effect::Refused(Refused::new(None, &request, from, refusal.reason, &refusal.text)));
        self.reply(&request, refusal.response, &from, effects);
    }

    /// An answer that leaves no state: the tag of a repetition is the same (RFC 3261 section 8.2.7).
    fn reply(&mut self, request: &Request, response: Response, from: &Remote, effects: &mut Vec<Effect>) {
        let of = |name| request.headers.get(name).unwrap_or_default();
        let tag = tag(&self.seed, &format!("tag {} {} {}", of("Via"), of("Call-ID"), of("CSeq")));
        let bytes = inbound::answer(request, response, from, &tag, AGENT).print();
        effects.push(Effect::Send { to: Destination::Reply(*from), bytes });
    }

    /// When [`Event::Timer`] is due next.
    pub fn next_timer(&self) -> Option<Moment> {
        self.attachments.iter().filter_map(Attachment::next_timer).min()
    }

    pub fn status<R: Read>(&self, sight: Sight<'_, R>) -> Vec<AttachmentStatus> {
        self.attachments.iter().map(|attachment| attachment.status(sight)).collect()
    }
}

fn malformed(from: Remote, text: &str) -> Refused {
    let request = Request { method: "?".into(), uri: String::new(), headers: Headers::default(), body: Vec::new() };
    Refused::new(None, &request, from, RefusedReason::Malformed, text)
}

fn options() -> Response {
    let mut response = Response::new(200);
    response.headers.push("Allow", inbound::ALLOW);
    response.headers.push("Accept", body::CONTENT_TYPE);
    response.headers.push("Allow-Events", body::EVENT);
    response
}
