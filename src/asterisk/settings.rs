//! What the configuration says about attached Asterisks.

use std::net::IpAddr;

use super::digest::Algorithm;
use super::event::Transport;
use crate::core::eid::Eid;
use crate::core::path::{Family, Limits};

/// A block of addresses, as `accept_from` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressBlock {
    pub address: IpAddr,
    pub prefix_bits: u8,
}

impl AddressBlock {
    pub fn contains(&self, address: IpAddr) -> bool {
        fn covers(block: u128, address: u128, width: u32, prefix: u8) -> bool {
            let free = width.saturating_sub(u32::from(prefix));
            free >= width || (block ^ address).checked_shr(free).is_none_or(|rest| rest == 0)
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(block), IpAddr::V4(address)) => {
                covers(block.to_bits().into(), address.to_bits().into(), 32, self.prefix_bits)
            }
            (IpAddr::V6(block), IpAddr::V6(address)) => {
                covers(block.to_bits(), address.to_bits(), 128, self.prefix_bits)
            }
            _ => false,
        }
    }
}

/// One `[[asterisk]]` of the configuration.
#[derive(Clone, Debug)]
pub struct AttachmentSettings {
    pub name: String,
    /// The attached Asterisk's own EID. Must differ from the node's.
    pub eid: Eid,
    /// The Request-URI of our PUBLISH: the user part names the Asterisk's `inbound-publication`.
    pub uri: String,
    /// How our PUBLISH travels.
    pub transport: Transport,
    /// The From of our PUBLISH, a SIP URI.
    pub from: String,
    /// What our Via says (`sent-by`): `host:port` of the local listener.
    pub sent_by: String,
    /// The user part by which the Asterisk calls us.
    pub listen_user: String,
    /// Credentials, in both directions. Without a password nobody is challenged.
    pub credentials: Option<Credentials>,
    /// What the Asterisk is challenged with. One of 2015 knows MD5 alone, and fails on any other.
    pub algorithm: Algorithm,
    pub accept_from: Vec<AddressBlock>,
    /// Families that this Asterisk takes part in; empty: every family that the node shares.
    pub families: Vec<Family>,
    /// Take a delete without entries for what the patch makes of it: the whole family goes.
    pub allow_family_delete: bool,
    pub quotas: Quotas,
    /// The node's limits for what its users write: they bind its Asterisks as well.
    pub limits: Limits,
    pub times: Times,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.username)
    }
}

/// What one attached Asterisk may take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Updates per second; beyond it the 200 is delayed, since the sender waits for it.
    pub updates_per_s: u32,
    /// Live keys in its families; a put of a further one is refused.
    pub keys_max: u64,
    /// Tombstones in its families; a delete beyond it is refused.
    pub tombstones_max: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        Self { updates_per_s: 5_000, keys_max: 1_000_000, tombstones_max: 1_000_000 }
    }
}

/// Times of an attachment, in milliseconds unless the name says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Our publication is refreshed at least so often, by a request for the Asterisk's content.
    pub ask_every_ms: u64,
    /// The first pause after a failure; it doubles up to the greatest.
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    /// After a start, a restart of the Asterisk or an outage: how long pushes wait at most for its content.
    /// Longer than T2, the pause between its repetitions: what it could not tell comes before.
    pub hold_ms: u64,
    /// The shortest and the longest life of its publication here, in seconds.
    pub expires_min_s: u32,
    pub expires_max_s: u32,
    /// What our publication asks for, in seconds.
    pub expires_s: u32,
    /// How long a nonce is good for.
    pub nonce_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            ask_every_ms: 60_000,
            retry_min_ms: 500,
            retry_max_ms: 30_000,
            hold_ms: 5_000,
            expires_min_s: 10,
            expires_max_s: 604_800,
            expires_s: 3_600,
            nonce_ms: 60_000,
        }
    }
}
