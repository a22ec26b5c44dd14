//! What a node gossips of itself, as keys and values, and how others' are read.
//!
//! Never here: records. Invariant: what others gossip is bounded and plain, or it is ignored and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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
/// Whether it has been there for long enough to be relay before others. Who does not say is taken to have been.
const SETTLED: &str = "settled";
const YES: &str = "yes";
const NO: &str = "no";
const FAMILY: &str = "family:";
/// Of a family, the books included: the root of what this node has of it, 32 hex digits.
const ROOT: &str = "root:";
/// Nodes of sites that this node did not hear of: whom a speaker might meet.
const MET: &str = "met";
/// What is told of another node, by its EID: one line a value, as that node would say it, after a line on whether it lives.
const OF: &str = "of:";
const LIVE: &str = "live";
const DEAD: &str = "dead";

/// Families of one member that are looked at.
const FAMILIES_MAX: usize = 4_096;
/// Members that a node says it cannot reach. Of more, those with the least EIDs are told.
const UNREACHED_MAX: usize = 256;
/// Other nodes of which one node may tell.
const CLAIMS_MAX: usize = 4_096;
/// Nodes of unknown sites of which one node may tell.
const MET_MAX: usize = 16;

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
    pub settled: bool,
    /// Connected nodes of sites of which nothing is heard, and their addresses.
    pub met: BTreeMap<Eid, String>,
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
            (SETTLED.to_string(), if self.settled { YES } else { NO }.to_string()),
            (MET.to_string(), self.met_text()),
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

    fn met_text(&self) -> String {
        let line = |(eid, address): (&Eid, &String)| format!("{eid} {address}");
        self.met.iter().take(MET_MAX).map(line).collect::<Vec<_>>().join("\n")
    }

    /// What that node would say, as far as it is told on: not how far it is, which changes all the time.
    fn of(member: &Member) -> Self {
        let Member { site, address, version, run, families, unreached, settled, .. } = member.clone();
        let (roots, met) = (BTreeMap::new(), BTreeMap::new());
        let families = Arc::unwrap_or_clone(families);
        Self { site, address, version, run, head: 0, families, roots, unreached, settled, met }
    }

    /// EIDs without their colons, in a row.
    fn unreached_text(&self) -> String {
        let hex = |eid: &Eid| eid.bytes().map(|byte| format!("{byte:02x}")).concat();
        self.unreached.iter().take(UNREACHED_MAX).map(hex).collect()
    }
}

/// Whether a key is one that a node takes back when it is not among its values any more.
pub(super) fn is_taken_back(key: &str) -> bool {
    [FAMILY, ROOT, OF].iter().any(|prefix| key.starts_with(prefix))
}

/// What is told of another node, with the roots that are told with it.
pub(super) fn claim(member: &Member, roots: &BTreeMap<Family, Root>, families_max_bytes: usize) -> (String, String) {
    let (values, _) = Own { roots: roots.clone(), ..Own::of(member) }.values(families_max_bytes);
    let told = values.iter().filter(|(key, _)| ![HEAD, MET, PROTOCOL].contains(&key.as_str()));
    let mut text = if member.live { LIVE } else { DEAD }.to_string();
    let protocol = (&PROTOCOL.to_string(), &member.protocol_version.to_string());
    for (key, value) in told.chain([protocol]) {
        text += &format!("\n{key}\t{value}");
    }
    (format!("{OF}{}", member.eid), text)
}

/// None if it makes no sense.
fn read_claim(eid: Eid, text: &str) -> Option<Member> {
    let mut lines = text.split('\n');
    let live = match lines.next()? {
        LIVE => true,
        DEAD => false,
        _ => return None,
    };
    let mut found = Found::default();
    for (key, value) in lines.filter_map(|line| line.split_once('\t')) {
        if key != MET && !key.starts_with(OF) {
            found.take(key, value)?;
        }
    }
    Some(Member { live, ..found.member(eid)? })
}

fn root_value(family: &Family, root: Root) -> (String, String) {
    (format!("{ROOT}{family}"), root.to_string())
}

/// What was read of a member: nothing yet if what it cannot do without has not come, and how many values
/// make no sense.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub member: Option<Member>,
    /// What it tells of others.
    pub claims: Vec<Member>,
    pub met: BTreeMap<Eid, String>,
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
    let (claims, met) = (std::mem::take(&mut found.claims), std::mem::take(&mut found.met));
    Read { member: found.member(eid), claims, met, ignored }
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
    unsettled: bool,
    met: BTreeMap<Eid, String>,
    claims: Vec<Member>,
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
            SETTLED if value == YES => self.unsettled = false,
            SETTLED if value == NO => self.unsettled = true,
            SETTLED => return None,
            MET => self.met = met(value)?,
            _ if key.starts_with(OF) => {
                if self.claims.len() >= CLAIMS_MAX {
                    return None;
                }
                let eid = key.strip_prefix(OF)?.parse().ok()?;
                self.claims.push(read_claim(eid, value)?);
            }
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
            families: self.families.into(),
            roots: self.roots,
            head: self.head,
            unreached: self.unreached,
            settled: !self.unsettled,
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

fn met(text: &str) -> Option<BTreeMap<Eid, String>> {
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.is_empty()).collect();
    if lines.len() > MET_MAX {
        return None;
    }
    let one = |line: &&str| {
        let (eid, at) = line.split_once(' ')?;
        Some((eid.parse().ok()?, address(at)?))
    };
    lines.iter().map(one).collect()
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
            settled: false,
            met: [(Eid::new([2, 0, 0, 0, 9, 9]), "node.example:7480".to_string())].into(),
        }
    }

    fn pairs(values: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
        values.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    #[test]
    fn what_a_node_says_is_what_others_read() {
        let (values, left_out) = own().values(1_000);
        let Read { member, ignored, met, claims } = read(EID, pairs(&values));
        let member = member.expect("complete");
        assert_eq!((ignored, left_out, claims), (0, 0, Vec::new()));
        assert_eq!(met, own().met);
        assert_eq!((member.site, member.address, member.version), (own().site, own().address, own().version));
        assert_eq!((member.run, member.head, &*member.families), (own().run, own().head, &own().families));
        assert_eq!(member.roots, own().roots);
        assert_eq!((&member.unreached, member.settled), (&own().unreached, own().settled));
        assert_eq!(member.protocol_version, PROTOCOL_VERSION);
    }

    #[test]
    fn families_that_do_not_fit_are_left_out_and_counted() {
        let families = |families_max_bytes| {
            let (values, left_out) = own().values(families_max_bytes);
            (values.into_keys().filter(|key| is_taken_back(key)).collect::<Vec<_>>(), left_out)
        };
        let one = vec!["family:cidname/unique".to_owned()];
        assert_eq!(families(82), (one, 1), "a root counts as well");
        assert_eq!((families(83).0.len(), families(83).1), (3, 0));
    }

    #[test]
    fn what_is_told_of_another_node_is_what_it_says_but_for_how_far_it_is() {
        let (values, _) = own().values(1_000);
        let said = read(EID, pairs(&values)).member.expect("complete");
        for live in [true, false] {
            let told = Member { live, protocol_version: 7, ..said.clone() };
            let (key, text) = claim(&told, &told.roots, 1_000);
            let read = read(Eid::new([2, 0, 0, 0, 0, 2]), [(key.as_str(), text.as_str())].into_iter());
            assert_eq!((read.ignored, read.claims), (0, vec![Member { head: 0, ..told }]));
        }
    }

    #[test]
    fn claims_within_claims_and_claims_without_sense_tell_nothing() {
        let (values, _) = own().values(1_000);
        let (_, inner) = claim(&read(EID, pairs(&values)).member.expect("complete"), &BTreeMap::new(), 1_000);
        let nested = format!("{inner}\nof:02:00:00:00:00:03\t{}", inner.replace(['\n', '\t'], " "));
        let key = format!("of:{EID}");
        assert_eq!(read(EID, [(key.as_str(), nested.as_str())].into_iter()).claims.len(), 1);
        for bad in ["", "alive", "live", "live\nrun\tx", "live\nsite\ta"] {
            assert_eq!(read(EID, [(key.as_str(), bad)].into_iter()).ignored, 1, "{bad}");
        }
        assert_eq!(read(EID, [("met", "02:00:00:00:00:03 nowhere")].into_iter()).ignored, 1);
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
        let Read { member, ignored, .. } = read(EID, pairs(&values));
        let member = member.expect("complete");
        assert_eq!(ignored, 5);
        assert_eq!((member.head, &*member.families), (0, &own().families));
    }

    #[test]
    fn a_member_of_which_too_little_is_known_is_none_yet() {
        assert_eq!(read(EID, std::iter::empty()), Read::default());
        for bad in ["nowhere", ":7480", "host:0", "host:x"] {
            assert_eq!(read(EID, [("address", bad)].into_iter()).ignored, 1, "{bad}");
        }
    }
}
