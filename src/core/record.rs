//! Records: a register with its key, and what a store keeps beside it.

use std::fmt;
use std::ops::BitOr;

use serde::{Deserialize, Serialize};

use super::eid::Eid;
use super::path::{Path, PathError, utf8};
use super::register::Register;

/// The key of a record: its path, and for a record of a unique family the server whose copy it is.
///
/// Ordered by path, then owner (none first): the order of stores, scans and exports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    pub path: Path,
    pub owner: Option<Eid>,
}

/// The bytes of a stored record key are not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the record key has no separator, or an owner of {0} bytes instead of 0 or 6")]
    Owner(usize),
    #[error("the record key's path is malformed: {0}")]
    Path(#[from] PathError),
}

impl RecordKey {
    pub fn plain(path: Path) -> Self {
        Self { path, owner: None }
    }

    pub fn owned(owner: Eid, path: Path) -> Self {
        Self { path, owner: Some(owner) }
    }

    /// The path, under its owner's EID if it has one: how another server's copy is shown. It may be too long for a
    /// [`Path`].
    pub fn text_under_eid(&self) -> String {
        match self.owner {
            Some(owner) => format!("/{owner}{}", self.path),
            None => self.path.to_string(),
        }
    }

    /// The path, a NUL (which no path holds), and the owner's six bytes or nothing: as bytes they sort
    /// as the keys do.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.path.as_str().len() + 1 + Eid::BYTES);
        self.append_to(&mut bytes);
        bytes
    }

    /// Writes [`Self::to_bytes`] behind what is there.
    pub fn append_to(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.path.as_str().as_bytes());
        bytes.push(0);
        if let Some(owner) = self.owner {
            bytes.extend_from_slice(&owner.bytes());
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let end = bytes.iter().position(|&b| b == 0).ok_or(KeyError::Owner(0))?;
        let owner = &bytes[end + 1..];
        let owner = match <[u8; Eid::BYTES]>::try_from(owner) {
            Ok(owner) => Some(Eid::new(owner)),
            Err(_) if owner.is_empty() => None,
            Err(_) => return Err(KeyError::Owner(owner.len())),
        };
        Ok(Self { path: Path::new(utf8(&bytes[..end])?)?, owner })
    }
}

/// Where a record comes from, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Written here.
    Local,
    /// From this site.
    Near,
    /// Has crossed between sites. This is the record's crossed mark: it travels with the record.
    Far,
}

impl Class {
    /// The class of a record that arrives: once crossed, always crossed.
    pub fn arriving(crossed_before: bool, source_in_other_site: bool) -> Self {
        if crossed_before || source_in_other_site { Class::Far } else { Class::Near }
    }

    pub fn crossed(self) -> bool {
        self == Class::Far
    }

    const fn bit(self) -> u8 {
        match self {
            Class::Local => 1,
            Class::Near => 2,
            Class::Far => 4,
        }
    }
}

/// A set of classes: the scope that a follower names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Classes(u8);

impl Classes {
    pub const LOCAL: Classes = Classes(1);
    pub const NEAR: Classes = Classes(2);
    pub const FAR: Classes = Classes(4);
    pub const ALL: Classes = Classes(7);
    /// What was written at the source's site: what a relay asks of another site for.
    pub const OF_SITE: Classes = Classes(3);

    pub const fn only(class: Class) -> Self {
        Self(class.bit())
    }

    pub fn contains(self, class: Class) -> bool {
        self.0 & class.bit() != 0
    }

    pub fn intersects(self, other: Classes) -> bool {
        self.0 & other.0 != 0
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    /// None for the empty set and for bits that mean nothing.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (1..=Self::ALL.0).contains(&bits).then_some(Self(bits))
    }
}

impl BitOr for Classes {
    type Output = Classes;
    fn bitor(self, other: Classes) -> Classes {
        Classes(self.0 | other.0)
    }
}

impl<'de> Deserialize<'de> for Classes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bits = u8::deserialize(deserializer)?;
        Self::from_bits(bits).ok_or_else(|| serde::de::Error::custom(format_args!("{bits:#x} is no set of classes")))
    }
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `local+far`, as logs and the status show it.
impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Class::Local, "local"), (Class::Near, "near"), (Class::Far, "far")];
        let mut separator = "";
        for (class, name) in names {
            if self.contains(class) {
                write!(f, "{separator}{name}")?;
                separator = "+";
            }
        }
        Ok(())
    }
}

/// A record as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub register: Register,
    pub class: Class,
    /// The local sequence number at which it stands in the change feed.
    pub seq: u64,
}

/// A record as it travels: what a change feed yields, what an export prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub key: RecordKey,
    pub register: Register,
    pub crossed: bool,
}

impl Record {
    pub fn new(key: RecordKey, stored: Stored) -> Self {
        Self { key, crossed: stored.class.crossed() && !mutant!(CrossedMarkLost), register: stored.register }
    }

    /// About how many bytes it takes in a frame, never less than it really takes.
    pub fn frame_bytes(&self) -> usize {
        const FIXED_BYTES: usize = 64;
        FIXED_BYTES + self.key.path.as_str().len() + self.register.value().map_or(0, |value| value.as_str().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::new(text).expect("a path")
    }

    #[test]
    fn keys_sort_as_their_bytes_do() {
        let a = Eid::new([2, 0, 0, 0, 0, 1]);
        let sorted = [
            RecordKey::plain(path("/foo/a")),
            RecordKey::owned(a, path("/foo/a")),
            RecordKey::owned(Eid::new([0xff; 6]), path("/foo/a")),
            RecordKey::plain(path("/foo/a!")),
            RecordKey::plain(path("/foo/a/b")),
            RecordKey::plain(path("/foo/b")),
        ];
        for pair in sorted.windows(2) {
            assert!(pair[0] < pair[1], "{pair:?}");
            assert!(pair[0].to_bytes() < pair[1].to_bytes(), "{pair:?}");
        }
        for key in &sorted {
            assert_eq!(RecordKey::from_bytes(&key.to_bytes()).as_ref(), Ok(key));
        }
    }

    #[test]
    fn a_malformed_key_says_what_is_wrong_with_it() {
        assert_eq!(RecordKey::from_bytes(b"/foo/a"), Err(KeyError::Owner(0)));
        assert_eq!(RecordKey::from_bytes(b"/foo/a\0xyz"), Err(KeyError::Owner(3)));
        assert_eq!(RecordKey::from_bytes(b"/foo\0"), Err(KeyError::Path(PathError::Shape)));
    }

    #[test]
    fn a_record_that_has_crossed_stays_far() {
        assert_eq!(Class::arriving(true, false), Class::Far);
        assert_eq!(Class::arriving(false, true), Class::Far);
        assert_eq!(Class::arriving(false, false), Class::Near);
    }

    #[test]
    fn a_scope_is_printed_by_its_classes() {
        assert_eq!((Classes::LOCAL | Classes::FAR).to_string(), "local+far");
        assert_eq!(Classes::from_bits(0), None);
        assert_eq!(Classes::from_bits(8), None);
        assert_eq!(Classes::from_bits(7), Some(Classes::ALL));
    }
}
