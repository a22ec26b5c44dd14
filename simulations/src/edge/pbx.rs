//! One Asterisk of the edge world: its process, its database while it is down, and what it could not tell.

use std::collections::BTreeSet;

use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::path::Family;

use super::history::{History, Ms};
use super::{Keys, credentials, node_address};
use crate::asterisk::astdb::AstDb;
use crate::asterisk::{Asterisk, Settings};
use crate::rng::mix;

pub struct Pbx {
    settings: Settings,
    eid: Eid,
    seed: u64,
    pub process: Option<Asterisk>,
    pub incarnation: u32,
    pub timer: Option<Ms>,
    db: AstDb,
    backup: AstDb,
    /// Paths whose last write here is a delete that the node may never hear of.
    untold: Keys,
    /// Deletes that wait for their answer.
    pending: Keys,
    dropped: u64,
}

impl Pbx {
    pub fn new(at: usize, history: &History) -> Self {
        let eid = Eid::new([2, 0, 0, 0, 2, at as u8]);
        let (name, address) = (format!("ast{at}"), format!("10.1.0.{}:5060", at + 1));
        let mut settings = Settings::new(&name, &eid.to_string(), &address, &node_address(at), "kinfolk")
            .sharing("foo", Mode::Global)
            .sharing("uni", Mode::Unique);
        if history.credentials {
            settings.outbound_auth = Some(credentials());
            settings.endpoint_auth = Some(credentials());
        }
        Self {
            settings,
            eid,
            seed: mix(history.seed ^ 0xa57 ^ (at as u64) << 40),
            process: None,
            incarnation: 0,
            timer: None,
            db: AstDb::default(),
            backup: AstDb::default(),
            untold: BTreeSet::new(),
            pending: BTreeSet::new(),
            dropped: 0,
        }
    }

    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub fn address(&self) -> &str {
        &self.settings.sent_by
    }

    pub fn eid(&self) -> Eid {
        self.eid
    }

    pub fn start(&mut self) -> bool {
        if self.process.is_some() {
            return false;
        }
        self.incarnation += 1;
        self.settings.seed = mix(self.seed ^ u64::from(self.incarnation));
        self.process = Some(Asterisk::new(self.settings.clone(), std::mem::take(&mut self.db)));
        self.dropped = 0;
        true
    }

    /// The process ends; what it had not told is not told any more.
    pub fn stop(&mut self) -> bool {
        let Some(process) = self.process.take() else { return false };
        self.db = process.into_db();
        self.incarnation += 1;
        self.timer = None;
        self.untold.append(&mut self.pending);
        true
    }

    pub fn back_up(&mut self) {
        self.backup = self.process.as_ref().map_or(&self.db, Asterisk::db).clone();
    }

    pub fn restore(&mut self) {
        self.db = self.backup.clone();
    }

    pub fn deletes(&mut self, family: &Family, key: &str) {
        if self.process.is_some() {
            self.pending.insert(format!("/{family}/{key}"));
        }
    }

    pub fn puts(&mut self, family: &Family, key: &str) {
        if self.process.is_some() {
            let path = format!("/{family}/{key}");
            self.pending.remove(&path);
            self.untold.remove(&path);
        }
    }

    /// After anything happened: a drop may have been of any delete that waits; an empty queue has none.
    pub fn settle(&mut self) {
        let Some(process) = &self.process else { return };
        let dropped = process.counts().dropped;
        if dropped > self.dropped {
            self.dropped = dropped;
            self.untold.extend(self.pending.iter().cloned());
        }
        if process.queued() == 0 {
            self.pending.clear();
        }
    }

    /// Whether its last delete of this path may never have been told.
    pub fn may_lack(&self, path: &str) -> bool {
        self.untold.contains(path)
    }
}
