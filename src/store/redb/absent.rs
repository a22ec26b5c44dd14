//! What is known not to be in a table, from having looked: whoever fills it in the order of keys asks for one key after
//! another that is not there, and one look tells it of all up to the next one that is.

use std::ops::Bound;

use ::redb::ReadableTable;

use super::from_storage;
use crate::core::storage::StoreError;

/// Misses one behind the other, in order, after which the next key that is there is looked up: it costs a look more.
const MISSES_MIN: u32 = 4;

/// A stretch without a key in one table of a snapshot, which does not change.
#[derive(Default)]
pub(super) struct Absent {
    /// Nothing is there at this key, nor up to `until`.
    from: Vec<u8>,
    until: Until,
    misses: u32,
}

#[derive(Default)]
enum Until {
    /// It is not known.
    #[default]
    Unknown,
    Key(Vec<u8>),
    End,
}

impl Absent {
    /// Whether it is known that this key is not there.
    pub fn has(&self, key: &[u8]) -> bool {
        let before_the_end = match &self.until {
            Until::Unknown => return false,
            Until::Key(until) => key < &until[..],
            Until::End => true,
        };
        before_the_end && key > &self.from[..]
    }

    /// A key was looked for.
    pub fn note(
        &mut self,
        table: &impl ReadableTable<&'static [u8], &'static [u8]>,
        key: &[u8],
        found: bool,
    ) -> Result<(), StoreError> {
        if found || key <= &self.from[..] {
            self.misses = 0;
        }
        self.until = Until::Unknown;
        if found {
            return Ok(());
        }
        self.misses += 1;
        self.from.clear();
        self.from.extend_from_slice(key);
        if self.misses >= MISSES_MIN {
            let behind = (Bound::Excluded(key), Bound::Unbounded);
            self.until = match table.range::<&[u8]>(behind).map_err(from_storage)?.next() {
                Some(row) => Until::Key(row.map_err(from_storage)?.0.value().to_vec()),
                None => Until::End,
            };
        }
        Ok(())
    }
}
