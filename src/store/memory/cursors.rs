//! Cursors in memory: by family and scope, then by source. Of sources there may be a thousand.

use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::record::Classes;
use crate::core::storage::{Cursor, CursorKey};

/// How far a guess may be off.
const GUESS_OFF_MAX: usize = 2;

#[derive(Clone, Debug, Default)]
pub(super) struct Cursors(Vec<Scope>);

#[derive(Clone, Debug)]
struct Scope {
    family: Family,
    classes: Classes,
    /// In the order of EIDs.
    of: Vec<(Eid, Cursor)>,
}

impl Cursors {
    pub fn get(&self, key: &CursorKey) -> Option<Cursor> {
        let scope = self.0.iter().find(|scope| scope.is_of(key))?;
        Some(scope.of[scope.place(key.source).ok()?].1)
    }

    pub fn set(&mut self, key: &CursorKey, cursor: Option<Cursor>) {
        let at = self.0.iter().position(|scope| scope.is_of(key)).unwrap_or_else(|| {
            self.0.push(Scope { family: key.family.clone(), classes: key.classes, of: Vec::new() });
            self.0.len() - 1
        });
        let scope = &mut self.0[at];
        match (scope.place(key.source), cursor) {
            (Ok(place), Some(cursor)) => scope.of[place].1 = cursor,
            (Ok(place), None) => _ = scope.of.remove(place),
            (Err(place), Some(cursor)) => scope.of.insert(place, (key.source, cursor)),
            (Err(_), None) => {}
        }
    }

    /// See `MemoryStore::glance`.
    pub fn glance(&self, step: u8, (family, classes, source): (&Family, Classes, Eid)) -> u64 {
        let scope = self.0.iter().find(|scope| scope.classes == classes && scope.family == *family);
        match scope {
            Some(scope) if step > 1 => scope.place(source).map_or(0, |place| scope.of[place].1.seq),
            Some(scope) => scope.of.len() as u64,
            None => 0,
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (CursorKey, Cursor)> {
        self.0.iter().flat_map(|Scope { family, classes, of }| {
            let key = |source| CursorKey { source, family: family.clone(), classes: *classes };
            of.iter().map(move |(source, cursor)| (key(*source), *cursor))
        })
    }
}

impl Scope {
    fn is_of(&self, key: &CursorKey) -> bool {
        self.classes == key.classes && self.family == key.family
    }

    /// Where a source stands. EIDs are often numbered through: it is looked for first where it would stand then.
    fn place(&self, source: Eid) -> Result<usize, usize> {
        if let [(first, _), .., (last, _)] = &self.of[..]
            && (*first..=*last).contains(&source)
        {
            let (from, to, at) = (number(*first), number(*last), number(source));
            let guess = ((at - from) * (self.of.len() as u128 - 1) / (to - from).max(1)) as usize;
            // Some are missing in between.
            let around = guess.saturating_sub(GUESS_OFF_MAX)..(guess + GUESS_OFF_MAX + 1).min(self.of.len());
            if let Some(off) = self.of[around.clone()].iter().position(|(other, _)| *other == source) {
                return Ok(around.start + off);
            }
        }
        self.of.binary_search_by_key(&source, |(source, _)| *source)
    }
}

fn number(eid: Eid) -> u128 {
    eid.bytes().into_iter().fold(0, |number, byte| number << 8 | u128::from(byte))
}
