//! Writes of an attached server, together with the adapter's rows that tell of them.

use super::{Batch, Step};
use crate::core::clock::Hlc;
use crate::core::path::Family;
use crate::core::replica::{Adapted, AdapterWrite, Outcome, Refusal};
use crate::core::storage::Write;

/// More writes to one key than a message can hold: so many stamps must be left over, so that no write is
/// refused after another one was made.
const WRITES_MAX: u64 = 1 << 16;

impl<W: Write> Batch<'_, W> {
    pub(super) fn adapter(&mut self, adapted: Adapted) -> Step<Outcome> {
        for write in &adapted.writes {
            step!(self.check_adapter_write(write)?);
        }
        let mut written = 0;
        for AdapterWrite { key, value, only_if_absent } in adapted.writes {
            let existing = self.write.record(&key)?;
            if existing.is_some() && only_if_absent {
                continue;
            }
            let counter = if value.is_some() { &mut self.counts.puts } else { &mut self.counts.deletes };
            *counter += 1;
            self.write_over(&key, existing.as_ref(), value)?.expect("checked before the first write");
            written += 1;
        }
        for (key, row) in adapted.rows {
            self.write.set_adapter(&key, row.as_deref())?;
            self.changed = true;
        }
        Ok(Ok(Outcome::Adapted { written }))
    }

    /// Everything that can refuse a write, before anything is written.
    fn check_adapter_write(&self, AdapterWrite { key, value, .. }: &AdapterWrite) -> Step<()> {
        step!(super::writable(&key.path));
        let Some((family, mark)) = self.families().covering(&key.path) else {
            let top = Family::new(key.path.top()).expect("a segment of a path");
            return Ok(Err(Refusal::NotShared(top)));
        };
        if !mark.mode.owns(key) {
            return Ok(Err(Refusal::OutsideFamily { path: key.path.clone(), family: family.clone() }));
        }
        if let Some(value) = value {
            step!(self.settings.limits.check(&key.path, value));
        }
        let last = self.write.record(key)?.map_or(Hlc::ZERO, |stored| stored.register.stamp().hlc);
        let last = last.max(self.seen(family).bound());
        let room = Hlc::MAX.as_u64() - last.as_u64() >= WRITES_MAX;
        Ok(if room { Ok(()) } else { Err(Refusal::StampExhausted) })
    }
}

#[cfg(test)]
mod tests {
    use crate::core::eid::Eid;
    use crate::core::family::Mode;
    use crate::core::path::{Family, Path, Value};
    use crate::core::record::RecordKey;
    use crate::core::replica::{Adapted, AdapterWrite, Input, Outcome, Refusal, Replica, Settings};
    use crate::core::storage::{Read, Run, StoreError};
    use crate::store::memory::MemoryStore;

    const NOW: u64 = 1_790_000_000_000;
    const NODE: Eid = Eid::new([2, 0, 0, 0, 0, 1]);
    const SERVER: Eid = Eid::new([2, 0, 0, 0, 0, 9]);

    fn replica() -> Replica<MemoryStore> {
        let mut replica = Replica::open(MemoryStore::default(), Settings::new(NODE), Run(1), NOW).expect("opens");
        for (name, mode) in [("foo", Mode::Global), ("uni", Mode::Unique)] {
            let share = Input::Share { family: Family::new(name).expect("a family"), mode };
            replica.handle(vec![share], NOW).expect("commits");
        }
        replica
    }

    fn write(owner: Option<Eid>, path: &str, value: Option<&str>) -> AdapterWrite {
        let key = RecordKey { owner, path: Path::new(path).expect("a path") };
        AdapterWrite { key, value: value.map(|value| Value::new(value).expect("a value")), only_if_absent: false }
    }

    fn adapted(writes: Vec<AdapterWrite>) -> Input {
        Input::Adapter(Adapted { writes, rows: vec![(b"row".to_vec(), Some(b"told".to_vec()))] })
    }

    fn one(replica: &mut Replica<MemoryStore>, input: Input) -> Outcome {
        replica.handle(vec![input], NOW).expect("commits").outcomes.remove(0)
    }

    fn row(replica: &Replica<MemoryStore>) -> Option<Vec<u8>> {
        replica.read().expect("reads").adapter(b"row").expect("reads")
    }

    fn value(replica: &Replica<MemoryStore>, owner: Option<Eid>, path: &str) -> Option<Option<String>> {
        let key = RecordKey { owner, path: Path::new(path).expect("a path") };
        let stored = replica.read().expect("reads").record(&key).expect("reads")?;
        Some(stored.register.value().map(ToString::to_string))
    }

    #[test]
    fn writes_of_an_attached_server_and_its_rows_are_one_transaction() {
        let mut replica = replica();
        let writes = vec![
            write(None, "/foo/k", Some("v")),
            write(Some(SERVER), "/uni/k", Some("own")),
            write(None, "/foo/never", None),
        ];
        replica.store_mut().fail_next_commit(StoreError::Full);
        assert_eq!(replica.handle(vec![adapted(writes.clone())], NOW), Err(StoreError::Full));
        assert_eq!((value(&replica, None, "/foo/k"), row(&replica)), (None, None));
        assert_eq!(one(&mut replica, adapted(writes)), Outcome::Adapted { written: 3 });
        assert_eq!(value(&replica, None, "/foo/k"), Some(Some("v".into())));
        assert_eq!(value(&replica, Some(SERVER), "/uni/k"), Some(Some("own".into())), "under the server's own EID");
        assert_eq!(value(&replica, None, "/foo/never"), Some(None), "a tombstone, though nothing was there");
        assert_eq!(row(&replica), Some(b"told".to_vec()));
        let tally = replica.ledger().tallies[&Family::new("foo").expect("a family")];
        assert_eq!((tally.keys, tally.tombstones), (1, 1));
    }

    #[test]
    fn if_one_write_is_refused_nothing_is_changed() {
        let mut replica = replica();
        let good = write(None, "/foo/k", Some("v"));
        let bad = [
            write(None, "/bar/k", Some("v")),
            write(None, "/uni/k", Some("v")),
            write(Some(SERVER), "/foo/k", Some("v")),
            write(None, "/02:00:00:00:00:07/foo/k", Some("v")),
            write(None, "/__kinfolk/member/x", Some("v")),
        ];
        for bad in bad {
            let outcome = one(&mut replica, adapted(vec![good.clone(), bad]));
            assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            assert_eq!((value(&replica, None, "/foo/k"), row(&replica)), (None, None));
        }
        let outcome = one(&mut replica, adapted(vec![write(None, "/bar/k", Some("v"))]));
        assert_eq!(outcome, Outcome::Refused(Refusal::NotShared(Family::new("bar").expect("a family"))));
    }

    #[test]
    fn what_only_fills_leaves_registers_and_tombstones_alone() {
        let mut replica = replica();
        one(&mut replica, adapted(vec![write(None, "/foo/held", Some("v")), write(None, "/foo/deleted", None)]));
        let fill = |path| AdapterWrite { only_if_absent: true, ..write(None, path, Some("old")) };
        let fills = vec![fill("/foo/held"), fill("/foo/deleted"), fill("/foo/absent")];
        assert_eq!(one(&mut replica, adapted(fills)), Outcome::Adapted { written: 1 });
        assert_eq!(value(&replica, None, "/foo/held"), Some(Some("v".into())));
        assert_eq!(value(&replica, None, "/foo/deleted"), Some(None));
        assert_eq!(value(&replica, None, "/foo/absent"), Some(Some("old".into())));
    }
}
