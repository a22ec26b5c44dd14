//! What a node gossips of itself, as keys and values, and how others' are read.
//!
//! Never here: records. Invariant: what others gossip is bounded and plain, or it is ignored and counted.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::codec::PROTOCOL_VERSION;
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::message::HELLO_TEXT_MAX_BYTES;
use crate::core::path::Family;
use crate::core::sketch::Root;
use crate::core::storage::Run;
use crate::core::topology::Member;

const SITE: &str = "site";
const ADDRESS: &str = "address";
const PROTOCOL: &str = "protocol";
const VERSION: &str = "version";
const RUN: &str = "run";
const HEAD: &str = "head";
const UNREACHED: &str = "unreached";
const FAMILY: &str = "family:";
/// Of a family, the books included: the root of what this node has of it, 32 hex digits.
const ROOT: &str = "root:";

/// Families of one member that are looked at.
const FAMILIES_MAX: usize = 4_096;
/// Members that a node says it cannot reach. Of more, those with the least EIDs are told.
const UNREACHED_MAX: usize = 256;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub site: String,
    pub address: String,
    pub version: String,
    pub run: Run,
    pub head: u64,
    pub families: BTreeMap<Family, Mode>,
    pub roots: BTreeMap<Family, Root>,
    pub unreached: BTreeSet<Eid>,
}

impl Own {
    /// The keys and values, and how many families did not fit into `families_max_bytes`.
    pub fn values(&self, families_max_bytes: usize) -> (BTreeMap<String, String>, usize) {
        let mut values = BTreeMap::from([
            (SITE.to_string(), self.site.clone()),
            (ADDRESS.to_string(), self.address.clone()),
            (PROTOCOL.to_string(), PROTOCOL_VERSION.to_string()),
            (VERSION.to_string(), self.version.clone()),
            (RUN.to_string(), self.run.to_string()),
            (HEAD.to_string(), self.head.to_string()),
            (UNREACHED.to_string(), self.unreached_text()),
        ]);
        let (mut bytes, mut left_out) = (0, 0);
        for (family, mode) in &self.families {
            let shared = (format!("{FAMILY}{family}"), mode.to_string());
            let root = self.roots.get(family).map(|root| root_value(family, *root));
            let pairs = || std::iter::once(&shared).chain(&root);
            let more: usize = pairs().map(|(key, value)| key.len() + value.len()).sum();
            if bytes + more > families_max_bytes {
                left_out += 1;
                continue;
            }
            bytes += more;
            values.extend(pairs().cloned());
        }
        let books = Family::books();
        values.extend(self.roots.get(&books).map(|root| root_value(&books, *root)));
        (values, left_out)
    }

    /// EIDs without their colons, in a row.
    fn unreached_text(&self) -> String {
        let hex = |eid: &Eid| eid.bytes().map(|byte| format!("{byte:02x}")).concat();
        self.unreached.iter().take(UNREACHED_MAX).map(hex).collect()
    }
}

fn root_value(family: &Family, root: Root) -> (String, String) {
    (format!("{ROOT}{family}"), root.to_string())
}

/// Whether a key is one that a node sets, so that stale ones of a former set can be found.
pub(super) fn is_family(key: &str) -> bool {
    key.starts_with(FAMILY) || key.starts_with(ROOT)
}

/// What was read of a member: nothing yet if what it cannot do without has not come, and how many values
/// make no sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub member: Option<Member>,
    pub ignored: u64,
}

/// Reads what `eid` gossips. `live` and `connected` are the caller's to fill in.
pub(super) fn read<'a>(eid: Eid, values: impl Iterator<Item = (&'a str, &'a str)>) -> Read {
    let mut found = Found::default();
    let mut ignored = 0;
    for (key, value) in values {
        if found.take(key, value).is_none() {
            ignored += 1;
        }
    }
    Read { member: found.member(eid), ignored }
}

#[derive(Default)]
struct Found {
    site: Option<String>,
    address: Option<String>,
    protocol_version: Option<u8>,
    version: String,
    run: Option<Run>,
    head: u64,
    families: BTreeMap<Family, Mode>,
    roots: BTreeMap<Family, Root>,
    unreached: BTreeSet<Eid>,
}

impl Found {
    /// None if the value makes no sense. Keys of later versions are passed over.
    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            SITE => self.site = Some(plain(value)?),
            ADDRESS => self.address = Some(address(value)?),
            PROTOCOL => self.protocol_version = Some(value.parse().ok()?),
            VERSION => self.version = plain(value)?,
            RUN => self.run = Some(value.parse().ok()?),
            HEAD => self.head = value.parse().ok()?,
            _ if key.starts_with(ROOT) => {
                if self.roots.len() > FAMILIES_MAX {
                    return None;
                }
                let family = Family::new(key.strip_prefix(ROOT)?).ok()?;
                self.roots.insert(family, value.parse().ok()?);
            }
            UNREACHED => self.unreached = unreached(value)?,
            _ => {
                let Some(family) = key.strip_prefix(FAMILY) else { return Some(()) };
                if self.families.len() >= FAMILIES_MAX {
                    return None;
                }
                self.families.insert(Family::new(family).ok()?, value.parse().ok()?);
            }
        }
        Some(())
    }

    fn member(self, eid: Eid) -> Option<Member> {
        Some(Member {
            eid,
            run: self.run?,
            site: self.site?,
            address: self.address?,
            protocol_version: self.protocol_version?,
            version: self.version,
            families: self.families,
            roots: self.roots,
            head: self.head,
            unreached: self.unreached,
            live: false,
            connected: false,
        })
    }
}

fn plain(text: &str) -> Option<String> {
    let plain = !text.is_empty() && text.len() <= HELLO_TEXT_MAX_BYTES && !text.contains(char::is_control);
    plain.then(|| text.to_string())
}

fn unreached(text: &str) -> Option<BTreeSet<Eid>> {
    const DIGITS: usize = 2 * Eid::BYTES;
    if !text.len().is_multiple_of(DIGITS)
        || text.len() > DIGITS * UNREACHED_MAX
        || !text.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return None;
    }
    let eid = |digits: &[u8]| {
        let mut bytes = [0; Eid::BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Eid::new(bytes))
    };
    text.as_bytes().chunks_exact(DIGITS).map(eid).collect()
}

/// `host:port` with a port to dial.
fn address(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    if host.is_empty() || port == 0 { None } else { plain(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

    fn own() -> Own {
        let families = [("foo", Mode::Global), ("cidname/unique", Mode::Unique)];
        Own {
            site: "here".into(),
            address: "[::1]:7480".into(),
            version: "1.2.3".into(),
            run: Run(0xabc),
            head: 7,
            families: families.iter().map(|(name, mode)| (Family::new(name).expect("a family"), *mode)).collect(),
            roots: [(Family::new("foo").expect("a family"), "ab".parse().expect("a root"))].into(),
            unreached: [Eid::new([2, 0, 0, 0, 0, 0x1f]), Eid::new([0xff; 6])].into(),
        }
    }

    fn pairs(values: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
        values.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    #[test]
    fn what_a_node_says_is_what_others_read() {
        let (values, left_out) = own().values(1_000);
        let Read { member, ignored } = read(EID, pairs(&values));
        let member = member.expect("complete");
        assert_eq!((ignored, left_out), (0, 0));
        assert_eq!((member.site, member.address, member.version), (own().site, own().address, own().version));
        assert_eq!((member.run, member.head, member.families), (own().run, own().head, own().families));
        assert_eq!(member.roots, own().roots);
        assert_eq!(member.unreached, own().unreached);
        assert_eq!(member.protocol_version, PROTOCOL_VERSION);
    }

    #[test]
    fn families_that_do_not_fit_are_left_out_and_counted() {
        let families = |families_max_bytes| {
            let (values, left_out) = own().values(families_max_bytes);
            (values.into_keys().filter(|key| is_family(key)).collect::<Vec<_>>(), left_out)
        };
        let one = vec!["family:cidname/unique".to_owned()];
        assert_eq!(families(82), (one, 1), "a root counts as well");
        assert_eq!((families(83).0.len(), families(83).1), (3, 0));
    }

    #[test]
    fn values_without_sense_are_ignored_and_counted_and_the_others_are_read() {
        let (mut values, _) = own().values(1_000);
        for (key, value) in
            [("head", "-1"), ("family:a//b", "global"), ("family:b", "both"), ("version", "a\nb"), ("unreached", "02")]
        {
            values.insert(key.into(), value.into());
        }
        values.insert("of a later version".into(), "whatever".into());
        let Read { member, ignored } = read(EID, pairs(&values));
        let member = member.expect("complete");
        assert_eq!(ignored, 5);
        assert_eq!((member.head, member.families), (0, own().families));
    }

    #[test]
    fn a_member_of_which_too_little_is_known_is_none_yet() {
        assert_eq!(read(EID, std::iter::empty()), Read::default());
        for bad in ["nowhere", ":7480", "host:0", "host:x"] {
            assert_eq!(read(EID, [("address", bad)].into_iter()).ignored, 1, "{bad}");
        }
    }
}
