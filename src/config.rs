//! The configuration of a node: one TOML file, parsed once and checked whole before anything starts.
//!
//! Every limit and address has a default, and its unit in its name or type. An error names the file, the
//! line or key, what is wrong and what to do; all that is wrong is told at once. Nothing is ignored: a
//! key that means nothing to this version is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::core::clock::{Hlc, MAX_CLOCK_DRIFT_DEFAULT_MS, Stamp};
use crate::core::eid::Eid;
use crate::core::family::{Families, Mark, Mode};
use crate::core::floor::{INTERVAL_DEFAULT_MS, Policy, RETENTION_DEFAULT_MS};
use crate::core::message::HELLO_TEXT_MAX_BYTES;
use crate::core::path::{self, Family, PATH_MAX_BYTES, VALUE_MAX_BYTES};
use crate::core::topology::rings::{RING_NODES_MAX, RING_NODES_MAX_DEFAULT};

pub use host_port::HostPort;
pub use log_filter::LogFilter;
pub use sip::{Attached, Listen, Sip};
pub use trust::Who;

mod host_port;
mod log_filter;
pub mod sip;
mod trust;

/// Every key with its default, its unit and a comment.
pub const EXAMPLE: &str = include_str!("config/example.toml");

const MIB: usize = 1 << 20;
/// Ten years.
const RETENTION_MAX_S: u64 = 315_360_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The certificate says the EID; one that is written here and differs refuses the start.
    pub eid: Option<Eid>,
    pub site: String,
    pub data_dir: PathBuf,
    /// What is logged; the variable KINFOLK_LOG goes before it.
    pub log: LogFilter,
    /// Never to be shared globally, besides the built-in families.
    pub never_shared: Vec<Family>,
    pub cluster: Cluster,
    pub tls: Tls,
    /// What other nodes are trusted for at most, by EID or `*`.
    pub allow: BTreeMap<Who, Vec<Family>>,
    pub http: Http,
    /// Marks that are added at start.
    pub shared: BTreeMap<Family, Mode>,
    pub limits: Limits,
    pub clock: Clock,
    pub gossip: Gossip,
    pub tombstones: Tombstones,
    pub verify: Verify,
    pub wan: Wan,
    pub sip: Sip,
    /// The attached patched Asterisks; none: no adapter.
    pub asterisk: Vec<Attached>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    pub name: String,
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    pub advertise: Option<HostPort>,
    pub seeds: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Lists of revoked certificates.
    pub crl: Option<PathBuf>,
    /// Nodes that are refused whatever certificate they show.
    pub revoked: BTreeSet<Eid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    #[serde(deserialize_with = "listen_address")]
    pub listen: SocketAddr,
    pub token_file: Option<PathBuf>,
}

/// They bind local input only, so that nodes with different limits still end equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub path_max_bytes: usize,
    pub value_max_bytes: usize,
    pub store_cache_bytes: usize,
    /// Writes that may wait for the writer.
    pub writer_queue_max: usize,
    /// Writes that may go into one commit.
    pub batch_max: usize,
    pub http_body_max_bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clock {
    #[serde(deserialize_with = "clock_drift")]
    pub max_clock_drift_ms: NonZeroU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gossip {
    pub interval_ms: u64,
    pub dead_node_grace_s: u64,
    /// The same on every node of a cluster.
    pub rings: Rings,
    /// Between the sites, where each has a ring of its own.
    pub wide_interval_ms: u64,
    /// Nodes in one ring. Beyond that new ones are refused.
    pub ring_nodes_max: usize,
}

/// Who gossips with whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rings {
    /// Everyone with everyone.
    #[default]
    One,
    /// Each site in a ring of its own, and one node of each in a ring of sites.
    BySite,
}

/// How long deletions are remembered, and how purge floors rise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tombstones {
    pub retention_s: u64,
    pub floor_interval_s: u64,
}

impl Tombstones {
    /// As the core wants it.
    pub fn policy(&self) -> Policy {
        Policy { retention_ms: self.retention_s * 1_000, interval_ms: self.floor_interval_s * 1_000 }
    }
}

/// When families are compared with other members, and repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Verify {
    pub gap_ms: u64,
    pub settle_ms: u64,
    pub patience_ms: u64,
    /// Reconciles of others that are answered at a time.
    pub served_max: usize,
}

impl Default for Verify {
    fn default() -> Self {
        Self { gap_ms: 2_000, settle_ms: 500, patience_ms: 30_000, served_max: 8 }
    }
}

/// Streams between sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wan {
    /// How long a change waits for others to go with it.
    pub batch_ms: u64,
    /// What the link to one node of another site may carry; 0: no limit.
    pub bytes_per_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            eid: None,
            site: "default".to_string(),
            data_dir: "/var/lib/kinfolk".into(),
            log: LogFilter::default(),
            never_shared: Vec::new(),
            cluster: Cluster::default(),
            tls: Tls::default(),
            allow: BTreeMap::new(),
            http: Http::default(),
            shared: BTreeMap::new(),
            limits: Limits::default(),
            clock: Clock::default(),
            gossip: Gossip::default(),
            tombstones: Tombstones::default(),
            verify: Verify::default(),
            wan: Wan::default(),
            sip: Sip::default(),
            asterisk: Vec::new(),
        }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7480));
        Self { name: "kinfolk".to_string(), listen, advertise: None, seeds: Vec::new() }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            ca: "/etc/kinfolk/ca.pem".into(),
            cert: "/etc/kinfolk/node.pem".into(),
            key: "/etc/kinfolk/node.key".into(),
            crl: None,
            revoked: BTreeSet::new(),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7481)), token_file: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            path_max_bytes: PATH_MAX_BYTES,
            value_max_bytes: VALUE_MAX_BYTES,
            store_cache_bytes: 64 * MIB,
            writer_queue_max: 4_096,
            batch_max: 1_024,
            http_body_max_bytes: 4 * MIB,
        }
    }
}

impl Limits {
    /// The part of the limits that the core checks.
    pub fn of_input(&self) -> path::Limits {
        path::Limits { path_max_bytes: self.path_max_bytes, value_max_bytes: self.value_max_bytes }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self { max_clock_drift_ms: MAX_CLOCK_DRIFT_DEFAULT_MS }
    }
}

impl Default for Wan {
    fn default() -> Self {
        Self { batch_ms: 2, bytes_per_s: 0 }
    }
}

impl Default for Gossip {
    fn default() -> Self {
        Self {
            interval_ms: 300,
            dead_node_grace_s: 900,
            rings: Rings::One,
            wide_interval_ms: 1_000,
            ring_nodes_max: RING_NODES_MAX_DEFAULT,
        }
    }
}

impl Default for Tombstones {
    fn default() -> Self {
        Self { retention_s: RETENTION_DEFAULT_MS / 1_000, floor_interval_s: INTERVAL_DEFAULT_MS / 1_000 }
    }
}

fn listen_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom(format_args!(
            "'{text}' is not an address to listen on: <ip>:<port> is wanted, as in 127.0.0.1:7481 or [::1]:7481"
        ))
    })
}

fn clock_drift<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU64, D::Error> {
    NonZeroU64::new(u64::deserialize(deserializer)?).ok_or_else(|| {
        de::Error::custom(
            "max_clock_drift_ms = 0 would mean no limit, and one server with a wrong clock would then drag every \
             other clock along: write a number of milliseconds, as in 60000",
        )
    })
}

/// One thing that is wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `""` for the top of the file, else the section's name.
    pub section: &'static str,
    pub key: String,
    /// What is wrong and what to do.
    pub what: String,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {error}. `kinfolk config example` prints one to start from", file.display())]
    Read { file: PathBuf, error: std::io::Error },
    #[error("{file}: {error}`kinfolk config example` lists every key with its meaning")]
    Toml { file: String, error: Box<toml::de::Error> },
    #[error("{}", Faults { file, text, faults })]
    Faults { file: String, text: String, faults: Vec<Fault> },
}

struct Faults<'a> {
    file: &'a str,
    text: &'a str,
    faults: &'a [Fault],
}

impl fmt::Display for Faults<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file)?;
            if let Some(line) = line_of(self.text, fault.section, &fault.key) {
                write!(f, ", line {line}")?;
            }
            if !fault.section.is_empty() {
                write!(f, ": [{}]", fault.section)?;
            } else {
                write!(f, ":")?;
            }
            if !fault.key.is_empty() {
                write!(f, " {}", fault.key)?;
            }
            write!(f, ": {}", fault.what)?;
        }
        Ok(())
    }
}

/// The line, from 1, where `key` stands in `[section]`, or where the section begins if the key is not there.
fn line_of(text: &str, section: &str, key: &str) -> Option<usize> {
    let mut current = String::new();
    let mut section_at = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            current = line.trim_matches(['[', ']']).trim().to_string();
            if current == section {
                section_at = section_at.or(Some(index + 1));
            }
        } else if current == section
            && line.split_once('=').is_some_and(|(name, _)| name.trim().trim_matches(['"', '\'']) == key)
        {
            return Some(index + 1);
        }
    }
    section_at
}

impl Config {
    /// Reads and checks a file.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(file).map_err(|error| ConfigError::Read { file: file.to_path_buf(), error })?;
        Self::parse(&file.display().to_string(), &text)
    }

    /// Parses and checks `text`; `file` is its name for errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let file = file.to_string();
        let config: Self = match toml::from_str(text) {
            Ok(config) => config,
            Err(error) => return Err(ConfigError::Toml { file, error: Box::new(error) }),
        };
        let faults = config.faults();
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults { file, text: text.to_string(), faults }) }
    }

    /// `host:port` under which others reach this node.
    pub fn advertise(&self) -> String {
        match &self.cluster.advertise {
            Some(advertise) => advertise.to_string(),
            None => self.cluster.listen.to_string(),
        }
    }

    /// What single values cannot tell: ranges, and keys that need each other.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut say = |section, key: &str, what: String| {
            faults.push(Fault { section, key: key.to_string(), what });
        };
        if self.eid.is_some_and(Eid::is_empty) {
            say("", "eid", "00:00:00:00:00:00 is Asterisk's word for \"no EID\": leave the key out".to_string());
        }
        for (section, key, text) in [("", "site", &self.site), ("cluster", "name", &self.cluster.name)] {
            if text.is_empty() || text.len() > HELLO_TEXT_MAX_BYTES {
                say(section, key, format!("it has {} bytes: write 1 to {HELLO_TEXT_MAX_BYTES}", text.len()));
            }
        }
        self.address_faults(&mut say);
        self.range_faults(&mut say);
        self.shared_faults(&mut say);
        self.sip_faults(&mut say);
        faults
    }

    fn address_faults(&self, say: &mut impl FnMut(&'static str, &str, String)) {
        let (listen, advertise) = (self.cluster.listen, &self.cluster.advertise);
        if advertise.is_none() && listen.ip().is_unspecified() {
            let what = format!(
                "it is missing, and nobody can reach {listen}: write advertise = \"HOST:{}\" with the name or address \
                 under which the other nodes reach this server",
                listen.port()
            );
            say("cluster", "advertise", what);
        }
        if let Some(advertise) = advertise.as_ref().filter(|advertise| advertise.is_unspecified()) {
            let what = format!("nobody can reach {advertise}: write a name or address that the other nodes know");
            say("cluster", "advertise", what);
        }
        let http = self.http.listen;
        if !http.ip().is_loopback() && self.http.token_file.is_none() {
            let what = format!(
                "it is missing, and {http} can be reached from elsewhere: put a long random text into a file of mode \
                 0600 and write token_file = \"FILE\", or listen on 127.0.0.1"
            );
            say("http", "token_file", what);
        }
    }

    fn range_faults(&self, say: &mut impl FnMut(&'static str, &str, String)) {
        let limits = &self.limits;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let ranges = [
            ("limits", "path_max_bytes", count(limits.path_max_bytes), 3, count(PATH_MAX_BYTES)),
            ("limits", "value_max_bytes", count(limits.value_max_bytes), 0, count(VALUE_MAX_BYTES)),
            ("limits", "store_cache_bytes", count(limits.store_cache_bytes), count(MIB), u64::MAX),
            ("limits", "writer_queue_max", count(limits.writer_queue_max), 1, u64::MAX),
            ("limits", "batch_max", count(limits.batch_max), 1, u64::MAX),
            ("limits", "http_body_max_bytes", count(limits.http_body_max_bytes), count(MIB), u64::MAX),
            ("gossip", "interval_ms", self.gossip.interval_ms, 50, 60_000),
            ("gossip", "wide_interval_ms", self.gossip.wide_interval_ms, 50, 60_000),
            ("gossip", "ring_nodes_max", count(self.gossip.ring_nodes_max), 2, count(RING_NODES_MAX)),
            ("gossip", "dead_node_grace_s", self.gossip.dead_node_grace_s, 10, 900),
            ("tombstones", "retention_s", self.tombstones.retention_s, 1, RETENTION_MAX_S),
            ("tombstones", "floor_interval_s", self.tombstones.floor_interval_s, 1, RETENTION_MAX_S),
            ("verify", "gap_ms", self.verify.gap_ms, 100, 3_600_000),
            ("verify", "settle_ms", self.verify.settle_ms, 0, 60_000),
            ("verify", "patience_ms", self.verify.patience_ms, 1_000, 86_400_000),
            ("verify", "served_max", count(self.verify.served_max), 1, 1_024),
            ("wan", "batch_ms", self.wan.batch_ms, 0, 1_000),
        ];
        for (section, key, value, min, max) in ranges {
            if value < min {
                say(section, key, format!("{value} is too little: write {min} or more"));
            } else if value > max {
                say(section, key, format!("{value} is too much: write {max} or less"));
            }
        }
    }

    /// The same rules as for `database put shared`, so that a bad `[shared]` is found before the start.
    fn shared_faults(&self, say: &mut impl FnMut(&'static str, &str, String)) {
        let nowhen = Stamp { hlc: Hlc::ZERO, eid: Eid::new([0; Eid::BYTES]), hash: 0 };
        let mut marks = BTreeMap::new();
        for (family, &mode) in &self.shared {
            let families = Families::new(marks.clone(), self.never_shared.iter().cloned());
            match families.check_share(family, mode, None) {
                Ok(()) => {
                    marks.insert(family.clone(), Mark { mode, since: 0, stamp: nowhen });
                }
                Err(error) => say("shared", family.as_str(), format!("{error}: take it out, or share it otherwise")),
            }
        }
    }
}

#[cfg(test)]
mod tests;
