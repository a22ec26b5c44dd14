//! What an Asterisk has not got yet, and how a record is told to it: the attached Asterisk as a follower of
//! the change feed.
//!
//! The feed is read in windows. A window's keys are sent in messages of one kind each; when all of them
//! were accepted the cursor moves past it. What is sent is what the record holds at that moment.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use super::body::{self, Body, Content, DbState, Entry, Verb};
use super::event::Sight;
use super::rows::{Agreed, FeedCursor, Link, Shadow, read_shadow};
use super::settings::AttachmentSettings;
use super::update::takes_part;
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::mutant;
use crate::core::path::{Family, Value};
use crate::core::record::RecordKey;
use crate::core::storage::{Read, StoreError};

/// How many places of the feed one window looks at, and how many keys it takes.
const WINDOW_PLACES_MAX: usize = 2_048;
const WINDOW_KEYS_MAX: usize = 256;
/// The longest family and key together that a patched Asterisk stores; under an EID it is less (measured).
const KEY_MAX_BYTES: usize = 253;
const UNIQUE_KEY_MAX_BYTES: usize = 235;

/// A part of one family's feed, and what of it is still to be sent.
#[derive(Clone, Debug)]
pub struct Window {
    pub family: Family,
    pub end: FeedCursor,
    pub keys: VecDeque<RecordKey>,
}

/// What all entries of a message have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    verb: Verb,
    family: String,
    mode: Mode,
    eid: Eid,
}

/// One entry to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub kind: Kind,
    pub key: String,
    pub data: String,
    pub agreed: Agreed,
}

/// Why a record is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untold {
    /// The Asterisk has it.
    NotNeeded,
    /// The patch cannot take it: too long.
    TooLong,
    /// Its family is not shared, or not with this Asterisk.
    NotShared,
}

/// A message of one kind.
#[derive(Clone, Debug)]
pub struct Batch {
    pub body: Body,
    pub told: Vec<(RecordKey, Agreed)>,
}

/// Looks at records for one attachment.
pub struct Teller<'a, R> {
    pub node: Eid,
    pub settings: &'a AttachmentSettings,
    pub sight: Sight<'a, R>,
    pub link: &'a Link,
    pub staged: &'a BTreeMap<RecordKey, Shadow>,
    /// What a message has room for.
    pub body_max_bytes: usize,
}

impl<R: Read> Teller<'_, R> {
    /// The next window with something to send. Cursors of families in which nothing is to be sent are moved.
    pub fn window(&self, cursors: &mut BTreeMap<Family, FeedCursor>) -> Result<Option<Window>, StoreError> {
        let marks = self.sight.ledger.families.marks();
        cursors.retain(|family, cursor| marks.get(family).is_some_and(|mark| mark.since == cursor.since));
        for (family, mark) in marks.iter().filter(|(family, _)| takes_part(self.settings, family)) {
            let mut cursor = cursors.get(family).copied().unwrap_or(FeedCursor { since: mark.since, seq: 0 });
            loop {
                let (keys, end, more) = self.read_feed(family, mark.mode, cursor.seq)?;
                cursor.seq = end;
                if !keys.is_empty() {
                    return Ok(Some(Window { family: family.clone(), end: cursor, keys }));
                }
                cursors.insert(family.clone(), cursor);
                if !more {
                    break;
                }
            }
        }
        Ok(None)
    }

    fn read_feed(
        &self,
        family: &Family,
        mode: Mode,
        after: u64,
    ) -> Result<(VecDeque<RecordKey>, u64, bool), StoreError> {
        let (mut found, mut end, mut places, mut more) = (Vec::new(), after, 0, false);
        self.sight.read.feed(family.top(), after, &mut |(seq, _, record)| {
            if places == WINDOW_PLACES_MAX || found.len() == WINDOW_KEYS_MAX {
                more = true;
                return ControlFlow::Break(());
            }
            places += 1;
            end = seq;
            if record.path.key_in(family).is_some() && mode.owns(&record) {
                found.push(record);
            }
            ControlFlow::Continue(())
        })?;
        let mut keys = VecDeque::new();
        for record in found {
            if self.told(&record)? != Err(Untold::NotNeeded) {
                keys.push_back(record);
            }
        }
        Ok((keys, end, more))
    }

    pub fn shadow(&self, record: &RecordKey) -> Result<Option<Shadow>, StoreError> {
        match self.staged.get(record) {
            Some(shadow) => Ok(Some(shadow.clone())),
            None => read_shadow(self.sight.read, self.settings.eid, record),
        }
    }

    /// How a record is told as it is now, if it must be.
    pub fn told(&self, record: &RecordKey) -> Result<Result<Told, Untold>, StoreError> {
        let Some((family, mark)) = self.sight.ledger.families.of_record(record) else {
            return Ok(Err(Untold::NotShared));
        };
        if !takes_part(self.settings, family) {
            return Ok(Err(Untold::NotShared));
        }
        let stored = self.sight.read.record(record)?;
        let value = stored.as_ref().and_then(|stored| stored.register.value());
        let agreed = Agreed::on(value);
        let shadow = self.shadow(record)?;
        // What was sent and not accepted it may have taken all the same: then what was agreed before holds no more.
        let needed = shadow.is_none_or(|shadow| {
            shadow.owed || shadow.unsure || shadow.epoch != self.link.epoch || shadow.agreed != agreed
        });
        if !needed {
            return Ok(Err(Untold::NotNeeded));
        }
        if value.is_none() && mutant!(DeletesNotTold) {
            return Ok(Err(Untold::NotNeeded));
        }
        let key = record.path.key_in(family).expect("the family covers it");
        Ok(self
            .tell(record, family, mark.mode, key, value)
            .map_or(Err(Untold::TooLong), |(kind, data)| Ok(Told { kind, key: key.to_owned(), data, agreed })))
    }

    /// A copy that another server owns goes under its EID. The Asterisk's own copy, and everything global, goes
    /// under ours, as global: a body with its own EID it would ignore.
    fn tell(
        &self,
        record: &RecordKey,
        family: &Family,
        mode: Mode,
        key: &str,
        value: Option<&Value>,
    ) -> Option<(Kind, String)> {
        let length = family.as_str().len() + key.len();
        let other = record.owner.filter(|owner| *owner != self.settings.eid);
        let plain = |verb, family: String| Kind { verb, family, mode: Mode::Global, eid: self.node };
        let kind = match (other, value) {
            (Some(owner), Some(_)) => {
                Kind { verb: Verb::Put, family: family.to_string(), mode: Mode::Unique, eid: owner }
            }
            // Never a unique delete: it would delete the Asterisk's own key. Its copy of another's key stands
            // under that one's EID, as any key.
            (Some(owner), None) if mutant!(UniqueDelete) => {
                Kind { verb: Verb::Delete, family: family.to_string(), mode, eid: owner }
            }
            (Some(owner), None) => plain(Verb::Delete, format!("{owner}/{family}")),
            (None, Some(_)) => plain(Verb::Put, family.to_string()),
            (None, None) => plain(Verb::Delete, family.to_string()),
        };
        let max = if other.is_some() { UNIQUE_KEY_MAX_BYTES } else { KEY_MAX_BYTES };
        let data = value.map_or(String::new(), |value| value.as_str().to_owned());
        let fits = length <= max && self.body_bytes(&kind) + body::entry_bytes(key, &data) <= self.body_max_bytes;
        fits.then_some((kind, data))
    }

    fn body_bytes(&self, kind: &Kind) -> usize {
        body_of(kind, Vec::new()).print().len()
    }

    /// The next message out of `keys`: its first record that must be told gives the kind, others of the same
    /// kind go with it while there is room. Records that need not be told, or cannot be, are taken out;
    /// gives how many were too long. With `chosen` only these are taken, and only if they are still so.
    pub fn batch(
        &self,
        keys: &mut VecDeque<RecordKey>,
        chosen: Option<&BTreeMap<RecordKey, Agreed>>,
    ) -> Result<(Option<Batch>, u64), StoreError> {
        let (mut kind, mut entries, mut told, mut too_long) = (None, Vec::new(), Vec::new(), 0);
        let mut bytes = 0;
        let mut kept = VecDeque::with_capacity(keys.len());
        for record in keys.drain(..) {
            match self.told(&record)? {
                Err(Untold::TooLong) => too_long += 1,
                Err(_) => {}
                Ok(one) => {
                    let wanted = chosen.is_none_or(|chosen| chosen.get(&record) == Some(&one.agreed));
                    let room = bytes + body::entry_bytes(&one.key, &one.data) <= self.body_max_bytes;
                    if wanted && kind.is_none() {
                        bytes = self.body_bytes(&one.kind);
                        kind = Some(one.kind.clone());
                    }
                    if wanted && kind.as_ref() == Some(&one.kind) && (room || entries.is_empty()) {
                        bytes += body::entry_bytes(&one.key, &one.data);
                        entries.push(Entry { key: one.key, data: Some(one.data) });
                        told.push((record.clone(), one.agreed));
                    }
                    kept.push_back(record);
                }
            }
        }
        *keys = kept;
        let batch = kind.map(|kind| Batch { body: body_of(&kind, entries), told });
        Ok((batch, too_long))
    }

    /// How many places of the feed lie beyond the cursors: what the Asterisk has not got yet, at most.
    pub fn lag(&self, at_most: u64) -> Result<u64, StoreError> {
        let mut lag = 0;
        for (family, mark) in self.sight.ledger.families.marks() {
            if !takes_part(self.settings, family) {
                continue;
            }
            let cursor = self.link.cursors.get(family).filter(|cursor| cursor.since == mark.since);
            self.sight.read.feed(family.top(), cursor.map_or(0, |cursor| cursor.seq), &mut |(_, _, record)| {
                lag += u64::from(family.covers(&record.path));
                if lag < at_most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(lag)
    }
}

fn body_of(kind: &Kind, entries: Vec<Entry>) -> Body {
    let Kind { verb, family, mode, eid } = kind.clone();
    Body { eid, content: Content::State(DbState { verb, family, mode, entries: Some(entries) }) }
}

/// The body of an initial PUBLISH: it says nothing, so that a late copy of it can do no harm.
pub fn nothing(node: Eid, family: Option<&Family>) -> Body {
    let family = family.map_or_else(|| "kinfolk".to_owned(), Family::to_string);
    body_of(&Kind { verb: Verb::Put, family, mode: Mode::Global, eid: node }, Vec::new())
}
