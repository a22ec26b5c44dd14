//! What goes out: the initial publication, questions, and the changes.

use super::*;

impl Attachment {
    /// Sends the next thing, if it may; false if nothing is to be done now.
    pub(super) fn push<R: Read>(
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
            let body = nothing(self.node, family.filter(|family| takes_part(&self.settings, family)));
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

    pub(super) fn push_window<R: Read>(
        &mut self,
        sight: Sight<'_, R>,
        effects: &mut Vec<Effect>,
    ) -> Result<bool, StoreError> {
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
            shadow.asks = link.asks;
            shadow.push(*agreed);
            self.staged.insert(record.clone(), shadow);
        }
        self.begin(link, Then::Push { chosen }, effects);
        Ok(false)
    }

    /// Records outside the feed first, then the feed. False if the Asterisk has everything.
    pub(super) fn next_window<R: Read>(&mut self, sight: Sight<'_, R>) -> Result<bool, StoreError> {
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
    pub(super) fn push_chosen<R: Read>(
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

    pub(super) fn publish(&mut self, body: &Body, pushing: Pushing, now: Moment, effects: &mut Vec<Effect>) {
        let etag = self.link.as_ref().and_then(|link| link.etag.clone());
        let bytes = self.publication.send(etag, body.print(), &mut self.ids, now);
        self.pushing = Some(pushing);
        self.send(bytes, effects);
    }

    pub(super) fn teller<'a, R>(&'a self, sight: Sight<'a, R>) -> Teller<'a, R> {
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

    pub(super) fn send(&self, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send { to: Destination::Asterisk(self.id), bytes });
    }
}
