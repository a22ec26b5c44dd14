//! A patched Asterisk (Review Board 4490) as a state machine: what the real one was measured to do on the
//! wire, its faults included. Time is an argument; datagrams go in and out as bytes.
//!
//! It is the other end for simulations and, with sockets around it, for tests of the daemon. It shares no
//! logic with the adapter that it tests but the reading of SIP's header lines, the transactions of
//! RFC 3261 and the digest's arithmetic: what it prints and what it makes of a body is its own.
//!
//! What the real one does wrong, it does too: it drops updates after most errors and after 32 s without an
//! answer, goes dead after a challenge that it has no credentials for and after a 423 without Min-Expires,
//! stores full keys at the wrong place, wipes a family for a delete without data, applies a unique delete to its
//! own copy, and never sends what is larger than 4,000 bytes.

pub mod astdb;
mod bodies;
pub mod captures;
mod compositor;
mod publisher;

use std::collections::BTreeMap;

use kinfolk::asterisk::message::Message;
use kinfolk::asterisk::settings::Credentials;
use kinfolk::core::family::Mode;

use crate::rng::Rng;
use astdb::AstDb;
use compositor::{Arrived, Compositor, Pending};
use publisher::Publisher;

/// The largest message, headers included, in bytes (pjproject's `PJSIP_MAX_PKT_LEN`).
pub const MESSAGE_MAX_BYTES: usize = 4_000;

/// What its configuration files say: `pjsip.conf`, `asterisk.conf`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Printed in User-Agent and Server.
    pub name: String,
    /// Its EID as it prints it.
    pub eid: String,
    /// Its own `host:port`, as its Via says.
    pub sent_by: String,
    /// TCP instead of UDP.
    pub tcp: bool,
    /// `server_uri` of the outbound-publish: where it publishes to.
    pub server_uri: String,
    /// `from_uri` of the outbound-publish.
    pub from_uri: String,
    /// The To of what it publishes: the `server_uri` without its port, unless configured.
    pub to_uri: String,
    /// The inbound-publication's name: the user part by which the peer calls it.
    pub resource: String,
    /// `expiration` of the outbound-publish, in seconds.
    pub expiration_s: u32,
    /// `outbound_auth`: what it answers challenges with.
    pub outbound_auth: Option<Credentials>,
    /// `auth` of the endpoint: what it challenges the peer for.
    pub endpoint_auth: Option<Credentials>,
    /// Its marks: `database put shared`.
    pub shared: BTreeMap<String, Mode>,
    /// What its random identifiers come from.
    pub seed: u64,
}

impl Settings {
    /// Two ends named as in the captures: `127.0.0.11:5060` publishes to `sip:ast1@127.0.0.12:5060`.
    pub fn new(name: &str, eid: &str, host_port: &str, peer_host_port: &str, peer_resource: &str) -> Self {
        let host = |host_port: &str| host_port.rsplit_once(':').map_or(host_port, |(host, _)| host).to_string();
        Self {
            name: name.to_string(),
            eid: eid.to_string(),
            sent_by: host_port.to_string(),
            tcp: false,
            server_uri: format!("sip:{peer_resource}@{peer_host_port}"),
            from_uri: format!("sip:{name}@{}", host(host_port)),
            to_uri: format!("sip:{peer_resource}@{}", host(peer_host_port)),
            resource: name.to_string(),
            expiration_s: 3_600,
            outbound_auth: None,
            endpoint_auth: None,
            shared: BTreeMap::new(),
            seed: 0,
        }
    }

    /// The same with one more mark.
    #[must_use]
    pub fn sharing(mut self, family: &str, mode: Mode) -> Self {
        self.shared.insert(family.to_string(), mode);
        self
    }

    fn via_transport(&self) -> &'static str {
        if self.tcp { "TCP" } else { "UDP" }
    }
}

/// A message that it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// An answer goes back to where the request came from; a request goes to the `server_uri`.
    pub answer: bool,
    pub bytes: Vec<u8>,
}

/// What it has done, for those who judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Its own updates that were answered 200.
    pub published: u64,
    /// Its own updates that it dropped: refused, not answered, or too large.
    pub dropped: u64,
    /// Bodies that it answered 200.
    pub accepted: u64,
    /// Requests that it answered with something else.
    pub rejected: u64,
}

/// One process of a patched Asterisk. Its database outlives it: take it with [`Asterisk::into_db`] and
/// give it to the next one.
#[derive(Clone, Debug)]
pub struct Asterisk {
    settings: Settings,
    db: AstDb,
    /// False while it boots: it has no handler for the event yet and answers 489.
    loaded: bool,
    publisher: Publisher,
    compositor: Compositor,
    rng: Rng,
    counts: Counts,
}

impl Asterisk {
    /// Starts the process. Until [`Asterisk::load`] it answers 489.
    pub fn new(settings: Settings, db: AstDb) -> Self {
        let mut rng = Rng::new(settings.seed);
        let publisher = Publisher::new(&settings, &mut rng);
        Self {
            settings,
            db,
            loaded: false,
            publisher,
            compositor: Compositor::default(),
            rng,
            counts: Counts::default(),
        }
    }

    /// The module is loaded, or reloaded: asks the peer for its content.
    pub fn load(&mut self, now: u64) -> Vec<Packet> {
        self.loaded = true;
        self.publish(now, Some(bodies::refresh(&self.settings.eid)))
    }

    /// `database put`, by the CLI, the manager or the dialplan.
    pub fn put(&mut self, now: u64, family: &str, key: &str, value: &str) -> Vec<Packet> {
        if !self.db.put(family, key, value) {
            return Vec::new();
        }
        self.announce(now, "put", family, key, value)
    }

    /// `database del`. The patch tells the others also of what was not there.
    pub fn del(&mut self, now: u64, family: &str, key: &str) -> Vec<Packet> {
        self.db.del(family, key);
        self.announce(now, "delete", family, key, "")
    }

    /// `database deltree`: the others are not told.
    pub fn deltree(&mut self, family: &str, tree: Option<&str>) -> usize {
        self.db.deltree(family, tree)
    }

    fn announce(&mut self, now: u64, verb: &str, family: &str, key: &str, data: &str) -> Vec<Packet> {
        match self.settings.shared.get(family) {
            Some(mode) => {
                let body = bodies::dbstate(&self.settings.eid, verb, family, *mode, &[(key, data)]);
                self.publish(now, Some(body))
            }
            None => Vec::new(),
        }
    }

    fn publish(&mut self, now: u64, body: Option<String>) -> Vec<Packet> {
        self.publisher.queue(body);
        self.serve_queue(now)
    }

    fn serve_queue(&mut self, now: u64) -> Vec<Packet> {
        let request = self.publisher.serve(now, &self.settings, &mut self.rng, &mut self.counts);
        request.into_iter().map(|bytes| Packet { answer: false, bytes }).collect()
    }

    /// A message has arrived from the peer. `source` is its `ip:port`, for the answer's Via.
    pub fn receive(&mut self, now: u64, source: &str, bytes: &[u8]) -> Vec<Packet> {
        match Message::parse(bytes) {
            Ok(Message::Request(request)) => {
                let heard = compositor::Heard { source, len: bytes.len(), loaded: self.loaded };
                match self.compositor.receive(now, &request, heard, &self.settings, &mut self.rng) {
                    Arrived::Nothing => Vec::new(),
                    Arrived::Answered(bytes) => vec![self.answer(bytes)],
                    Arrived::Body(body, pending) => self.take_body(now, &body, pending),
                }
            }
            Ok(Message::Response(response)) => {
                let (settings, rng) = (&self.settings, &mut self.rng);
                let again = self.publisher.answered(now, &response, settings, rng, &mut self.counts);
                again.map_or_else(|| self.serve_queue(now), |bytes| vec![Packet { answer: false, bytes }])
            }
            Err(_) => Vec::new(),
        }
    }

    fn take_body(&mut self, now: u64, body: &[u8], pending: Pending) -> Vec<Packet> {
        let done = bodies::apply(&mut self.db, &self.settings, body);
        let mut sent = Vec::new();
        if done.refresh_wanted {
            // Measured: its content leaves before its answer does.
            for body in bodies::whole_content(&self.db, &self.settings) {
                sent.extend(self.publish(now, Some(body)));
            }
        }
        let answer = self.compositor.applied(now, pending, done.outcome, &self.settings);
        sent.push(self.answer(answer));
        sent
    }

    fn answer(&mut self, bytes: Vec<u8>) -> Packet {
        if bytes.starts_with(b"SIP/2.0 200") {
            self.counts.accepted += 1;
        } else {
            self.counts.rejected += 1;
        }
        Packet { answer: true, bytes }
    }

    /// Time has come to repeat, to give up, or to refresh the publication.
    pub fn timer(&mut self, now: u64) -> Vec<Packet> {
        let repeated = self.publisher.timer(now, &mut self.counts);
        let mut sent: Vec<_> = repeated.into_iter().map(|bytes| Packet { answer: false, bytes }).collect();
        sent.extend(self.serve_queue(now));
        sent
    }

    /// When [`Asterisk::timer`] is due.
    pub fn next_timer(&self) -> Option<u64> {
        self.publisher.next_timer()
    }

    pub fn db(&self) -> &AstDb {
        &self.db
    }

    /// The process ends; what it had queued is gone. The patch sends nothing at a shutdown.
    pub fn into_db(self) -> AstDb {
        self.db
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Updates that wait, the one in flight included.
    pub fn queued(&self) -> usize {
        self.publisher.len()
    }

    /// It publishes nothing any more until it is restarted.
    pub fn is_dead(&self) -> bool {
        self.publisher.is_dead()
    }

    /// `database put shared` and `database del shared`: the others are not told.
    pub fn share(&mut self, family: &str, mode: Option<Mode>) {
        match mode {
            Some(mode) => self.settings.shared.insert(family.to_string(), mode),
            None => self.settings.shared.remove(family),
        };
    }
}

/// An identifier as pjproject draws them.
fn uuid(rng: &mut Rng) -> String {
    let (a, b) = (rng.draw(), rng.draw());
    let hex = format!("{a:016x}{b:016x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `Content-Length` as pjproject prints it: right-aligned in five places for a body, in two without.
fn content_length(body: Option<&str>) -> String {
    body.map_or_else(
        || "Content-Length:  0\r\n\r\n".to_string(),
        |body| format!("Content-Length: {:>5}\r\n\r\n{body}", body.len()),
    )
}
