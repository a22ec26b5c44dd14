//! The shared families of this node: marks, and the rules for setting them (design: "share / unshare").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::clock::{Hlc, Stamp};
use super::eid::Eid;
use super::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path};
use super::record::RecordKey;

/// How a family is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One key space for all.
    Global,
    /// Every server writes its own copy, kept under its EID.
    Unique,
}

impl Mode {
    /// Whether a record of a family shared in this mode is owned as it must be.
    pub fn owns(self, key: &RecordKey) -> bool {
        key.owner.is_some() == (self == Mode::Unique)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Global => "global",
            Mode::Unique => "unique",
        }
    }

    /// As the patch persists it in `/__asterisk_shared_family/<family>`.
    pub fn mark_text(self) -> &'static str {
        match self {
            Mode::Global => "GLOBAL",
            Mode::Unique => "UNIQUE",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = UnknownMode;

    /// In either case, as Asterisk's own command line takes it.
    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        [Mode::Global, Mode::Unique]
            .into_iter()
            .find(|mode| text.eq_ignore_ascii_case(mode.as_str()))
            .ok_or_else(|| UnknownMode(text.chars().take(64).collect()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Unknown share type: '{0}'")]
pub struct UnknownMode(pub String);

/// The mark of a shared family. Local to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub mode: Mode,
    /// The sequence number of the sharing. A cursor from before it knows nothing of what happened while
    /// the family was not shared, and is answered "compare".
    pub since: u64,
    /// When it was shared, and by whom.
    pub stamp: Stamp,
}

/// Why a family was not shared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    #[error("family '{0}' is shared already")]
    AlreadyShared(Family),
    #[error("family '{0}' overlaps the shared family '{1}'")]
    Overlaps(Family, Family),
    #[error("family '{0}' is shared as {1} by the live member {2}")]
    OtherMode(Family, Mode, Eid),
    #[error("family '{0}' must never be shared")]
    Never(Family),
    #[error("family '{0}' must never be shared globally")]
    NeverGlobally(Family),
}

/// Families that hold what belongs to one server only: their content would break another one. From what
/// a real Asterisk keeps there; the configuration may add to it.
pub const NEVER_SHARED_GLOBALLY: [&str; 5] = ["registrar", "IAX", "SIP", "pbx", "dundi"];

/// The shared families of one node, and those it must never share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Families {
    marks: BTreeMap<Family, Mark>,
    never_globally: BTreeSet<Family>,
    floors: BTreeMap<Family, Floor>,
}

/// A shared family's purge floor as this node has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    pub adopted: Hlc,
    /// A higher one is being adopted: until that is done the family is not exchanged.
    pub rising: bool,
}

impl Families {
    /// With the families of [`NEVER_SHARED_GLOBALLY`] and those that the configuration adds.
    pub fn new(marks: BTreeMap<Family, Mark>, never_globally: impl IntoIterator<Item = Family>) -> Self {
        let built_in = NEVER_SHARED_GLOBALLY.iter().map(|name| Family::new(name).expect("a good name"));
        Self { marks, never_globally: built_in.chain(never_globally).collect(), floors: BTreeMap::new() }
    }

    pub fn marks(&self) -> &BTreeMap<Family, Mark> {
        &self.marks
    }

    pub fn mark(&self, family: &Family) -> Option<Mark> {
        self.marks.get(family).copied()
    }

    /// How a family is exchanged with other nodes: its mark, and the books, which everyone shares.
    pub fn mode_of(&self, family: &Family) -> Option<Mode> {
        if family.as_str() == BOOKS_FAMILY {
            return Some(Mode::Global);
        }
        self.mark(family).map(|mark| mark.mode)
    }

    /// The sharing in force, by the sequence number of its mark; 0 for the books, which are always shared.
    pub fn since_of(&self, family: &Family) -> u64 {
        self.mark(family).map_or(0, |mark| mark.since)
    }

    /// The purge floor at which a family is exchanged; none while a higher one is being adopted. Others may have
    /// another: nothing is exchanged with them until both have the same.
    pub fn floor_of(&self, family: &Family) -> Option<Hlc> {
        let floor = self.floors.get(family).copied().unwrap_or_default();
        (!floor.rising).then_some(floor.adopted)
    }

    pub(super) fn set_floor(&mut self, family: &Family, floor: Floor) {
        self.floors.insert(family.clone(), floor);
    }

    /// What this node exchanges with others, the books included.
    pub fn shared(&self) -> BTreeMap<Family, Mode> {
        let marks = self.marks.iter().map(|(family, mark)| (family.clone(), mark.mode));
        marks.chain([(Family::books(), Mode::Global)]).collect()
    }

    /// The shared family that covers `path`, if one does. At most one can: they do not overlap.
    pub fn covering(&self, path: &Path) -> Option<(&Family, Mark)> {
        Family::prefixes_of(path)
            .find_map(|prefix| self.marks.get_key_value(prefix).map(|(family, mark)| (family, *mark)))
    }

    /// The shared family that a record takes part in. Copies that others own may be left from a time when the
    /// family was shared in the other mode: they are this node's own affair.
    pub fn of_record(&self, key: &RecordKey) -> Option<(&Family, Mark)> {
        self.covering(&key.path).filter(|(_, mark)| mark.mode.owns(key))
    }

    /// Whether `family` may be shared as `mode`; `elsewhere` is a live member's other mode, if there is one.
    pub fn check_share(&self, family: &Family, mode: Mode, elsewhere: Option<(Eid, Mode)>) -> Result<(), ShareError> {
        let top = family.top();
        if top == MARKS_FAMILY || top == BOOKS_FAMILY || top.parse::<Eid>().is_ok() {
            return Err(ShareError::Never(family.clone()));
        }
        if mode == Mode::Global && self.never_globally.iter().any(|never| never.overlaps(family)) {
            return Err(ShareError::NeverGlobally(family.clone()));
        }
        if self.marks.contains_key(family) {
            return Err(ShareError::AlreadyShared(family.clone()));
        }
        if let Some(other) = self.marks.keys().find(|other| other.overlaps(family) && !mutant!(OverlapAllowed)) {
            return Err(ShareError::Overlaps(family.clone(), other.clone()));
        }
        match elsewhere {
            Some((eid, other)) if other != mode => Err(ShareError::OtherMode(family.clone(), other, eid)),
            _ => Ok(()),
        }
    }

    pub(super) fn insert(&mut self, family: Family, mark: Mark) {
        self.marks.insert(family, mark);
    }

    pub(super) fn remove(&mut self, family: &Family) {
        self.marks.remove(family);
        self.floors.remove(family);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Hlc;

    const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

    fn family(name: &str) -> Family {
        Family::new(name).expect("a family")
    }

    fn families(shared: &[(&str, Mode)]) -> Families {
        let stamp = Stamp { hlc: Hlc::ZERO, eid: EID, hash: 0 };
        let marks = shared.iter().map(|(name, mode)| (family(name), Mark { mode: *mode, since: 0, stamp })).collect();
        Families::new(marks, [family("secret")])
    }

    #[test]
    fn a_family_is_shared_once_only_whatever_the_mode() {
        let families = families(&[("foo", Mode::Global)]);
        for mode in [Mode::Global, Mode::Unique] {
            assert_eq!(families.check_share(&family("foo"), mode, None), Err(ShareError::AlreadyShared(family("foo"))));
        }
    }

    #[test]
    fn overlapping_families_are_refused_in_both_directions() {
        let families = families(&[("foo/bar", Mode::Global)]);
        for name in ["foo", "foo/bar/baz"] {
            assert_eq!(
                families.check_share(&family(name), Mode::Global, None),
                Err(ShareError::Overlaps(family(name), family("foo/bar")))
            );
        }
        assert_eq!(families.check_share(&family("foo/barn"), Mode::Global, None), Ok(()));
    }

    #[test]
    fn another_mode_at_a_live_member_is_refused() {
        let families = families(&[]);
        let elsewhere = Some((EID, Mode::Unique));
        assert_eq!(
            families.check_share(&family("foo"), Mode::Global, elsewhere),
            Err(ShareError::OtherMode(family("foo"), Mode::Unique, EID))
        );
        assert_eq!(families.check_share(&family("foo"), Mode::Unique, elsewhere), Ok(()));
    }

    #[test]
    fn what_belongs_to_one_server_is_never_shared_globally() {
        let families = families(&[]);
        for name in ["registrar", "registrar/contact", "IAX", "SIP", "pbx", "dundi", "secret"] {
            assert_eq!(
                families.check_share(&family(name), Mode::Global, None),
                Err(ShareError::NeverGlobally(family(name)))
            );
            assert_eq!(families.check_share(&family(name), Mode::Unique, None), Ok(()));
        }
        for name in [MARKS_FAMILY, BOOKS_FAMILY, "02:00:00:00:00:01"] {
            assert_eq!(families.check_share(&family(name), Mode::Unique, None), Err(ShareError::Never(family(name))));
        }
    }

    #[test]
    fn the_family_that_covers_a_path_is_found_at_any_depth() {
        let families = families(&[("foo/bar", Mode::Unique)]);
        let covering =
            |path: &str| families.covering(&Path::new(path).expect("a path")).map(|(family, _)| family.to_string());
        assert_eq!(covering("/foo/bar/a/b"), Some("foo/bar".to_string()));
        assert_eq!(covering("/foo/bar"), None, "the path of the family itself is not in it: it has no key");
        assert_eq!(covering("/foo/a"), None);
    }

    #[test]
    fn a_mode_is_read_in_either_case() {
        assert_eq!("GLOBAL".parse(), Ok(Mode::Global));
        assert_eq!("Unique".parse(), Ok(Mode::Unique));
        assert_eq!(
            "local".parse::<Mode>().map_err(|error| error.to_string()),
            Err("Unknown share type: 'local'".to_string())
        );
    }
}
