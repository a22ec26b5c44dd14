//! Processes that start and end, what users write, and what breaks.

use kinfolk::asterisk::adapter::{AddressBlock, AttachmentSettings, Quotas, Times};
use kinfolk::asterisk::digest::Algorithm;
use kinfolk::core::path::{Limits, Value};
use kinfolk::core::replica::Settings;
use kinfolk::core::storage::Run;

use super::history::{Fault, Write};
use super::*;

impl World {
    pub(super) fn start_node(&mut self, node: usize) -> Checked {
        if self.nodes[node].process.is_some() {
            return Ok(());
        }
        let wall = self.wall();
        self.nodes[node].incarnation += 1;
        let incarnation = u64::from(self.nodes[node].incarnation);
        let run = Run(mix(self.history.seed ^ (node as u64) << 32 ^ incarnation));
        let disk = self.nodes[node].disk.take().expect("it is down");
        let mut replica = Replica::open(disk, Settings::new(node_eid(node)), run, wall).expect("memory opens");
        if incarnation == 1 {
            let share = |(family, mode): &(Family, Mode)| Input::Share { family: family.clone(), mode: *mode };
            replica.handle(self.families.iter().map(share).collect(), wall).expect("memory commits");
        }
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&run.0.to_le_bytes());
        let adapter = Adapter::new(node_eid(node), vec![self.settings_of(node)], seed);
        self.nodes[node].process = Some(Process {
            replica,
            adapter,
            inbox: Vec::new(),
            commit_due: false,
            timer: None,
            cursors: BTreeMap::new(),
        });
        self.adapter(node, Happening::Woken)
    }

    pub(super) fn settings_of(&self, node: usize) -> AttachmentSettings {
        let pbx = &self.pbxes[node];
        let address: SocketAddr = pbx.address().parse().expect("an address");
        AttachmentSettings {
            name: pbx.name().to_owned(),
            eid: pbx.eid(),
            uri: format!("sip:{}@{}", pbx.name(), pbx.address()),
            transport: Transport::Udp,
            from: format!("sip:kinfolk@{}", node_address(node)),
            sent_by: node_address(node),
            listen_user: "kinfolk".into(),
            credentials: self.history.credentials.then(credentials),
            algorithm: Algorithm::Md5,
            accept_from: vec![AddressBlock { address: address.ip(), prefix_bits: 32 }],
            families: Vec::new(),
            allow_family_delete: false,
            quotas: Quotas::default(),
            limits: Limits::default(),
            times: Times::default(),
        }
    }

    pub(super) fn crash(&mut self, victim: Victim, for_ms: Ms) {
        match victim {
            Victim::Node(node) => {
                if let Some(process) = self.nodes[node].process.take() {
                    self.nodes[node].disk = Some(process.replica.into_store());
                    self.nodes[node].incarnation += 1;
                    self.queue.put(self.now + for_ms, Event::StartNode { node });
                }
            }
            Victim::Asterisk(asterisk) => {
                if self.pbxes[asterisk].stop() {
                    self.queue.put(self.now + for_ms, Event::StartAsterisk { asterisk });
                }
            }
        }
    }

    pub(super) fn start_asterisk(&mut self, asterisk: usize) {
        if self.pbxes[asterisk].start() {
            let incarnation = self.pbxes[asterisk].incarnation;
            self.queue.put(self.now + BOOT_MS, Event::Load { asterisk, incarnation });
        }
    }

    pub(super) fn write(&mut self, index: usize) -> Checked {
        let (_, Write { pair, at_asterisk, unique, key, delete }) = self.history.writes[index];
        let (family, key, value) =
            (self.families[usize::from(unique)].0.clone(), format!("k{key}"), format!("v{index}"));
        self.remember(pair, at_asterisk, format!("/{family}/{key}"), (!delete).then(|| value.clone()));
        if at_asterisk {
            let now = self.now;
            if delete {
                self.pbxes[pair].deletes(&family, &key);
                self.asterisk(pair, |pbx| pbx.del(now, family.as_str(), &key));
            } else {
                self.pbxes[pair].puts(&family, &key);
                self.asterisk(pair, |pbx| pbx.put(now, family.as_str(), &key, &value));
            }
            return Ok(());
        }
        let path = Path::of(family.as_str(), &key).expect("a path");
        let input = match delete {
            true => Input::Delete { path },
            false => Input::Put { path, value: Value::new(&value).expect("a value") },
        };
        self.submit(pair, input, Waiting::Nobody);
        Ok(())
    }

    pub(super) fn remember(&mut self, pair: usize, at_asterisk: bool, path: String, value: Option<String>) {
        if at_asterisk && self.pbxes[pair].process.is_none() {
            return;
        }
        let write = at_asterisk.then_some((pair, value));
        let last = self.last_writes.entry(path).or_insert_with(|| write.clone());
        let only = last.as_ref().map(|(pair, _)| *pair) == Some(pair);
        *last = write.filter(|_| only);
    }

    pub(super) fn fault(&mut self, index: usize) {
        let now = self.now;
        match self.history.faults[index].1 {
            Fault::Crash { victim, for_ms } => self.crash(victim, for_ms),
            Fault::OldDatabase { asterisk, for_ms } => {
                if self.pbxes[asterisk].stop() {
                    self.pbxes[asterisk].restore();
                    self.queue.put(now + for_ms, Event::StartAsterisk { asterisk });
                }
            }
            Fault::Backup { asterisk } => self.pbxes[asterisk].back_up(),
            Fault::EdgeCut { pair, for_ms } => self.edges_cut[pair] = now + for_ms,
            Fault::PeerCut { node, for_ms } => self.nodes[node].cut_until = now + for_ms,
            Fault::DiskFull { node, for_ms } => self.nodes[node].full_until = now + for_ms,
        }
    }

    pub(super) fn heal(&mut self) {
        self.healed = true;
        self.history.double_per_mille = 0;
        for pair in 0..self.history.pairs {
            self.edges_cut[pair] = 0;
            (self.nodes[pair].cut_until, self.nodes[pair].full_until) = (0, 0);
            self.queue.put(self.now, Event::StartNode { node: pair });
            self.queue.put(self.now, Event::StartAsterisk { asterisk: pair });
        }
    }
}
