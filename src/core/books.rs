//! The cluster's own books as typed records: who is a member, who shares what, and how far each member is with a
//! family's purge floor (`floor`).
//!
//! Entries are records of the internal family [`BOOKS_FAMILY`], replicated like everything else; the text in each is
//! for people as well. What does not read as an entry is kept and means nothing: a newer program may have written it.
//!
//! | path under the family | value |
//! | --- | --- |
//! | `member/<eid>` | `admitted` or `decommissioned` |
//! | `share/<eid>/<family>` | the mode; a tombstone when the family is unshared |
//! | `round/<family>` | `<target> <collector> <run> <eid>=<share>,…` |
//! | `step/<eid>/<family>` | `<target> <collector> <run> <step>` |
//! | `floor/<family>` | the purge floor |
//!
//! Moments are raw numbers of the hybrid clock. A round names its members by the stamp of their sharing, so that a
//! member that has unshared and shared again is not taken for the one that was named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::clock::Hlc;
use super::eid::Eid;
use super::path::{BOOKS_FAMILY, Family, Path, PathError, Value};
use super::register::Register;
use super::storage::Run;

/// Whether a member counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Admitted,
    /// It is not waited for any more: what it wrote and nobody has is doubtful.
    Decommissioned,
}

impl Standing {
    pub const ALL: [Standing; 2] = [Standing::Admitted, Standing::Decommissioned];

    /// The standing of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|standing| standing.as_str() == name)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Standing::Admitted => "admitted",
            Standing::Decommissioned => "decommissioned",
        }
    }
}

/// What identifies a round: the moment that it would raise the floor to, and the run of the collector that began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundId {
    pub target: Hlc,
    pub collector: Eid,
    pub run: Run,
}

/// A round towards a higher floor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    pub id: RoundId,
    /// Who takes part, by the moments of their sharing.
    pub members: BTreeMap<Eid, Hlc>,
}

/// How far a member is in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It stamps nothing at or below the target any more.
    Promised,
    /// After all had promised, the collector has had everything of it.
    Gathered,
    /// After all had gathered, it has had everything of the collector.
    Spread,
}

impl Step {
    pub const ALL: [Step; 3] = [Step::Promised, Step::Gathered, Step::Spread];

    pub fn as_str(self) -> &'static str {
        match self {
            Step::Promised => "promised",
            Step::Gathered => "gathered",
            Step::Spread => "spread",
        }
    }
}

/// A member's note of how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    pub round: RoundId,
    pub step: Step,
}

/// One entry of the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Member(Eid, Standing),
    Share(Eid, Family),
    Round(Family, Round),
    Step(Eid, Family, Note),
    Floor(Family, Hlc),
}

impl Entry {
    /// Where it stands. An error: the family's name is so long that nothing can be noted about it, and so its
    /// floor never rises.
    pub fn path(&self) -> Result<Path, PathError> {
        let text = match self {
            Entry::Member(eid, _) => format!("member/{eid}"),
            Entry::Share(eid, family) => format!("share/{eid}/{family}"),
            Entry::Round(family, _) => format!("round/{family}"),
            Entry::Step(eid, family, _) => format!("step/{eid}/{family}"),
            Entry::Floor(family, _) => format!("floor/{family}"),
        };
        Path::of(BOOKS_FAMILY, &text)
    }

    fn value_text(&self) -> String {
        match self {
            Entry::Member(_, standing) => standing.as_str().to_string(),
            Entry::Share(..) => "shared".to_string(),
            Entry::Round(_, round) => {
                let members: Vec<_> =
                    round.members.iter().map(|(eid, share)| format!("{eid}={}", share.as_u64())).collect();
                format!("{} {}", round.id, members.join(","))
            }
            Entry::Step(_, _, note) => format!("{} {}", note.round, note.step.as_str()),
            Entry::Floor(_, floor) => floor.as_u64().to_string(),
        }
    }

    /// What it says. A round of so many members that they do not fit cannot be begun.
    pub fn value(&self) -> Result<Value, PathError> {
        Value::new(&self.value_text())
    }

    /// The entry that a record is, if it is one.
    pub fn read(path: &Path, value: &Value) -> Option<Entry> {
        let key = path.key_in(&Family::books())?;
        let (kind, rest) = key.split_once('/')?;
        let value = value.as_str();
        Some(match kind {
            "member" => Entry::Member(rest.parse().ok()?, Standing::named(value)?),
            "share" => {
                let (eid, family) = eid_and_family(rest)?;
                Entry::Share(eid, family)
            }
            "round" => Entry::Round(Family::new(rest).ok()?, read_round(value)?),
            "step" => {
                let (eid, family) = eid_and_family(rest)?;
                let (round, step) = value.rsplit_once(' ')?;
                let step = Step::ALL.into_iter().find(|known| known.as_str() == step)?;
                Entry::Step(eid, family, Note { round: round.parse().ok()?, step })
            }
            "floor" => Entry::Floor(Family::new(rest).ok()?, moment(value)?),
            _ => return None,
        })
    }
}

fn eid_and_family(rest: &str) -> Option<(Eid, Family)> {
    let (eid, family) = rest.split_once('/')?;
    Some((eid.parse().ok()?, Family::new(family).ok()?))
}

fn moment(text: &str) -> Option<Hlc> {
    text.parse().ok().and_then(Hlc::from_u64)
}

fn read_round(value: &str) -> Option<Round> {
    let (id, members) = value.rsplit_once(' ')?;
    let member = |text: &str| {
        let (eid, share) = text.split_once('=')?;
        Some((eid.parse().ok()?, moment(share)?))
    };
    Some(Round { id: id.parse().ok()?, members: members.split(',').map(member).collect::<Option<_>>()? })
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.target.as_u64(), self.collector, self.run)
    }
}

impl FromStr for RoundId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(' ');
        let mut next = || parts.next().ok_or(());
        let target = moment(next()?).ok_or(())?;
        let collector = next()?.parse().map_err(|_| ())?;
        let run = next()?.parse().map_err(|_| ())?;
        if parts.next().is_some() { Err(()) } else { Ok(Self { target, collector, run }) }
    }
}

/// What the books say of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyBooks {
    /// Who shares it, by the moment of the sharing.
    pub sharers: BTreeMap<Eid, Hlc>,
    pub round: Option<Round>,
    pub notes: BTreeMap<Eid, Note>,
    /// The greatest that the books ever said.
    pub floor: Hlc,
    /// What they say now.
    pub written_floor: Hlc,
}

/// The books, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    pub members: BTreeMap<Eid, Standing>,
    families: BTreeMap<Family, FamilyBooks>,
}

static NOTHING: FamilyBooks = FamilyBooks {
    sharers: BTreeMap::new(),
    round: None,
    notes: BTreeMap::new(),
    floor: Hlc::ZERO,
    written_floor: Hlc::ZERO,
};

impl Books {
    /// Takes a record of the books in, also a tombstone of one. Gives the family whose floor it tells.
    pub fn note(&mut self, path: &Path, register: &Register) -> Option<Family> {
        let Some(value) = register.value() else {
            self.forget(path);
            return None;
        };
        let hlc = register.stamp().hlc;
        match Entry::read(path, value)? {
            Entry::Member(eid, standing) => _ = self.members.insert(eid, standing),
            Entry::Share(eid, family) => _ = self.of_mut(family).sharers.insert(eid, hlc),
            Entry::Round(family, round) => self.of_mut(family).round = Some(round),
            Entry::Step(eid, family, note) => _ = self.of_mut(family).notes.insert(eid, note),
            // It never goes down, whatever a collector that has lost its past may say.
            Entry::Floor(family, floor) => {
                let books = self.of_mut(family.clone());
                books.floor = books.floor.max(floor);
                books.written_floor = floor;
                return Some(family);
            }
        }
        None
    }

    /// Only sharings are ever taken back.
    fn forget(&mut self, path: &Path) {
        let key = path.key_in(&Family::books()).and_then(|key| key.strip_prefix("share/"));
        if let Some((eid, family)) = key.and_then(eid_and_family) {
            self.of_mut(family).sharers.remove(&eid);
        }
    }

    fn of_mut(&mut self, family: Family) -> &mut FamilyBooks {
        self.families.entry(family).or_default()
    }

    pub fn of(&self, family: &Family) -> &FamilyBooks {
        self.families.get(family).unwrap_or(&NOTHING)
    }

    pub fn is_admitted(&self, eid: Eid) -> bool {
        self.members.get(&eid) == Some(&Standing::Admitted)
    }

    pub fn decommissioned(&self) -> BTreeSet<Eid> {
        let gone = self.members.iter().filter(|(_, standing)| **standing == Standing::Decommissioned);
        gone.map(|(eid, _)| *eid).collect()
    }

    /// Whether a family is exchanged with this member: only if it is known to share it. So whoever has something of the
    /// family stands in the books of whoever it has it from, and is waited for before a floor rises.
    pub fn knows(&self, family: &Family, member: Eid) -> bool {
        *family == Family::books() || self.of(family).sharers.contains_key(&member)
    }

    /// The admitted members that share a family, by the moment of their sharing.
    pub fn sharers<'a>(&'a self, family: &Family) -> impl Iterator<Item = (Eid, Hlc)> + use<'a> {
        let sharers = self.of(family).sharers.iter();
        sharers.map(|(eid, share)| (*eid, *share)).filter(|(eid, _)| self.is_admitted(*eid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::Stamp;
    use crate::core::register::value_hash;

    fn eid(last: u8) -> Eid {
        Eid::new([2, 0, 0, 0, 0, last])
    }

    fn at(ms: u64) -> Hlc {
        Hlc::from_parts(1_790_000_000_000 + ms, 7).expect("in range")
    }

    fn family(name: &str) -> Family {
        Family::new(name).expect("a family")
    }

    fn id() -> RoundId {
        RoundId { target: at(1), collector: eid(1), run: Run(0xab) }
    }

    fn entries() -> Vec<(Entry, &'static str, &'static str)> {
        let round = Round { id: id(), members: [(eid(1), at(0)), (eid(2), at(3))].into() };
        let note = Note { round: id(), step: Step::Gathered };
        vec![
            (Entry::Member(eid(1), Standing::Decommissioned), "member/02:00:00:00:00:01", "decommissioned"),
            (Entry::Share(eid(2), family("a/b")), "share/02:00:00:00:00:02/a/b", "shared"),
            (
                Entry::Round(family("a/b"), round),
                "round/a/b",
                "360428286775394311 02:00:00:00:00:01 00000000000000ab \
                 02:00:00:00:00:01=360428286771200007,02:00:00:00:00:02=360428286783782919",
            ),
            (
                Entry::Step(eid(2), family("a/b"), note),
                "step/02:00:00:00:00:02/a/b",
                "360428286775394311 02:00:00:00:00:01 00000000000000ab gathered",
            ),
            (Entry::Floor(family("a/b"), at(1)), "floor/a/b", "360428286775394311"),
        ]
    }

    #[test]
    fn each_entry_of_the_books_has_this_form() {
        for (entry, path, value) in entries() {
            let (found_path, found_value) = (entry.path().expect("short"), entry.value().expect("short"));
            assert_eq!((found_path.as_str(), found_value.as_str()), (&*format!("/{BOOKS_FAMILY}/{path}"), value));
            assert_eq!(Entry::read(&found_path, &found_value), Some(entry));
        }
    }

    #[test]
    fn what_is_no_entry_means_nothing() {
        for (path, value) in [
            ("member/02:00:00:00:00:01", "retired"),
            ("member/x", "admitted"),
            ("other/x", "1"),
            ("floor/foo", "-1"),
            ("floor/foo", "18446744073709551615"),
            ("step/02:00:00:00:00:01/foo", "1 02:00:00:00:00:01 00ab leapt"),
            ("round/foo", "1 02:00:00:00:00:01 00ab more 02:00:00:00:00:01=1"),
            ("round/foo", "1 02:00:00:00:00:01 00ab "),
        ] {
            let path = Path::of(BOOKS_FAMILY, path).expect("a path");
            assert_eq!(Entry::read(&path, &Value::new(value).expect("a value")), None, "{path} {value}");
        }
    }

    fn record(entry: &Entry, ms: u64, there: bool) -> (Path, Register) {
        let value = there.then(|| entry.value().expect("short"));
        let stamp = Stamp { hlc: at(ms), eid: eid(9), hash: value_hash(value.as_ref()) };
        (entry.path().expect("short"), Register::new(value, stamp))
    }

    #[test]
    fn a_floor_never_goes_down_and_a_sharing_can_be_taken_back() {
        let mut books = Books::default();
        let mut note = |entry: Entry, ms, there| {
            let (path, register) = record(&entry, ms, there);
            books.note(&path, &register);
            books.clone()
        };
        note(Entry::Member(eid(2), Standing::Admitted), 1, true);
        note(Entry::Share(eid(3), family("foo")), 1, true);
        let shared = note(Entry::Share(eid(2), family("foo")), 2, true);
        assert_eq!(shared.sharers(&family("foo")).collect::<Vec<_>>(), [(eid(2), at(2))], "a member that is admitted");
        let unshared = note(Entry::Share(eid(2), family("foo")), 3, false);
        assert_eq!(unshared.sharers(&family("foo")).count(), 0);
        note(Entry::Floor(family("foo"), at(5)), 4, true);
        let lowered = note(Entry::Floor(family("foo"), at(4)), 5, true);
        assert_eq!(lowered.of(&family("foo")).floor, at(5));
        assert_eq!(lowered.of(&family("bar")).floor, Hlc::ZERO);
    }
}
