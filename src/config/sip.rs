//! `[sip]` and `[[asterisk]]`: where the adapter listens, and which patched Asterisks are attached.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Config;
use crate::asterisk::digest::Algorithm;
use crate::asterisk::header::{self, UriError};
use crate::asterisk::settings::{AddressBlock, AttachmentSettings, Credentials, Quotas, Times};
use crate::core::eid::Eid;
use crate::core::path::Family;

pub use crate::asterisk::event::Transport;

/// The port of SIP where a URI names none (RFC 3261 section 19.1.2).
pub const SIP_PORT: u16 = 5060;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sip {
    pub listen: Vec<Listen>,
    /// Lines about refused senders, as fail2ban's filter for Asterisk reads them.
    pub security_log: Option<PathBuf>,
}

/// `udp:127.0.0.1:5060` or `tcp:127.0.0.1:5060`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    pub transport: Transport,
    pub address: SocketAddr,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("'{text}' is no place to listen for SIP: udp:<ip>:<port> or tcp:<ip>:<port> is wanted");
        let (transport, address) = text.split_once(':').ok_or_else(wanted)?;
        let address = address.parse().map_err(|_| wanted())?;
        Ok(Self { transport: transport_of(transport).ok_or_else(wanted)?, address })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        format!("{}:{}", listen.transport.via_name().to_lowercase(), listen.address)
    }
}

fn transport_of(text: &str) -> Option<Transport> {
    [Transport::Udp, Transport::Tcp].into_iter().find(|transport| transport.via_name().to_lowercase() == text)
}

/// One attached Asterisk.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    pub name: String,
    pub eid: Eid,
    pub uri: String,
    #[serde(default = "udp")]
    pub transport: String,
    pub from: Option<String>,
    pub listen_user: Option<String>,
    pub username: Option<String>,
    pub password: Option<String>,
    #[serde(default = "md5")]
    pub algorithm: String,
    #[serde(default)]
    pub accept_from: Vec<String>,
    #[serde(default)]
    pub families: Vec<Family>,
    #[serde(default)]
    pub allow_family_delete: bool,
    #[serde(default = "updates_per_s")]
    pub updates_per_s_max: u32,
    #[serde(default = "keys")]
    pub keys_max: u64,
    #[serde(default = "tombstones")]
    pub tombstones_max: u64,
}

fn udp() -> String {
    "udp".to_string()
}

fn md5() -> String {
    Algorithm::Md5.token().to_string()
}

fn updates_per_s() -> u32 {
    Quotas::default().updates_per_s
}

fn keys() -> u64 {
    Quotas::default().keys_max
}

fn tombstones() -> u64 {
    Quotas::default().tombstones_max
}

/// Without the password: the configuration may be logged.
impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, eid, uri, .. } = self;
        f.debug_struct("Attached").field("name", name).field("eid", eid).field("uri", uri).finish_non_exhaustive()
    }
}

impl Attached {
    /// The user part by which the Asterisk calls this node.
    pub fn listen_user(&self) -> &str {
        self.listen_user.as_deref().unwrap_or(&self.name)
    }

    pub fn transport(&self) -> Option<Transport> {
        transport_of(&self.transport)
    }

    fn algorithm(&self) -> Result<Algorithm, String> {
        let all = [Algorithm::Md5, Algorithm::Sha256];
        let known = all.into_iter().find(|algorithm| algorithm.token().eq_ignore_ascii_case(&self.algorithm));
        known.ok_or_else(|| format!("'{}' is not done here: write \"MD5\" or \"SHA-256\"", self.algorithm))
    }

    fn credentials(&self) -> Option<Credentials> {
        let password = self.password.clone()?;
        Some(Credentials { username: self.username.clone().unwrap_or_else(|| self.name.clone()), password })
    }

    /// Where its messages may come from: what is listed, else the address in its URI.
    fn accept_from(&self) -> Result<Vec<AddressBlock>, String> {
        if self.accept_from.is_empty() {
            let host = header::uri(&self.uri).map(|uri| uri.host).unwrap_or_default();
            return host.parse().map(|address| vec![whole(address)]).map_err(|_| {
                format!("it is missing, and '{host}' in uri is a name: list the addresses that its messages come from")
            });
        }
        self.accept_from.iter().map(|text| address_block(text)).collect()
    }
}

fn whole(address: IpAddr) -> AddressBlock {
    AddressBlock { address, prefix_bits: if address.is_ipv4() { 32 } else { 128 } }
}

/// `192.0.2.1` or `192.0.2.0/24`.
fn address_block(text: &str) -> Result<AddressBlock, String> {
    let fault = || format!("'{text}' is neither an address nor a block of them, as in 192.0.2.1 or 192.0.2.0/24");
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let block = whole(address.parse().map_err(|_| fault())?);
    let Some(bits) = bits else { return Ok(block) };
    let prefix_bits = bits.parse().ok().filter(|&bits: &u8| bits <= block.prefix_bits).ok_or_else(fault)?;
    Ok(AddressBlock { prefix_bits, ..block })
}

impl Config {
    /// The attached Asterisks as the adapter wants them. `listening` are the real addresses of the listeners.
    ///
    /// Called on a configuration that was checked; what a check refuses is left out.
    pub fn attachments(&self, listening: &[Listen]) -> Vec<AttachmentSettings> {
        let settings = |attached: &Attached| {
            let transport = attached.transport()?;
            let own = listening.iter().find(|listen| listen.transport == transport)?;
            let sent_by = sent_by(attached, own.address);
            let user = attached.listen_user().to_string();
            let from = attached.from.clone();
            let host = sent_by.rsplit_once(':').map_or(sent_by.as_str(), |(host, _)| host);
            let from = from.unwrap_or_else(|| format!("sip:{user}@{host}"));
            Some(AttachmentSettings {
                name: attached.name.clone(),
                eid: attached.eid,
                uri: attached.uri.clone(),
                transport,
                from,
                sent_by,
                listen_user: user,
                credentials: attached.credentials(),
                accept_from: attached.accept_from().ok()?,
                families: attached.families.clone(),
                allow_family_delete: attached.allow_family_delete,
                algorithm: attached.algorithm().ok()?,
                limits: self.limits.of_input(),
                quotas: Quotas {
                    updates_per_s: attached.updates_per_s_max,
                    keys_max: attached.keys_max,
                    tombstones_max: attached.tombstones_max,
                },
                times: Times::default(),
            })
        };
        self.asterisk.iter().filter_map(settings).collect()
    }

    pub(super) fn sip_faults(&self, say: &mut impl FnMut(&'static str, &str, String)) {
        let listen = &self.sip.listen;
        if self.asterisk.is_empty() && !listen.is_empty() {
            say("sip", "listen", "no Asterisk is attached: add an [[asterisk]], or take [sip] out".to_string());
        }
        if listen.iter().collect::<BTreeSet<_>>().len() < listen.len() {
            say("sip", "listen", "an address stands there twice: take one out".to_string());
        }
        let (mut names, mut eids, mut users) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for attached in &self.asterisk {
            let name = &attached.name;
            if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
                say(
                    "asterisk",
                    "name",
                    format!("'{}' has {} bytes: write 1 to 64, printable", name.escape_debug(), name.len()),
                );
            }
            if !names.insert(name) {
                say("asterisk", "name", format!("two are called '{name}': give each a name of its own"));
            }
            if !eids.insert(attached.eid) {
                let what = format!("'{name}': another one has {} too; an EID is one server's", attached.eid);
                say("asterisk", "eid", what);
            }
            if !users.insert(attached.listen_user()) {
                let what = format!("'{name}': another one calls '{}' too: give each its own", attached.listen_user());
                say("asterisk", "listen_user", what);
            }
            self.attached_faults(attached, say);
        }
    }

    fn attached_faults(&self, attached: &Attached, say: &mut impl FnMut(&'static str, &str, String)) {
        let name = &attached.name;
        let mut say = |key: &str, what: String| say("asterisk", key, format!("'{name}': {what}"));
        if attached.eid.is_empty() {
            say("eid", "00:00:00:00:00:00 means \"no EID\": write what `core show settings` prints there".to_string());
        }
        if self.eid == Some(attached.eid) {
            say("eid", own_eid(attached.eid));
        }
        if let Some(what) = uri_fault(&attached.uri, true) {
            say("uri", what);
        }
        if let Some(what) = attached.from.as_deref().and_then(|from| uri_fault(from, false)) {
            say("from", what);
        }
        match attached.transport() {
            None => say("transport", format!("'{}' is not done here: write \"udp\" or \"tcp\"", attached.transport)),
            Some(transport) if self.sip.listen.iter().all(|listen| listen.transport != transport) => {
                let transport = &attached.transport;
                say(
                    "transport",
                    format!("nothing in [sip] listen is {transport}: add \"{transport}:<ip>:<port>\" there"),
                );
            }
            Some(_) => {}
        }
        if let Err(what) = attached.accept_from() {
            say("accept_from", what);
        }
        if let Err(what) = attached.algorithm() {
            say("algorithm", what);
        }
        if attached.username.is_some() && attached.password.is_none() {
            say(
                "password",
                "it is missing, and a username without one means nothing: add it, or take username out".to_string(),
            );
        }
        if attached.password.as_deref() == Some("") {
            say("password", "it is empty: write a long random one, or take it out".to_string());
        }
        if attached.updates_per_s_max == 0 {
            say("updates_per_s_max", "0 would let nothing in: write 1 or more".to_string());
        }
        let never = |family: &&Family| family.top().parse::<Eid>().is_ok();
        if let Some(family) = attached.families.iter().find(never) {
            say("families", format!("'{family}' begins with an EID: write the family's own name"));
        }
    }
}

/// What is wrong with an Asterisk that bears the node's EID.
pub fn own_eid(eid: Eid) -> String {
    format!(
        "{eid} is this node's own EID, and an Asterisk ignores what bears its own: give the node another certificate \
         (kinfolk tls issue), or the Asterisk another EID (entityid in asterisk.conf)"
    )
}

fn uri_fault(text: &str, user_wanted: bool) -> Option<String> {
    match header::uri(text) {
        Ok(uri) if user_wanted && uri.user.is_none() => Some(format!(
            "'{text}' has no user part: it names the inbound-publication there, as in sip:kinfolk@127.0.0.1:5060"
        )),
        Ok(_) => None,
        Err(UriError::Scheme) => Some(format!("'{text}' is no SIP URI: it begins with sip:")),
        Err(UriError::Malformed) => Some(format!("'{text}' is no SIP URI, as in sip:kinfolk@127.0.0.1:5060")),
    }
}

/// What our Via says. A listener on all addresses has none of its own: `from` says which is meant.
fn sent_by(attached: &Attached, own: SocketAddr) -> String {
    let from_host = attached.from.as_deref().and_then(|from| header::uri(from).ok()).map(|uri| uri.host);
    match from_host {
        Some(host) if own.ip().is_unspecified() => format!("{host}:{}", own.port()),
        _ => own.to_string(),
    }
}
