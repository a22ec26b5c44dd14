//! What clients ask of the nodes: writes of every kind, at their moments.

use kinfolk::core::books::Standing;
use kinfolk::core::family::Mode;
use kinfolk::core::path::{BOOKS_FAMILY, Family, MARKS_FAMILY, Path, Value};
use kinfolk::core::record::RecordKey;
use kinfolk::core::replica::{ImportLine, Input};

use crate::check::Checked;
use crate::history::{FamilyIx, HostId, WriteKind};
use crate::host::Waiting;
use crate::world::{Phase, World};

/// Values that a clone's clients write are told from others by their number.
const CLONE_VALUES: usize = 1_000_000;

impl World {
    pub fn on_write(&mut self, index: usize) -> Checked {
        let write = self.history.writes[index].clone();
        if self.phase != Phase::Faults {
            return Ok(());
        }
        if !self.hosts[write.node].up() {
            self.stats.unanswered += 1;
            return Ok(());
        }
        if let Some(input) = self.input(index, write.node, &write.kind) {
            self.submit(write.node, input, Waiting::Client);
        }
        // A clone has clients of its own: in the same moment, with another value.
        let eid = self.hosts[write.node].eid;
        for clone in self.history.nodes.len()..self.hosts.len() {
            if self.hosts[clone].eid == eid
                && self.hosts[clone].up()
                && let Some(input) = self.input(index + CLONE_VALUES, clone, &write.kind)
            {
                self.submit(clone, input, Waiting::Client);
            }
        }
        Ok(())
    }

    fn path(&self, family: FamilyIx, key: usize) -> Path {
        let spec = &self.history.families[family];
        Path::of(&spec.name, &spec.keys[key]).expect("histories name good keys")
    }

    /// A value that no other write bears, of about this size.
    fn value(index: usize, bytes: usize) -> Value {
        let text = format!("w{index}.");
        let filler = bytes.saturating_sub(text.len());
        Value::new(&(text + &"x".repeat(filler))).expect("histories name good sizes")
    }

    fn input(&mut self, index: usize, node: HostId, kind: &WriteKind) -> Option<Input> {
        Some(match *kind {
            WriteKind::Put { family, key, bytes } => {
                Input::Put { path: self.path(family, key), value: Self::value(index, bytes) }
            }
            WriteKind::Delete { family, key } => Input::Delete { path: self.path(family, key) },
            WriteKind::DeleteTree { family } => Input::DeleteTree { tree: self.families[family].0.clone() },
            // The two ways to write a mark.
            WriteKind::Share { family, mode } if index.is_multiple_of(2) || !self.history.checking.each_commit => {
                Input::Share { family: self.families[family].0.clone(), mode }
            }
            WriteKind::Share { family, mode } => {
                Input::Put { path: self.mark_path(family), value: Value::new(mode.mark_text()).expect("a value") }
            }
            WriteKind::Unshare { family } if index.is_multiple_of(2) => {
                Input::Unshare { family: self.families[family].0.clone() }
            }
            WriteKind::Unshare { family } => Input::Delete { path: self.mark_path(family) },
            WriteKind::ImportFresh { family, lines } => self.import_fresh(index, family, lines),
            WriteKind::ImportStamped { family, lines } => return self.import_stamped(family, lines),
            WriteKind::Decommission { subject } => {
                Input::Standing { eid: self.hosts[subject].eid, standing: Standing::Decommissioned }
            }
            WriteKind::Readmit { subject } => {
                Input::Standing { eid: self.hosts[subject].eid, standing: Standing::Admitted }
            }
            WriteKind::Quarantine { release } => {
                let key = self.hosts[node].model.aside.keys().next()?.clone();
                if release { Input::Release { key } } else { Input::Discard { key } }
            }
            WriteKind::Refused { kind } => self.refused(node, kind),
        })
    }

    fn mark_path(&self, family: FamilyIx) -> Path {
        Path::of(MARKS_FAMILY, &self.history.families[family].name).expect("a path")
    }

    fn import_fresh(&self, index: usize, family: FamilyIx, lines: usize) -> Input {
        let lines = lines.min(self.history.families[family].keys.len());
        let line = |key: usize| ImportLine {
            key: RecordKey::plain(self.path(family, key)),
            value: Some(Self::value(index, 10 + key)),
            stamp: None,
        };
        Input::Import { lines: (0..lines).map(line).collect() }
    }

    /// Lines that somebody acknowledged at some time, as an old export would hold them.
    fn import_stamped(&mut self, family: FamilyIx, lines: usize) -> Option<Input> {
        let name = self.families[family].0.clone();
        let of_family: Vec<usize> = (0..self.acknowledged.exported.len())
            .filter(|at| self.acknowledged.exported[*at].0.path.key_in(&name).is_some())
            .collect();
        if of_family.is_empty() {
            return None;
        }
        let lines = (0..lines).map(|_| {
            let (key, value, stamp) = &self.acknowledged.exported[*self.rng.pick(&of_family)];
            ImportLine { key: key.clone(), value: value.clone(), stamp: Some(*stamp) }
        });
        Some(Input::Import { lines: lines.collect() })
    }

    fn refused(&self, node: HostId, kind: u8) -> Input {
        let value = Value::new("refused").expect("a value");
        let path = |text: &str| Path::new(text).expect("a path");
        let shared = Family::new("foo").expect("a family");
        let overlaps = self.hosts[node].model.marks.contains_key(&shared);
        match kind {
            0 => Input::Put { path: path("/02:00:00:00:00:01/foo/k0"), value },
            1 => Input::Put { path: path(&format!("/{BOOKS_FAMILY}/member/x")), value },
            2 => Input::Delete { path: path("/02:00:00:00:00:02/foo/k0") },
            4 if overlaps => Input::Share { family: Family::new("foo/sub").expect("a family"), mode: Mode::Global },
            3 | 4 => Input::Share { family: Family::new("registrar").expect("a family"), mode: Mode::Global },
            _ => Input::DeleteTree { tree: Family::new(MARKS_FAMILY).expect("a family") },
        }
    }
}
