//! What an Asterisk is answered, when, and what is noted of it.

use super::*;

impl Attachment {
    /// Too many updates are slowed down by answering late: the sender waits for the answer.
    pub(super) fn answer_at_rate(
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

    pub(super) fn answer(&mut self, reply: Reply, response: Response, now: Moment, effects: &mut Vec<Effect>) {
        let response = inbound::answer(&reply.request, response, &reply.from, &self.ids.token(), AGENT);
        let bytes = response.print();
        if let Some(key) = &reply.key {
            self.servers.answer(key, bytes.clone(), reply.from.transport, now);
        }
        effects.push(Effect::Send { to: Destination::Reply(reply.from), bytes });
    }

    pub(super) fn refuse(&mut self, reply: Reply, refusal: Refusal, now: Moment, effects: &mut Vec<Effect>) {
        self.note(refusal.reason, &reply, &refusal.text, effects);
        self.answer(reply, refusal.response, now, effects);
    }

    pub(super) fn forget(&mut self, reply: &Reply) {
        if let Some(key) = &reply.key {
            self.servers.forget(key);
        }
    }

    pub(super) fn note(&mut self, reason: RefusedReason, reply: &Reply, text: &str, effects: &mut Vec<Effect>) {
        *self.status.refused.entry(reason).or_default() += 1;
        effects.push(Effect::Refused(Refused::new(Some(self.id), &reply.request, reply.from, reason, text)));
    }

    pub(super) fn note_entries(&mut self, update: &Update, reply: &Reply, effects: &mut Vec<Effect>) {
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
