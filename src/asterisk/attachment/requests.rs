//! What an Asterisk sends: PUBLISHes, from their arrival to their transaction.

use super::*;

impl Attachment {
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
    pub(super) fn challenge(&mut self, reply: &Reply, now: Moment, effects: &mut Vec<Effect>) -> Option<Response> {
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

    pub(super) fn carry_out<R: Read>(
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
                let hash = publish.body_hash;
                if !told || link.inbound.told_stale == Some(hash) {
                    self.refuse(arrived.reply, refusal, now, effects);
                    return Ok(());
                }
                let mut link = link.clone();
                self.note(RefusedReason::Stale, &arrived.reply, &refusal.text, effects);
                link.inbound.told_stale = Some(hash);
                if publish.if_match == link.inbound.etag {
                    // Its publication is over, but it got the last answer: this body is a new one, whatever it says.
                    link.inbound.body_hash = 0;
                }
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
    pub(super) fn take<R: Read>(
        &mut self,
        arrived: Arrived,
        restarted: bool,
        repeated: bool,
        now: Moment,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let mut link = self.link.clone().expect("read before");
        let mut afresh = restarted;
        if restarted {
            link.lineage += 1;
            link.etag = None;
        }
        afresh |= matches!(arrived.publish.body, Some(Body { content: Content::Refresh, .. }));
        let update = self.what_it_does(&arrived.publish, &link, repeated, sight)?;
        if afresh {
            send_everything(&mut link, &mut self.window);
        }
        self.note_entries(&update, &arrived.reply, effects);
        let publish = &arrived.publish;
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
                told_stale: None,
            };
            ok(&link.inbound, publish)
        };
        let entries = update.writes.len() as u64;
        self.status.counts.repeated += u64::from(repeated);
        let then = Then::Answer { arrived, response, update: Box::new(update), afresh: restarted, entries };
        self.begin(link, then, effects);
        Ok(())
    }

    fn what_it_does<R: Read>(
        &self,
        publish: &Publish,
        link: &Link,
        repeated: bool,
        sight: Sight<'_, R>,
    ) -> Result<Update, StoreError> {
        let Some(Body { content: Content::State(state), .. }) = &publish.body else { return Ok(Update::default()) };
        let scene = Scene {
            settings: &self.settings,
            sight,
            link,
            staged: &self.staged,
            repeated,
            asked: self.asking.asked,
            quiet: self.asking.quiet,
        };
        scene.update(state)
    }
}

fn ok(inbound: &Inbound, publish: &Publish) -> Response {
    let mut response = Response::new(200);
    // An ended publication has an ETag as well in the answer (RFC 3903 section 6, step 8).
    response.headers.push("SIP-ETag", inbound.etag.as_deref().unwrap_or("0"));
    response.headers.push("Expires", publish.expires_s.to_string());
    response
}
