//! A family that is computed, not stored: a million keys of which a few are absent or have another version.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use kinfolk::core::clock::{Hlc, Stamp};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::{Mark, Mode};
use kinfolk::core::path::{Family, Path, Value};
use kinfolk::core::reconcile::Snapshot;
use kinfolk::core::record::{Class, RecordKey, Stored};
use kinfolk::core::register::{Register, value_hash};
use kinfolk::core::sketch::{Sketch, SketchKey};
use kinfolk::core::storage::{
    Cursor, CursorKey, LocalFloor, Quarantined, Read, Run, RunStart, Span, StoreError, Visit,
};

pub static KEY: LazyLock<SketchKey> = LazyLock::new(|| SketchKey::of_cluster("bench"));

pub fn foo() -> Family {
    Family::new("foo").expect("a family")
}

/// Keys and values of the size that an Asterisk keeps: 23 and 42 bytes.
pub fn record_key(n: usize) -> RecordKey {
    RecordKey::plain(Path::new(&format!("/foo/contact/{n:010}")).expect("a path"))
}

fn value(n: usize, version: u32) -> Value {
    Value::new(&format!("sip:{n:010}@192.0.2.17:5060;round={version:06}")).expect("a value")
}

pub fn stamp(n: usize, version: u32) -> Stamp {
    let ms = 1_790_000_000_000 + u64::from(version) * 1_000 + n as u64 / 1_000;
    let hlc = Hlc::from_parts(ms, n as u64 % 1_000).expect("in range");
    Stamp { hlc, eid: Eid::new([2, 0, 0, 0, 0, 1]), hash: value_hash(Some(&value(n, version))) }
}

#[derive(Clone, Debug)]
pub struct Synthetic {
    pub keys: usize,
    /// Keys with another version, or absent.
    pub other: BTreeMap<usize, Option<u32>>,
    pub sketch: Arc<Sketch>,
}

impl Synthetic {
    pub fn new(keys: usize, other: impl Iterator<Item = (usize, Option<u32>)>) -> Self {
        let other: BTreeMap<_, _> = other.collect();
        let empty = Sketch::build(*KEY, |_| Ok::<_, StoreError>(())).expect("nothing fails");
        let mut set = Self { keys, other, sketch: Arc::new(empty) };
        let build = |add: &mut dyn FnMut(&RecordKey, Stamp, u64)| {
            for n in 0..keys {
                if let Some(version) = set.version(n) {
                    add(&record_key(n), stamp(n, version), n as u64 + 1);
                }
            }
            Ok::<_, StoreError>(())
        };
        let sketch = Sketch::build(*KEY, build).expect("nothing fails");
        set.sketch = Arc::new(sketch);
        set
    }

    pub fn version(&self, n: usize) -> Option<u32> {
        self.other.get(&n).copied().unwrap_or(Some(0))
    }

    pub fn snapshot(&self) -> Snapshot<Self> {
        let (run, head, since, floor) = (Run(1), self.keys as u64, 0, Some(Hlc::ZERO));
        let sketch = self.sketch.clone();
        Snapshot { read: self.clone(), family: foo(), mode: Mode::Global, since, floor, sketch, run, head }
    }

    fn stored(&self, n: usize) -> Option<Stored> {
        let version = self.version(n)?;
        let register = Register::new(Some(value(n, version)), stamp(n, version));
        Some(Stored { register, class: Class::Near, seq: n as u64 + 1 })
    }
}

impl Read for Synthetic {
    fn record(&self, key: &RecordKey) -> Result<Option<Stored>, StoreError> {
        let n = key.path.as_str().rsplit('/').next().and_then(|text| text.parse().ok()).expect("one of ours");
        Ok(self.stored(n))
    }

    fn scan(&self, _: Span<'_>, visit: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        for n in 0..self.keys {
            if let Some(stored) = self.stored(n)
                && visit((record_key(n), stored)).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn feed(&self, _: &str, after: u64, visit: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        for n in after as usize..self.keys {
            if self.version(n).is_some() && visit((n as u64 + 1, Class::Near, record_key(n))) == ControlFlow::Break(())
            {
                break;
            }
        }
        Ok(())
    }

    fn head(&self) -> Result<u64, StoreError> {
        Ok(self.keys as u64)
    }

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
        Ok(BTreeMap::new())
    }

    fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
        Ok(vec![RunStart { run: Run(1), first_seq: 1 }])
    }

    fn cursor(&self, _: &CursorKey) -> Result<Option<Cursor>, StoreError> {
        Ok(None)
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        Ok(BTreeMap::new())
    }

    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
        Ok(BTreeMap::new())
    }

    fn quarantine(&self, _: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
        Ok(())
    }

    fn quarantined(&self, _: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
        Ok(None)
    }

    fn adapter(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }
}
