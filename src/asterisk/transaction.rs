//! Non-INVITE transactions (RFC 3261 sections 17.1.2 and 17.2.2), with the time as an argument.
//!
//! A client transaction repeats its request over UDP until it is answered or has waited for 64·T1. A
//! server transaction gives a repeated request the answer that the first one got; the requests themselves
//! are handled once.

use std::collections::BTreeMap;

use super::event::{Moment, Transport};
use super::header;
use super::message::Headers;

/// The round-trip estimate (RFC 3261 section 17.1.1.1).
pub const T1_MS: u64 = 500;
/// The longest pause between repetitions.
pub const T2_MS: u64 = 4_000;
/// How long a message may stay in the network.
pub const T4_MS: u64 = 5_000;
/// Timers F and J: 64·T1.
pub const GIVE_UP_MS: u64 = 64 * T1_MS;

/// What a client transaction wants when it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientStep {
    /// Nothing before [`Client::due`].
    Wait,
    /// Timer E: send the same bytes again.
    Repeat,
    /// Timer F: nobody answered.
    TimedOut,
}

/// A request of ours that waits for its final answer.
#[derive(Clone, Debug)]
pub struct Client {
    pub branch: String,
    bytes: Vec<u8>,
    repeat: Option<Repeat>,
    gives_up: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Repeat {
    at: Moment,
    pause_ms: u64,
}

impl Client {
    /// For a request that is being sent now.
    pub fn new(branch: String, bytes: Vec<u8>, transport: Transport, now: Moment) -> Self {
        let repeat = (!transport.is_reliable()).then_some(Repeat { at: now + T1_MS, pause_ms: T1_MS });
        Self { branch, bytes, repeat, gives_up: now + GIVE_UP_MS }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A provisional answer: from now on it is repeated every T2 (RFC 3261 section 17.1.2.2).
    pub fn provisional(&mut self) {
        if let Some(repeat) = &mut self.repeat {
            repeat.pause_ms = T2_MS;
        }
    }

    /// Whether an answer belongs to this request (RFC 3261 section 17.1.3).
    pub fn answered_by(&self, headers: &Headers) -> bool {
        let branch = headers.get("Via").and_then(header::via).and_then(|via| via.branch);
        let method = headers.get("CSeq").and_then(header::cseq).map(|(_, method)| method);
        branch == Some(self.branch.as_str()) && method == Some("PUBLISH")
    }

    pub fn due(&self) -> Moment {
        self.repeat.map_or(self.gives_up, |repeat| repeat.at.min(self.gives_up))
    }

    pub fn step(&mut self, now: Moment) -> ClientStep {
        if now >= self.gives_up {
            return ClientStep::TimedOut;
        }
        match &mut self.repeat {
            Some(repeat) if now >= repeat.at => {
                repeat.pause_ms = (repeat.pause_ms * 2).min(T2_MS);
                repeat.at = now + repeat.pause_ms;
                ClientStep::Repeat
            }
            _ => ClientStep::Wait,
        }
    }
}

/// What identifies a server transaction (RFC 3261 section 17.2.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerKey {
    branch: String,
    sent_by: String,
    method: String,
}

impl ServerKey {
    /// None for a request without a branch of RFC 3261: it is told from others by its content only.
    pub fn of(headers: &Headers, method: &str) -> Option<Self> {
        let via = headers.get("Via").and_then(header::via)?;
        let branch = via.branch.filter(|branch| branch.starts_with("z9hG4bK") && branch.len() > 7)?;
        Some(Self { branch: branch.to_owned(), sent_by: via.sent_by.to_ascii_lowercase(), method: method.to_owned() })
    }
}

/// What to do with a request that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was not here before: handle it.
    New,
    /// It is being handled.
    Pending,
    /// It was answered so.
    Answered(Vec<u8>),
}

#[derive(Clone, Debug)]
enum ServerState {
    Trying,
    Completed(Vec<u8>),
}

/// The server transactions of one peer: at most `max`, the oldest goes first.
#[derive(Clone, Debug)]
pub struct Servers {
    by_key: BTreeMap<ServerKey, (u64, ServerState)>,
    /// In the order in which they began, with the moment at which they are over.
    order: BTreeMap<u64, (Moment, ServerKey)>,
    begun: u64,
    max: usize,
}

impl Servers {
    pub fn new(max: usize) -> Self {
        Self { by_key: BTreeMap::new(), order: BTreeMap::new(), begun: 0, max }
    }

    /// A request has arrived. If it is new, its transaction begins.
    pub fn arrive(&mut self, key: &ServerKey, now: Moment) -> Arrival {
        self.expire(now);
        match self.by_key.get(key) {
            Some((_, ServerState::Trying)) => Arrival::Pending,
            Some((_, ServerState::Completed(answer))) => Arrival::Answered(answer.clone()),
            None => {
                self.begun += 1;
                self.by_key.insert(key.clone(), (self.begun, ServerState::Trying));
                self.order.insert(self.begun, (now + 2 * GIVE_UP_MS, key.clone()));
                if self.by_key.len() > self.max {
                    self.forget_oldest();
                }
                Arrival::New
            }
        }
    }

    /// Timer J begins with the answer: at once over, on a reliable transport (RFC 3261 section 17.2.2).
    pub fn answer(&mut self, key: &ServerKey, answer: Vec<u8>, transport: Transport, now: Moment) {
        if transport.is_reliable() {
            return self.forget(key);
        }
        if let Some((number, state)) = self.by_key.get_mut(key) {
            *state = ServerState::Completed(answer);
            if let Some((over, _)) = self.order.get_mut(number) {
                *over = now + GIVE_UP_MS;
            }
        }
    }

    /// The request is not handled after all: its repetition will be.
    pub fn forget(&mut self, key: &ServerKey) {
        if let Some((number, _)) = self.by_key.remove(key) {
            self.order.remove(&number);
        }
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    fn expire(&mut self, now: Moment) {
        while self.order.first_key_value().is_some_and(|(_, (over, _))| *over <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, (_, key))) = self.order.pop_first() {
            self.by_key.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(via: &str, cseq: &str) -> Headers {
        Headers::default().with("Via", via).with("CSeq", cseq)
    }

    fn key(branch: &str) -> ServerKey {
        let via = format!("SIP/2.0/UDP 10.0.0.1:5060;branch={branch}");
        ServerKey::of(&headers(&via, "1 PUBLISH"), "PUBLISH").expect("a branch of RFC 3261")
    }

    /// RFC 3261 section 17.1.2.2: after 0.5, 1.5, 3.5, 7.5 s, then every 4 s, and 32 s is the end.
    #[test]
    fn a_request_is_repeated_at_growing_pauses_and_given_up() {
        let mut client = Client::new("z9hG4bKa".into(), Vec::new(), Transport::Udp, 0);
        let mut repeated = Vec::new();
        let given_up = loop {
            let now = client.due();
            assert_eq!(client.step(now - 1), ClientStep::Wait);
            match client.step(now) {
                ClientStep::Repeat => repeated.push(now),
                ClientStep::TimedOut => break now,
                ClientStep::Wait => panic!("it was due"),
            }
        };
        assert_eq!(repeated, [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500]);
        assert_eq!(given_up, 32_000);
    }

    #[test]
    fn on_a_reliable_transport_nothing_is_repeated() {
        let mut client = Client::new("z9hG4bKa".into(), Vec::new(), Transport::Tcp, 0);
        assert_eq!(client.due(), 32_000);
        assert_eq!(client.step(32_000), ClientStep::TimedOut);
    }

    #[test]
    fn after_a_provisional_answer_it_is_repeated_every_4_s() {
        let mut client = Client::new("z9hG4bKa".into(), Vec::new(), Transport::Udp, 0);
        client.provisional();
        assert_eq!(client.step(500), ClientStep::Repeat);
        assert_eq!(client.due(), 4_500);
    }

    #[test]
    fn an_answer_belongs_to_the_request_of_its_branch_and_method() {
        let client = Client::new("z9hG4bKa".into(), Vec::new(), Transport::Udp, 0);
        assert!(client.answered_by(&headers("SIP/2.0/UDP a;branch=z9hG4bKa;rport=1;received=1.2.3.4", "1 PUBLISH")));
        assert!(!client.answered_by(&headers("SIP/2.0/UDP a;branch=z9hG4bKb", "1 PUBLISH")));
        assert!(!client.answered_by(&headers("SIP/2.0/UDP a;branch=z9hG4bKa", "1 OPTIONS")));
        assert!(!client.answered_by(&Headers::default()));
    }

    #[test]
    fn a_repeated_request_is_handled_once_and_answered_alike() {
        let mut servers = Servers::new(10);
        let key = key("z9hG4bKa");
        assert_eq!(servers.arrive(&key, 0), Arrival::New);
        assert_eq!(servers.arrive(&key, 500), Arrival::Pending);
        servers.answer(&key, b"200".to_vec(), Transport::Udp, 600);
        assert_eq!(servers.arrive(&key, 1_500), Arrival::Answered(b"200".to_vec()));
        assert_eq!(servers.arrive(&key, 600 + GIVE_UP_MS), Arrival::New, "timer J is over");
        servers.answer(&key, b"200".to_vec(), Transport::Tcp, 40_000);
        assert!(servers.is_empty(), "on a reliable transport it is over at once");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let mut servers = Servers::new(3);
        for at in 0..10 {
            assert_eq!(servers.arrive(&key(&format!("z9hG4bK{at}")), 0), Arrival::New);
            assert!(servers.len() <= 3);
        }
        assert_eq!(servers.arrive(&key("z9hG4bK9"), 1), Arrival::Pending);
        assert_eq!(servers.arrive(&key("z9hG4bK0"), 1), Arrival::New);
    }

    #[test]
    fn a_branch_of_the_old_kind_identifies_nothing() {
        for branch in ["390skdjuw", "z9hG4bK", ""] {
            let via = format!("SIP/2.0/UDP 10.0.0.1;branch={branch}");
            assert_eq!(ServerKey::of(&headers(&via, "1 PUBLISH"), "PUBLISH"), None);
        }
    }
}
