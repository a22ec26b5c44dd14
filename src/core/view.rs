//! What a node shows of its store: paths as an Asterisk would see them.
//!
//! Unique records of this server stand at their plain path, those of others under their owner's EID; the
//! marks stand under `/__asterisk_shared_family`; tombstones and the cluster's books are not seen.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::clock::Stamp;
use super::eid::Eid;
use super::family::{Families, Mode};
use super::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path, Value};
use super::record::{Record, RecordKey, Stored};
use super::storage::{Read, Span, StoreError};

/// A value found under a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: Path,
    pub value: Value,
    pub stamp: Stamp,
    pub owner: Option<Eid>,
}

/// One row of a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub path: Path,
    pub value: Value,
    /// How the family it belongs to is shared here.
    pub shared: Option<Mode>,
}

/// What stands at a path, and why it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    pub key: RecordKey,
    pub stored: Option<Stored>,
    /// The shared family that it takes part in.
    pub shared: Option<(Family, Mode)>,
}

/// A consistent view through the eyes of one node.
pub struct View<R> {
    pub read: R,
    pub families: Arc<Families>,
    pub eid: Eid,
}

impl<R: Read> View<R> {
    pub fn get(&self, path: &Path) -> Result<Option<Found>, StoreError> {
        match path.top() {
            BOOKS_FAMILY => return Ok(None),
            MARKS_FAMILY => return Ok(self.mark(path)),
            _ => {}
        }
        let key = self.key_at(path);
        let found = self.read.record(&key)?.and_then(|stored| {
            let value = stored.register.value()?.clone();
            Some(Found { path: path.clone(), value, stamp: stored.register.stamp(), owner: key.owner })
        });
        Ok(found)
    }

    /// The record that is seen at `path`.
    fn key_at(&self, path: &Path) -> RecordKey {
        match path.split_eid() {
            Some((owner, rest)) => RecordKey::owned(owner, rest),
            None => match self.families.covering(path) {
                Some((_, mark)) if mark.mode == Mode::Unique => RecordKey::owned(self.eid, path.clone()),
                _ => RecordKey::plain(path.clone()),
            },
        }
    }

    /// What stands at `path`, a tombstone too, and how its family is shared. None for what is no record: the
    /// marks, and the cluster's books.
    pub fn explain(&self, path: &Path) -> Result<Option<Explained>, StoreError> {
        if matches!(path.top(), BOOKS_FAMILY | MARKS_FAMILY) {
            return Ok(None);
        }
        let key = self.key_at(path);
        let stored = self.read.record(&key)?;
        let shared = self.families.of_record(&key).map(|(family, mark)| (family.clone(), mark.mode));
        Ok(Some(Explained { key, stored, shared }))
    }

    fn mark(&self, path: &Path) -> Option<Found> {
        let family = path.marked_family()?.ok()?;
        let mark = self.families.mark(&family)?;
        let value = Value::new(mark.mode.mark_text()).expect("a good value");
        Some(Found { path: path.clone(), value, stamp: mark.stamp, owner: None })
    }

    /// Everything, or what is at or under `tree`, by path.
    pub fn tree(&self, tree: Option<&Family>) -> Result<Vec<Entry>, StoreError> {
        let mut entries = Vec::new();
        let mut owner_wanted = None;
        let mut span = Span::All;
        let rest;
        if let Some(tree) = tree {
            match tree.split_eid() {
                Some((owner, under)) => {
                    owner_wanted = Some(owner);
                    rest = under;
                    span = rest.as_ref().map_or(Span::All, Span::Under);
                }
                None => span = Span::Under(tree),
            }
        }
        let plain_only = matches!(span, Span::Under(_)) && owner_wanted.is_none();
        self.read.scan(span, &mut |(key, stored)| {
            let wanted = match owner_wanted {
                Some(owner) => key.owner == Some(owner),
                None => !plain_only || key.owner.is_none_or(|owner| owner == self.eid),
            };
            if wanted {
                entries.extend(self.entry(key, stored, owner_wanted.is_some()));
            }
            ControlFlow::Continue(())
        })?;
        if owner_wanted.is_none() {
            entries.extend(self.mark_entries().filter(|entry| tree.is_none_or(|tree| tree.covers(&entry.path))));
        }
        entries.sort();
        Ok(entries)
    }

    /// Entries of any family whose key ends with the segments of `key` (Asterisk's `database showkey`).
    pub fn keys(&self, key: &Family) -> Result<Vec<Entry>, StoreError> {
        let suffix = format!("/{key}");
        let mut entries = self.tree(None)?;
        entries.retain(|entry| entry.path.as_str().ends_with(&suffix) && entry.path.as_str().len() > suffix.len());
        Ok(entries)
    }

    /// Records of shared families, or with `all` also local ones, tombstones included, by path and owner.
    pub fn export(&self, all: bool, visit: &mut dyn FnMut(Record) -> ControlFlow<()>) -> Result<(), StoreError> {
        self.read.scan(Span::All, &mut |(key, stored)| {
            let wanted = key.path.top() != BOOKS_FAMILY && (all || self.families.of_record(&key).is_some());
            if wanted { visit(Record::new(key, stored)) } else { ControlFlow::Continue(()) }
        })
    }

    /// The row of a record, unless it is a tombstone or of the books. `under_eid` asks for the path under
    /// the owner's EID also where the owner is this node.
    fn entry(&self, key: RecordKey, stored: Stored, under_eid: bool) -> Option<Entry> {
        if key.path.top() == BOOKS_FAMILY {
            return None;
        }
        let value = stored.register.value()?.clone();
        let shared = self.families.of_record(&key).map(|(_, mark)| mark.mode);
        let path = match key.owner {
            Some(owner) if under_eid || owner != self.eid => match Path::new(&key.text_under_eid()) {
                Ok(path) => path,
                // The plain path just fits the protocol's maximum and the EID before it does not: it can be
                // shared and exported, but not shown.
                Err(_) => return None,
            },
            _ => key.path,
        };
        Some(Entry { path, value, shared })
    }

    fn mark_entries(&self) -> impl Iterator<Item = Entry> {
        self.families.marks().iter().filter_map(|(family, mark)| {
            let path = Path::of(MARKS_FAMILY, family.as_str()).ok()?;
            Some(Entry { path, value: Value::new(mark.mode.mark_text()).ok()?, shared: None })
        })
    }
}
