//! What an Asterisk answers to our publication.

use super::*;

impl Attachment {
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

    pub(super) fn answered(&mut self, answered: Answered, now: Moment, effects: &mut Vec<Effect>) {
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

    pub(super) fn accepted(&mut self, etag: String, now: Moment) {
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
                    let (owed, sent, unsure, pushed) = (false, true, false, vec![agreed]);
                    let shadow = Shadow { agreed, owed, sent, unsure, epoch, lineage, asks, past, pushed };
                    self.staged.insert(record, shadow);
                }
            }
        }
    }

    /// It is rendered and sent afresh when the pause is over; the window and the cursor stand where they
    /// stood.
    pub(super) fn failed(&mut self, text: String, now: Moment) {
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

    pub(super) fn ask_and_hold(&mut self, now: Moment) {
        self.asking.due = now;
        self.asking.hold = true;
    }
}
