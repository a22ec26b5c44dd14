//! Its sending side: one publication at the peer, one request in flight, a queue behind it (measured).

use std::collections::VecDeque;

use kinfolk::asterisk::digest::Challenge;
use kinfolk::asterisk::event::Transport;
use kinfolk::asterisk::message::Response;
use kinfolk::asterisk::transaction::{Client, ClientStep};

use super::{Counts, MESSAGE_MAX_BYTES, Settings, content_length, uuid};
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub struct Publisher {
    /// Bodies; none is the refresh of the publication.
    queue: VecDeque<Option<String>>,
    call_id: String,
    cseq: u32,
    /// What the peer's last 200 gave.
    etag: Option<String>,
    expires_s: u32,
    sending: Sending,
    /// When the publication is refreshed without a body.
    refresh_at: Option<u64>,
}

#[derive(Clone, Debug)]
enum Sending {
    Idle,
    Waits {
        client: Client,
        from_tag: String,
        authorized: bool,
    },
    /// Challenged without credentials, or a 423 without Min-Expires: nothing is sent any more.
    Dead,
}

impl Publisher {
    pub fn new(settings: &Settings, rng: &mut Rng) -> Self {
        let (call_id, cseq) = (uuid(rng), first_cseq(rng));
        Self {
            queue: VecDeque::new(),
            call_id,
            cseq,
            etag: None,
            expires_s: settings.expiration_s,
            sending: Sending::Idle,
            refresh_at: None,
        }
    }

    pub fn queue(&mut self, body: Option<String>) {
        self.queue.push_back(body);
    }

    pub fn len(&self) -> usize {
        self.queue.len()
    }

    pub fn is_dead(&self) -> bool {
        matches!(self.sending, Sending::Dead)
    }

    /// Sends the first of the queue, unless something is in flight. What is too large is dropped in silence.
    pub fn serve(&mut self, now: u64, settings: &Settings, rng: &mut Rng, counts: &mut Counts) -> Option<Vec<u8>> {
        while matches!(self.sending, Sending::Idle) && !self.queue.is_empty() {
            let from_tag = uuid(rng);
            match self.request(now, settings, rng, from_tag, None) {
                Some(bytes) => {
                    self.refresh_at = None;
                    return Some(bytes);
                }
                None => self.drop_first(counts),
            }
        }
        None
    }

    /// The next request for the first of the queue; none if it is too large.
    fn request(
        &mut self,
        now: u64,
        settings: &Settings,
        rng: &mut Rng,
        from_tag: String,
        authorization: Option<String>,
    ) -> Option<Vec<u8>> {
        let branch = format!("z9hG4bKPj{}", uuid(rng));
        let body = self.queue.front().expect("something waits").as_deref();
        let text = self.print(settings, &branch, &from_tag, authorization.as_deref(), body);
        if text.len() > MESSAGE_MAX_BYTES {
            return None;
        }
        self.cseq += 1;
        let transport = if settings.tcp { Transport::Tcp } else { Transport::Udp };
        let client = Client::new(branch, text.clone().into_bytes(), transport, now);
        self.sending = Sending::Waits { client, from_tag, authorized: authorization.is_some() };
        Some(text.into_bytes())
    }

    fn print(
        &self,
        settings: &Settings,
        branch: &str,
        from_tag: &str,
        authorization: Option<&str>,
        body: Option<&str>,
    ) -> String {
        let Settings { name, sent_by, server_uri, from_uri, to_uri, .. } = settings;
        let mut text = format!(
            "PUBLISH {server_uri} SIP/2.0\r\nVia: SIP/2.0/{} {sent_by};rport;branch={branch}\r\n\
             From: <{from_uri}>;tag={from_tag}\r\nTo: <{to_uri}>\r\nCall-ID: {}\r\nCSeq: {} PUBLISH\r\n\
             Event: asterisk-db\r\n",
            settings.via_transport(),
            self.call_id,
            self.cseq
        );
        if let Some(etag) = &self.etag {
            text += &format!("SIP-If-Match: {etag}\r\n");
        }
        text += &format!("Expires: {}\r\nMax-Forwards: 70\r\nUser-Agent: Asterisk {name}\r\n", self.expires_s);
        if let Some(authorization) = authorization {
            text += &format!("Authorization: {authorization}\r\n");
        }
        if body.is_some() {
            text += "Content-Type: application/json\r\n";
        }
        text + &content_length(body)
    }

    fn drop_first(&mut self, counts: &mut Counts) {
        if self.queue.pop_front().flatten().is_some() {
            counts.dropped += 1;
        }
        self.sending = Sending::Idle;
    }

    /// An answer from the peer. Afterwards the queue is served again.
    pub fn answered(
        &mut self,
        now: u64,
        response: &Response,
        settings: &Settings,
        rng: &mut Rng,
        counts: &mut Counts,
    ) -> Option<Vec<u8>> {
        let Sending::Waits { client, from_tag, authorized } = &mut self.sending else { return None };
        if !client.answered_by(&response.headers) {
            return None;
        }
        let (from_tag, authorized) = (from_tag.clone(), *authorized);
        match response.status {
            100..200 => client.provisional(),
            401 | 407 => {
                let request = self.challenged(now, response, settings, rng, from_tag, authorized);
                if request.is_none() && !self.is_dead() {
                    self.drop_first(counts);
                }
                return request;
            }
            412 => {
                // A new publication for the same body.
                (self.call_id, self.cseq, self.etag) = (uuid(rng), first_cseq(rng), None);
                self.expires_s = settings.expiration_s;
                self.sending = Sending::Idle;
            }
            423 => match response.headers.get("Min-Expires").and_then(|text| text.trim().parse().ok()) {
                Some(expires_s) => (self.expires_s, self.sending) = (expires_s, Sending::Idle),
                None => self.sending = Sending::Dead,
            },
            200..300 => {
                self.etag = response.headers.get("SIP-ETag").map(str::to_string).or(self.etag.take());
                self.sending = Sending::Idle;
                if self.queue.pop_front().flatten().is_some() {
                    counts.published += 1;
                }
                let granted = response.headers.get("Expires").and_then(|text| text.trim().parse().ok());
                self.end_of_queue(now, granted.unwrap_or(self.expires_s));
            }
            _ => {
                self.drop_first(counts);
                self.end_of_queue(now, self.expires_s);
            }
        }
        None
    }

    fn end_of_queue(&mut self, now: u64, expires_s: u32) {
        if self.queue.is_empty() {
            self.refresh_at = Some(now + u64::from(expires_s) * 1_000);
        }
    }

    /// Credentials are not kept: every request is challenged anew.
    fn challenged(
        &mut self,
        now: u64,
        response: &Response,
        settings: &Settings,
        rng: &mut Rng,
        from_tag: String,
        authorized: bool,
    ) -> Option<Vec<u8>> {
        let challenge = response.headers.get("WWW-Authenticate").and_then(|text| Challenge::parse(text).ok());
        match (&settings.outbound_auth, challenge) {
            (Some(credentials), Some(challenge)) if !authorized || challenge.stale => {
                let cnonce = uuid(rng);
                let answer = challenge.answer(credentials, "PUBLISH", &settings.server_uri, 1, &cnonce).print();
                self.request(now, settings, rng, from_tag, Some(answer))
            }
            _ => {
                self.sending = Sending::Dead;
                None
            }
        }
    }

    /// What is to be repeated; gives up after 32 s. Afterwards the queue is served again.
    pub fn timer(&mut self, now: u64, counts: &mut Counts) -> Option<Vec<u8>> {
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh_at = None;
            if self.queue.is_empty() {
                self.queue.push_back(None);
            }
        }
        let Sending::Waits { client, .. } = &mut self.sending else { return None };
        match client.step(now) {
            ClientStep::Wait => None,
            ClientStep::Repeat => Some(client.bytes().to_vec()),
            ClientStep::TimedOut => {
                self.drop_first(counts);
                self.end_of_queue(now, self.expires_s);
                None
            }
        }
    }

    pub fn next_timer(&self) -> Option<u64> {
        let waits = match &self.sending {
            Sending::Waits { client, .. } => Some(client.due()),
            Sending::Idle | Sending::Dead => None,
        };
        [waits, self.refresh_at].into_iter().flatten().min()
    }
}

fn first_cseq(rng: &mut Rng) -> u32 {
    rng.between(1, 65_000) as u32
}
