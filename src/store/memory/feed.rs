//! The change feed in memory: by first segment, class and sequence number.
//!
//! The classes are kept apart so that a follower looks at those only that it asked for: in a mesh of a thousand
//! nodes nearly every entry came from others, and all followers ask for local ones.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::delta::{Delta, merged};
use crate::core::record::{Class, Classes, RecordKey};
use crate::core::storage::Visit;

const CLASSES: [Class; 3] = [Class::Local, Class::Near, Class::Far];

fn place_of(class: Class) -> usize {
    match class {
        Class::Local => 0,
        Class::Near => 1,
        Class::Far => 2,
    }
}

/// What is committed.
#[derive(Clone, Debug, Default)]
pub(super) struct Feed {
    by_top: BTreeMap<Box<str>, [BTreeMap<u64, RecordKey>; 3]>,
}

#[derive(Debug)]
enum Move {
    In,
    Out,
}

/// What a transaction changes: each change names its record, whether the entry comes or goes.
#[derive(Debug)]
pub(super) struct FeedChanges(Delta<(Class, u64), (RecordKey, Move)>);

const NAMED: &str = "a change of the feed is never taken back, it is changed again";

impl FeedChanges {
    pub const NONE: Self = Self(Delta::NONE);

    pub fn put(&mut self, key: &RecordKey, class: Class, seq: u64) {
        self.0.set((class, seq), Some((key.clone(), Move::In)));
    }

    pub fn take_out(&mut self, key: &RecordKey, class: Class, seq: u64) {
        self.0.set((class, seq), Some((key.clone(), Move::Out)));
    }

    pub fn apply(self, feed: &mut Feed) {
        for ((class, seq), change) in self.0.into_changes() {
            let (key, moves) = change.expect(NAMED);
            let top = key.path.top();
            match (moves, feed.by_top.get_mut(top)) {
                (Move::In, Some(entries)) => _ = entries[place_of(class)].insert(seq, key),
                (Move::Out, Some(entries)) => _ = entries[place_of(class)].remove(&seq),
                (Move::In, None) => {
                    let mut entries: [BTreeMap<u64, RecordKey>; 3] = Default::default();
                    let top = top.into();
                    entries[place_of(class)].insert(seq, key);
                    feed.by_top.insert(top, entries);
                }
                (Move::Out, None) => {}
            }
        }
    }

    /// The entries of one class from `first` on, in order.
    fn of_class<'a>(
        &'a self,
        feed: &'a Feed,
        top: &'a str,
        class: Class,
        first: u64,
    ) -> impl Iterator<Item = (u64, &'a RecordKey)> {
        let old = feed.by_top.get(top).into_iter().flat_map(move |entries| entries[place_of(class)].range(first..));
        let changes = self.0.changes((class, first)..=(class, u64::MAX));
        let changes = changes.map(|((_, seq), change)| (*seq, change.expect(NAMED)));
        let new = changes.filter(move |(_, (key, _))| key.path.top() == top);
        let new = new.map(|(seq, (key, moves))| (seq, matches!(moves, Move::In).then_some(key)));
        merged(old.map(|(seq, key)| (*seq, key)), new)
    }

    /// Visits the entries after a sequence number, of these classes, this transaction's changes included. Ends at
    /// `looks_max` of them and tells the last one's number, unless there was nothing more to see.
    pub fn visit(
        &self,
        feed: &Feed,
        (top, classes, after): (&str, Classes, u64),
        looks_max: usize,
        visit: Visit<'_, (u64, Class, RecordKey)>,
    ) -> Option<u64> {
        let first = after.checked_add(1)?;
        let mut streams = CLASSES.map(|class| {
            let wanted = classes.contains(class).then(|| self.of_class(feed, top, class, first));
            wanted.into_iter().flatten().peekable()
        });
        let mut looked_at = 0;
        loop {
            let next = streams.iter_mut().zip(CLASSES).filter_map(|(stream, class)| Some((stream.peek()?.0, class)));
            let (seq, class) = next.min()?;
            let (_, key) = streams[place_of(class)].next().expect("just seen");
            if let ControlFlow::Break(()) = visit((seq, class, key.clone())) {
                return None;
            }
            looked_at += 1;
            if looked_at == looks_max {
                return Some(seq);
            }
        }
    }
}
