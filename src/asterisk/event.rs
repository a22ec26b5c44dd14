//! What goes into the state machine, and what comes out of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::message::Request;
use crate::core::replica::{Input, Ledger, Outcome};
use crate::core::storage::StoreError;

/// Milliseconds on a clock that never goes back: the wall clock at the start of the process, plus what a
/// monotonic clock has counted since.
pub type Moment = u64;

/// An attachment by its place in the configuration.
pub type AttachmentId = usize;

/// How SIP travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    /// Reliable transports retransmit by themselves (RFC 3261 section 17).
    pub fn is_reliable(self) -> bool {
        self != Transport::Udp
    }

    /// As it stands in a Via header.
    pub fn via_name(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }
}

/// Where a message came from, and so where its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    pub transport: Transport,
    pub address: SocketAddr,
    /// The driver's number of the connection, for TCP and TLS; 0 for UDP.
    pub connection: u64,
}

/// What the state machine sees of the database while it handles one event.
pub struct Sight<'a, R> {
    pub read: &'a R,
    /// The marks and the tallies.
    pub ledger: &'a Ledger,
    /// The node is ready: it has caught up once, or has nobody to catch up with. Until then nothing of an
    /// Asterisk's old content is taken for new.
    pub ready: bool,
}

impl<R> Clone for Sight<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for Sight<'_, R> {}

/// What happens to the adapter.
#[derive(Clone, Debug)]
pub enum Event {
    /// A datagram, or a message that [`super::framing`] cut out of a stream.
    Received { from: Remote, bytes: Vec<u8> },
    /// What became of an [`Effect::Submit`]. An error is the store's: nothing has changed.
    Committed { attachment: AttachmentId, outcome: Result<Outcome, StoreError> },
    /// The feed or the marks have changed, or the node became ready.
    Woken,
    /// [`super::adapter::Adapter::next_timer`] is due.
    Timer,
    /// What was to be sent to this Asterisk cannot be: no route, refused, connection lost.
    Unreachable { attachment: AttachmentId },
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Back to where a request came from; over TCP and TLS on the same connection if it is still there.
    Reply(Remote),
    /// To the `uri` of this attachment: the driver resolves it, and connects if need be.
    Asterisk(AttachmentId),
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Send {
        to: Destination,
        bytes: Vec<u8>,
    },
    /// Commit this, and hand in what became of it.
    Submit {
        attachment: AttachmentId,
        input: Input,
    },
    /// Somebody was refused: count it by its reason and log its line.
    Refused(Refused),
}

/// A refusal, for the log and the counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The attachment that it concerns, if it is known.
    pub attachment: Option<AttachmentId>,
    pub from: Remote,
    pub reason: RefusedReason,
    /// One line without control characters. Those of [`RefusedReason::is_security`] are worded as
    /// Asterisk words them, so that fail2ban's filter for Asterisk finds the address.
    pub line: String,
}

impl Refused {
    pub fn new(
        attachment: Option<AttachmentId>,
        request: &Request,
        from: Remote,
        reason: RefusedReason,
        text: &str,
    ) -> Self {
        let of = |name| request.headers.get(name).unwrap_or_default();
        let who = clean(of("From"));
        let (call_id, method, address) = (clean(of("Call-ID")), clean(&request.method), from.address);
        let line = match reason {
            RefusedReason::Unlisted | RefusedReason::Unknown => format!(
                "Request '{method}' from '{who}' failed for '{address}' (callid: {call_id}) - No matching endpoint found"
            ),
            RefusedReason::Credentials => format!(
                "Request '{method}' from '{who}' failed for '{address}' (callid: {call_id}) - Failed to authenticate"
            ),
            _ => format!("{method} from '{who}' at {address} refused ({}): {}", reason.as_str(), clean(text)),
        };
        Self { attachment, from, reason, line }
    }
}

/// What a stranger wrote, short and without anything that could pretend to be another part of the line.
fn clean(text: &str) -> String {
    let plain = |c: char| if c.is_control() || matches!(c, '\'' | '(' | ')') { '?' } else { c };
    text.chars().take(256).map(plain).collect()
}

/// Why somebody was refused; each is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedReason {
    /// The sender is on no list: nothing was answered.
    Unlisted,
    /// It is no SIP message.
    Malformed,
    /// No request that is answered here.
    Method,
    /// The Request-URI names nobody here.
    Unknown,
    /// The credentials are wrong.
    Credentials,
    /// The event is not `asterisk-db`.
    Event,
    /// The content type is not JSON, or there is none.
    ContentType,
    /// The message is too large.
    TooLarge,
    /// The body is not what the patch sends.
    Body,
    /// The body bears another EID than the configured one.
    Eid,
    /// Expires is too short.
    TooBrief,
    /// SIP-If-Match is not what was given out last.
    Stale,
    /// The family is not shared here, or not with this Asterisk.
    NotShared,
    /// The family is shared here in the other mode.
    OtherMode,
    /// A delete of a whole family.
    FamilyDelete,
    /// The path or the value cannot be kept.
    Entry,
    /// A quota is used up.
    Quota,
    /// More requests wait than one sender that waits for answers can have.
    Flood,
    /// A header asks for what is not done here.
    Extension,
}

impl RefusedReason {
    /// Whether it is about who may speak at all.
    pub fn is_security(self) -> bool {
        matches!(self, RefusedReason::Unlisted | RefusedReason::Unknown | RefusedReason::Credentials)
    }

    /// A short name for counting; the set of names is fixed.
    pub fn as_str(self) -> &'static str {
        match self {
            RefusedReason::Unlisted => "unlisted",
            RefusedReason::Malformed => "malformed",
            RefusedReason::Method => "method",
            RefusedReason::Unknown => "unknown_user",
            RefusedReason::Credentials => "credentials",
            RefusedReason::Event => "event",
            RefusedReason::ContentType => "content_type",
            RefusedReason::TooLarge => "too_large",
            RefusedReason::Body => "body",
            RefusedReason::Eid => "eid",
            RefusedReason::TooBrief => "too_brief",
            RefusedReason::Stale => "stale",
            RefusedReason::NotShared => "not_shared",
            RefusedReason::OtherMode => "other_mode",
            RefusedReason::FamilyDelete => "family_delete",
            RefusedReason::Entry => "entry",
            RefusedReason::Quota => "quota",
            RefusedReason::Flood => "flood",
            RefusedReason::Extension => "extension",
        }
    }
}

/// One attachment as `kinfolk status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentStatus {
    pub name: String,
    /// Whether the last thing that we sent was answered.
    pub reachable: bool,
    /// When anything last came from it.
    pub last_heard: Option<Moment>,
    /// Entries of the message that waits for its answer.
    pub in_flight: usize,
    /// Changes in the feed that it has not got yet.
    pub lag: u64,
    pub counts: AttachmentCounts,
    /// Refusals by reason.
    pub refused: BTreeMap<RefusedReason, u64>,
    /// Why the last message of ours was not accepted, if it was not.
    pub fault: Option<String>,
}

/// What an attachment has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachmentCounts {
    /// PUBLISHes that it sent and that were answered 200.
    pub accepted: u64,
    /// Entries of these that became writes.
    pub written: u64,
    /// Repetitions: retransmissions, and bodies that were applied before.
    pub repeated: u64,
    /// PUBLISHes of ours that were answered 200, and the entries in them.
    pub delivered: u64,
    pub delivered_entries: u64,
    /// Failures of ours: not answered, or not 200.
    pub failed: u64,
    /// Entries that the patch cannot take: too long. They are left out.
    pub undeliverable: u64,
    /// How often it was found restarted.
    pub restarts: u64,
    /// Answers that were held back because of the rate.
    pub delayed: u64,
}
