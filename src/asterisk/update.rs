//! What an accepted body does: the writes, and the shadows that are committed with them.
//!
//! The two kinds of entries (measured): a *bare* key is an update, which the Asterisk has just made. A
//! *full* key, `/family/key`, stands in an answer to a refresh request: it may be new, because the update
//! was lost, or old, because the Asterisk was restarted or something is on its way to it. It is taken for
//! new only where nothing speaks against it, and the winner is always sent back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::body::{DbState, EntryKey, Verb};
use super::event::{RefusedReason, Sight};
use super::rows::{Agreed, Link, Shadow, read_shadow};
use super::settings::AttachmentSettings;
use crate::core::family::Mode;
use crate::core::mutant;
use crate::core::path::{Family, Path, Value};
use crate::core::record::RecordKey;
use crate::core::replica::AdapterWrite;
use crate::core::storage::{Read, Span, StoreError};

/// What an update comes to.
#[derive(Clone, Debug, Default)]
pub struct Update {
    pub writes: Vec<AdapterWrite>,
    pub shadows: BTreeMap<RecordKey, Shadow>,
    /// Keys that the Asterisk has written: what is on its way to them is overtaken.
    pub touched: BTreeSet<RecordKey>,
    /// Records to be sent although nothing new will stand in the feed for them, with their place in it.
    pub owed: Vec<(RecordKey, Option<u64>)>,
    /// Entries that were not taken, by reason, and the first of each in words.
    pub refused: BTreeMap<RefusedReason, (u64, String)>,
    /// Nothing of it was taken, and the sender is told so.
    pub forbidden: bool,
    /// Entries of an answer that could not be taken because the node is not ready yet.
    pub unfilled: bool,
}

/// What is known while an update is looked at.
pub struct Scene<'a, R> {
    pub settings: &'a AttachmentSettings,
    pub sight: Sight<'a, R>,
    pub link: &'a Link,
    /// Shadows that are not committed yet.
    pub staged: &'a BTreeMap<RecordKey, Shadow>,
    /// The body was carried out before: its entries are no new writes.
    pub repeated: bool,
    /// The Asterisk was asked for its content since this process started: answers from before are ignored.
    pub asked: bool,
    /// When it was asked last it had nothing left to send: no late answer to an earlier question comes.
    pub quiet: bool,
}

impl<R: Read> Scene<'_, R> {
    pub fn update(&self, state: &DbState) -> Result<Update, StoreError> {
        let mut update = Update::default();
        let mut bare = 0;
        match &state.entries {
            Some(entries) => {
                for entry in entries {
                    let value = match (state.verb, &entry.data) {
                        (Verb::Put, Some(data)) => match Value::new(data) {
                            Ok(value) => Some(value),
                            Err(error) => {
                                update.refuse(RefusedReason::Entry, || format!("'{}': {error}", entry.key));
                                continue;
                            }
                        },
                        (Verb::Put, None) => {
                            update.refuse(RefusedReason::Entry, || format!("'{}' has no data", entry.key));
                            continue;
                        }
                        // Without data the patch would delete the whole family: the key is what it names.
                        (Verb::Delete, _) => None,
                    };
                    let (key, full) = match entry.key_in(&state.family) {
                        EntryKey::Bare(key) => (key, false),
                        EntryKey::Full(key) => (key, state.verb == Verb::Put),
                    };
                    let Some(record) = self.record(state, key, &mut update) else { continue };
                    if full && !mutant!(AnswersAreUpdates) {
                        self.answer(record, value, &mut update)?;
                    } else {
                        bare += 1;
                        self.write(record, value, &mut update)?;
                    }
                }
            }
            None if state.verb == Verb::Put => {}
            None => self.family_delete(state, &mut update)?,
        }
        let only_quota = update.refused.contains_key(&RefusedReason::Quota) && update.writes.is_empty() && bare > 0;
        update.forbidden |= only_quota;
        Ok(update)
    }

    /// The record that an entry means, if it may be written.
    fn record(&self, state: &DbState, key: &str, update: &mut Update) -> Option<RecordKey> {
        let path = match Path::of(&state.family, key) {
            Ok(path) => path,
            Err(error) => {
                update.refuse(RefusedReason::Entry, || format!("'{key}' in '{}': {error}", state.family));
                return None;
            }
        };
        let Some((family, mark)) = self.sight.ledger.families.covering(&path) else {
            update.refuse(RefusedReason::NotShared, || format!("{path} is in no family that is shared here"));
            return None;
        };
        if !takes_part(self.settings, family) {
            update.refuse(RefusedReason::NotShared, || format!("'{family}' is not shared with this Asterisk"));
            return None;
        }
        if mark.mode != state.mode {
            update.refuse(RefusedReason::OtherMode, || {
                format!("'{family}' is shared as {} here, as {} there", mark.mode, state.mode)
            });
            return None;
        }
        Some(match mark.mode {
            Mode::Global => RecordKey::plain(path),
            Mode::Unique => RecordKey::owned(self.settings.eid, path),
        })
    }

    fn shadow(&self, record: &RecordKey, update: &Update) -> Result<Option<Shadow>, StoreError> {
        match update.shadows.get(record).or_else(|| self.staged.get(record)) {
            Some(shadow) => Ok(Some(shadow.clone())),
            None => read_shadow(self.sight.read, self.settings.eid, record),
        }
    }

    /// An update. Whatever becomes of it here, the Asterisk has this value now.
    fn write(&self, record: RecordKey, value: Option<Value>, update: &mut Update) -> Result<(), StoreError> {
        let existing = self.sight.read.record(&record)?;
        let before = self.shadow(&record, update)?.unwrap_or_default();
        let live = existing.as_ref().is_some_and(|stored| !stored.register.is_tombstone());
        let refused = self.over_limits(&record, value.as_ref(), live, update);
        let mut shadow = Shadow {
            agreed: Agreed::on(value.as_ref()),
            owed: (before.owed || before.sent) && !mutant!(EchoForgotten),
            sent: false,
            unsure: before.unsure,
            epoch: self.link.epoch,
            lineage: self.link.lineage,
            asks: self.link.asks,
            past: before.past,
            pushed: before.pushed,
        };
        shadow.held(shadow.agreed);
        if refused || self.repeated {
            // It is no write: the Asterisk holds what lost.
            shadow.owed = existing.is_some() || before.sent;
            if shadow.owed {
                update.owed.push((record.clone(), existing.map(|stored| stored.seq)));
            }
        } else {
            update.writes.push(AdapterWrite { key: record.clone(), value, only_if_absent: false });
        }
        update.touched.insert(record.clone());
        update.shadows.insert(record, shadow);
        Ok(())
    }

    /// An entry of an answer to a refresh request.
    fn answer(&self, record: RecordKey, value: Option<Value>, update: &mut Update) -> Result<(), StoreError> {
        let existing = self.sight.read.record(&record)?;
        let shadow = self.shadow(&record, update)?;
        let agreed = Agreed::on(value.as_ref());
        let known = shadow.filter(|shadow| shadow.agreed != Agreed::Unknown);
        let known = known.as_ref();
        if known.is_some_and(|shadow| shadow.agreed == agreed && shadow.lineage == self.link.lineage) {
            return Ok(());
        }
        // It was asked after the last that went either way, and it has not been restarted since. Its answer may
        // be one to an earlier question, though, that waited behind something else; and while the winner is owed,
        // or it is not sure what became of a push, it may be what was sent. Then only what is not familiar is new.
        let newer = known.is_some_and(|shadow| {
            shadow.lineage == self.link.lineage
                && (shadow.asks < self.link.asks || mutant!(AnswersNeverOld))
                && ((self.quiet && !shadow.owed && !shadow.unsure)
                    || !shadow.is_familiar(agreed)
                    || mutant!(LateAnswers))
        });
        let fills = existing.is_none() && known.is_none();
        let live = existing.as_ref().is_some_and(|stored| !stored.register.is_tombstone());
        if (newer && self.asked) || (fills && self.sight.ready) || mutant!(OldContentWins) {
            if self.over_limits(&record, value.as_ref(), live, update) {
                return Ok(());
            }
            let write = AdapterWrite { key: record.clone(), value, only_if_absent: !newer && !mutant!(OldContentWins) };
            let mut shadow = Shadow {
                agreed,
                owed: true,
                sent: false,
                unsure: known.is_some_and(|shadow| shadow.unsure),
                epoch: self.link.epoch,
                lineage: self.link.lineage,
                asks: self.link.asks,
                past: known.map(|shadow| shadow.past.clone()).unwrap_or_default(),
                pushed: known.map(|shadow| shadow.pushed.clone()).unwrap_or_default(),
            };
            shadow.held(agreed);
            update.writes.push(write);
            update.shadows.insert(record, shadow);
        } else if fills {
            update.unfilled = true;
        } else if existing.is_none() {
            // Deleted so long ago that the tombstone is gone; the shadow still knows it.
            update.owed.push((record, None));
        }
        Ok(())
    }

    /// A delete without entries. The patch deletes the whole family, so what was meant may be less.
    fn family_delete(&self, state: &DbState, update: &mut Update) -> Result<(), StoreError> {
        if !self.settings.allow_family_delete {
            update.refuse(RefusedReason::FamilyDelete, || format!("a delete of the whole family '{}'", state.family));
            update.forbidden = true;
            return Ok(());
        }
        let Ok(family) = Family::new(&state.family) else {
            update.refuse(RefusedReason::Entry, || format!("'{}' is no family", state.family));
            return Ok(());
        };
        let mut keys = Vec::new();
        self.sight.read.scan(Span::Under(&family), &mut |(record, stored)| {
            let ours = record.owner.is_none_or(|owner| owner == self.settings.eid);
            if ours && !stored.register.is_tombstone() {
                keys.extend(record.path.key_in(&family).map(str::to_owned));
            }
            ControlFlow::Continue(())
        })?;
        for key in keys {
            if let Some(record) = self.record(state, &key, update) {
                self.write(record, None, update)?;
            }
        }
        Ok(())
    }

    /// Whether a limit or a quota refuses the write.
    fn over_limits(&self, record: &RecordKey, value: Option<&Value>, live: bool, update: &mut Update) -> bool {
        if let Some(value) = value
            && let Err(error) = self.settings.limits.check(&record.path, value)
        {
            update.refuse(RefusedReason::Entry, || error.to_string());
            return true;
        }
        let quotas = self.settings.quotas;
        let tallies = self.sight.ledger.tallies.iter().filter(|(family, _)| takes_part(self.settings, family));
        let (keys, tombstones) =
            tallies.fold((0, 0), |(keys, tombstones), (_, tally)| (keys + tally.keys, tombstones + tally.tombstones));
        let new = update.writes.iter().filter(|write| write.value.is_some() == value.is_some()).count() as u64;
        let over = match value {
            Some(_) => !live && keys + new >= quotas.keys_max,
            None => tombstones + new >= quotas.tombstones_max,
        };
        if over {
            update.refuse(RefusedReason::Quota, || format!("{}: its quota is used up", record.path));
        }
        over
    }
}

impl Update {
    fn refuse(&mut self, reason: RefusedReason, text: impl FnOnce() -> String) {
        self.refused.entry(reason).or_insert_with(|| (0, text())).0 += 1;
    }
}

/// Whether a shared family of the node is exchanged with this Asterisk.
pub fn takes_part(settings: &AttachmentSettings, family: &Family) -> bool {
    settings.families.is_empty() || settings.families.contains(family)
}
