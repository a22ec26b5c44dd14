//! Transactions: one at a time, and what follows each.

use super::*;

impl Attachment {
    /// Hands a transaction to the driver: the link as given, what is staged, and what `then` brings.
    pub(super) fn begin(&mut self, mut link: Link, mut then: Then, effects: &mut Vec<Effect>) {
        let staged = std::mem::take(&mut self.staged);
        let mut shadows = staged.clone();
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
        self.commit = Some(Commit { link, staged, then });
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
                self.staged = commit.staged;
                let text = match other {
                    Outcome::Refused(refusal) => refusal.to_string(),
                    other => format!("an outcome of something else: {other:?}"),
                };
                self.not_taken(commit.then, text, now, effects);
            }
            Err(error) => {
                self.staged = commit.staged;
                self.status.fault = Some(error.to_string());
                self.commit_after = now + COMMIT_RETRY_MS;
                self.not_committed(commit.then, now, effects);
            }
        }
    }

    pub(super) fn committed<R: Read>(
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
    pub(super) fn settle(&mut self, update: Update, restarted: bool, now: Moment) {
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

    /// The database refused it: what it goes by has changed since. Once more, and then not again.
    pub(super) fn not_taken(&mut self, then: Then, text: String, now: Moment, effects: &mut Vec<Effect>) {
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
    pub(super) fn not_committed(&mut self, then: Then, now: Moment, effects: &mut Vec<Effect>) {
        let Then::Answer { arrived, .. } = then else { return };
        if now < arrived.since + GIVE_UP_MS {
            return self.waiting.push_front(arrived);
        }
        self.answer(arrived.reply, Response::new(500), now, effects);
    }
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
