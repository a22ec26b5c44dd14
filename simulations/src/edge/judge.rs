//! What must hold: after each commit, with each answer, and at rest.

use kinfolk::asterisk::header;
use kinfolk::asterisk::message::Message;
use kinfolk::asterisk::rows::read_link;
use kinfolk::core::path::{Path, Value};
use kinfolk::core::replica::Input;
use kinfolk::core::storage::Read;

use super::{World, broken, node_eid, record_of, shown};
use crate::asterisk::Asterisk;
use crate::check::{Check, Checked};

impl World {
    /// Durable before 200.
    pub(super) fn answers_truly(&mut self, node: usize, bytes: &[u8]) -> Checked {
        let Ok(Message::Response(response)) = Message::parse(bytes) else {
            return broken(Check::Wire, format!("node {node} answers what is no response"));
        };
        if response.status != 200 {
            return Ok(());
        }
        self.stats.accepted += 1;
        let call_id = response.headers.get("Call-ID").unwrap_or_default();
        let (cseq, _) = response.headers.get("CSeq").and_then(header::cseq).expect("copied from a good request");
        let process = self.nodes[node].process.as_ref().expect("it has just answered");
        let read = process.replica.read().expect("memory reads");
        let link = read_link(&read, self.pbxes[node].eid()).expect("memory reads").unwrap_or_default();
        // A repeated answer to an earlier request may come after a later one was carried out.
        let durable = link.inbound.call_id != call_id || link.inbound.cseq >= cseq;
        let never =
            link.inbound.call_id.is_empty() || (link.inbound.call_id != call_id && link.inbound.told_stale.is_some());
        if durable && !never {
            return Ok(());
        }
        broken(
            Check::DurableAck,
            format!("node {node} answers 200 to {cseq} of {call_id}, on disk is {:?}", link.inbound),
        )
    }

    /// Every value is written once by its user: two stamps for it mean that something old was taken for new.
    pub(super) fn stamps_once(&mut self, node: usize, inputs: &[Input]) -> Checked {
        let process = self.nodes[node].process.as_ref().expect("it has just committed");
        let read = process.replica.read().expect("memory reads");
        for input in inputs {
            let written: Vec<_> = match input {
                Input::Adapter(adapted) => {
                    adapted.writes.iter().map(|write| (&write.key, write.value.as_ref())).collect()
                }
                _ => continue,
            };
            for (key, value) in written {
                let Some(stored) = read.record(key).expect("memory reads") else {
                    return broken(Check::DurableAck, format!("node {node} wrote {key:?}, and there is nothing"));
                };
                let (Some(value), stamp) = (value.map(Value::as_str), stored.register.stamp()) else { continue };
                if stored.register.value().map(Value::as_str) != Some(value) || stamp.eid != node_eid(node) {
                    continue;
                }
                if let Some(before) = self.stamped.insert(value.to_owned(), stamp)
                    && before != stamp
                {
                    return broken(
                        Check::OneStampOnce,
                        format!("node {node} stamps {key:?} = {value} as {stamp}, it was {before}"),
                    );
                }
            }
        }
        Ok(())
    }

    pub(super) fn judge(&mut self) -> Checked {
        for at in 0..self.pbxes.len() {
            self.stats.dropped_by_asterisk +=
                self.pbxes[at].process.as_ref().map_or(0, |process| process.counts().dropped);
            self.nodes_agree(at)?;
            self.at_rest(at)?;
        }
        Ok(())
    }

    fn nodes_agree(&self, at: usize) -> Checked {
        let eid = self.nodes[0].eid;
        let content = |node: usize| {
            let process = self.nodes[node].process.as_ref().expect("healed");
            shown(&process.replica.read().expect("memory reads"), &self.families, eid)
        };
        let (first, other) = (content(0), content(at));
        if first == other {
            return Ok(());
        }
        broken(Check::Convergence, format!("nodes 0 and {at} differ: {first:?} and {other:?}"))
    }

    /// The Asterisk's database is what its node shows.
    fn at_rest(&mut self, at: usize) -> Checked {
        let pbx = &self.pbxes[at];
        let process = self.nodes[at].process.as_ref().expect("healed");
        let read = process.replica.read().expect("memory reads");
        let wanted = shown(&read, &self.families, pbx.eid());
        let asterisk = pbx.process.as_ref().expect("healed");
        if asterisk.is_dead() {
            return broken(Check::StaysWritable, format!("Asterisk {at} publishes nothing any more"));
        }
        let found = Asterisk::db(asterisk).paths();
        let mut exempt = 0;
        for path in wanted.keys().chain(found.keys()) {
            let (wanted, found) = (wanted.get(path), found.get(path));
            if wanted == found {
                continue;
            }
            if found.is_none() && pbx.may_lack(path) {
                exempt += 1;
                continue;
            }
            let owner = path.starts_with("/uni").then(|| pbx.eid());
            let record = Path::new(path).ok().and_then(|path| read.record(&record_of(&path, owner)).ok().flatten());
            return broken(
                Check::Convergence,
                format!(
                    "Asterisk {at} has {path} = {found:?}, its node {wanted:?} ({record:?}); queued {}",
                    asterisk.queued()
                ),
            );
        }
        let rolled_back = |(path, last): &(&String, &Option<(usize, Option<String>)>)| {
            last.as_ref().is_some_and(|(pair, value)| *pair == at && found.get(*path) != value.as_ref())
        };
        self.stats.rolled_back += self.last_writes.iter().filter(rolled_back).count() as u64;
        self.stats.exempt += exempt;
        Ok(())
    }
}
