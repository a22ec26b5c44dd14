//! Nodes with an Asterisk beside each.

use std::net::SocketAddr;
use std::time::Duration;

use kinfolk::cli::demo::fleet;
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::status::{AdapterStatus, AsteriskStatus};
use simulations::asterisk::Settings;
use simulations::asterisk::astdb::AstDb;

use crate::common::patched::{Host, Patched, Wire};
use crate::common::{self, TestFleet};

pub const SHARED: [(&str, &str); 2] = [("foo", "global"), ("uni", "unique")];

/// For what takes long on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// One Asterisk beside each node.
pub struct World {
    pub fleet: TestFleet,
    pub hosts: Vec<Host>,
    /// Where each node listens for SIP.
    pub sip: Vec<SocketAddr>,
}

pub fn free_port() -> SocketAddr {
    fleet::free_port().expect("a free port")
}

pub fn asterisk_eid(node: usize) -> Eid {
    Eid::new([2, 0, 0, 0, 0, 0xa1 + node as u8])
}

/// The sections of node `node`, whose Asterisk is at `asterisk`.
pub fn sections(node: usize, sip: SocketAddr, asterisk: SocketAddr, more: &str) -> String {
    format!(
        "[sip]\nlisten = [\"udp:{sip}\"]\n[[asterisk]]\nname = \"ast{node}\"\neid = \"{}\"\n\
         uri = \"sip:kinfolk@{asterisk}\"\n{more}\n",
        asterisk_eid(node)
    )
}

impl World {
    pub fn new(count: usize, more: &str) -> Self {
        let hosts: Vec<_> = (0..count).map(|_| Host::new()).collect();
        let sip: Vec<_> = (0..count).map(|_| free_port()).collect();
        let mut plan = common::plan(count as u8, &SHARED);
        for (node, planned) in plan.nodes.iter_mut().enumerate() {
            planned.more += &sections(node, sip[node], hosts[node].address(), more);
        }
        Self { fleet: common::start(plan), hosts, sip }
    }

    pub fn settings(&self, node: usize) -> Settings {
        let (own, peer) = (self.hosts[node].address().to_string(), self.sip[node].to_string());
        let name = format!("ast{node}");
        let settings = Settings::new(&name, &asterisk_eid(node).to_string(), &own, &peer, &name);
        let settings = Settings { resource: "kinfolk".into(), seed: common::random(), ..settings };
        settings.sharing("foo", Mode::Global).sharing("uni", Mode::Unique)
    }

    pub fn wire(&self, node: usize, one_way_ms: u64) -> Wire {
        Wire { to: self.sip[node], one_way: Duration::from_millis(one_way_ms), speed: 1 }
    }

    pub fn start(&self, node: usize, db: AstDb, one_way_ms: u64) -> Patched {
        self.hosts[node].start(self.settings(node), db, self.wire(node, one_way_ms))
    }

    pub fn adapter(&self, node: usize) -> AdapterStatus {
        self.fleet.api(node).status().expect("a status").adapter.expect("an adapter")
    }

    pub fn status(&self, node: usize) -> AsteriskStatus {
        self.adapter(node).asterisks.into_iter().next().expect("an Asterisk is attached")
    }

    /// Waits until nothing is under way between the Asterisks and their nodes.
    pub fn settle(&self, asterisks: &[&Patched]) {
        let what = "everything is published";
        let silent = || asterisks.iter().all(|asterisk| asterisk.queued() == 0).then_some(());
        self.fleet.wait_for(what, PATIENCE, silent).expect(what);
        let nodes: Vec<usize> = (0..asterisks.len()).collect();
        self.fleet.wait_equal(&nodes, PATIENCE).expect("the nodes are equal");
        let what = "everything is delivered";
        let settled = || {
            let quiet = (0..asterisks.len()).all(|node| {
                let status = self.status(node);
                status.reachable && status.lag_entries == 0 && status.in_flight == 0
            });
            (quiet && asterisks.iter().all(|asterisk| asterisk.queued() == 0)).then_some(())
        };
        self.fleet.wait_for(what, PATIENCE, settled).expect(what);
    }
}

/// The content of family foo.
pub fn foo(asterisk: &Patched) -> Vec<(String, String)> {
    asterisk.db().tree("foo").map(|(path, value)| (path.to_string(), value.to_string())).collect()
}
