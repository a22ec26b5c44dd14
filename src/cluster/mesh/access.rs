//! Who is let in, and what for: the certificates as of now, and the rules that the operator can change while
//! the node runs.
//!
//! Never here: waiting, files. Invariant: one judgement for connections that begin and for those that stand, so
//! that none stands which could not be made again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::link::LinkError;
use crate::cluster::tls::{self, Identity};
use crate::core::eid::Eid;
use crate::core::path::Family;
use crate::core::trust::{Grants, Trust};

/// Refused peers, and peers trusted for some families only, that are remembered.
const REMEMBERED_MAX: usize = 1_000;
/// How long a refused peer is shown after it last came, and how often it is logged.
const REFUSED_HOLD: Duration = Duration::from_secs(3_600);

/// A peer that was refused by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedPeer {
    pub why: String,
    pub last: Instant,
    logged: Instant,
}

/// A standing connection that was ended because of what is trusted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub peer: Eid,
    pub why: String,
}

/// A peer whose certificate is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub eid: Eid,
    pub grants: Grants,
}

struct Rules {
    identity: Identity,
    client: quinn::ClientConfig,
    trust: Trust,
}

pub(super) struct Access {
    transport: Arc<quinn::TransportConfig>,
    rules: RwLock<Arc<Rules>>,
    refused: Mutex<BTreeMap<Eid, RefusedPeer>>,
    /// When it was last logged that a peer asked for a family that is not for it.
    not_allowed: Mutex<BTreeMap<(Eid, Family), Instant>>,
    /// Of peers that were trusted for some families only when last connected.
    known: Mutex<BTreeMap<Eid, Grants>>,
    changes: watch::Sender<u64>,
}

impl Access {
    pub fn new(identity: Identity, transport: Arc<quinn::TransportConfig>, trust: Trust) -> Self {
        let rules = Rules { client: client_config(&identity, &transport), identity, trust };
        Self {
            transport,
            rules: RwLock::new(Arc::new(rules)),
            refused: Mutex::default(),
            not_allowed: Mutex::default(),
            known: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// From now on these count; the caller sets what is returned for the side that is dialled.
    pub fn replace(&self, identity: Identity, trust: Trust) -> quinn::ServerConfig {
        let server = server_config(&identity, &self.transport);
        let rules = Rules { client: client_config(&identity, &self.transport), identity, trust };
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        // Who is not refused any more need not be shown; who still is comes again.
        lock(&self.refused).clear();
        self.changes.send_modify(|n| *n += 1);
        server
    }

    pub fn identity(&self) -> Identity {
        self.rules().identity.clone()
    }

    pub fn client_config(&self) -> quinn::ClientConfig {
        self.rules().client.clone()
    }

    /// Judges the peer by its certificate, before a byte of it is read.
    pub fn judge(&self, connection: &quinn::Connection) -> Result<Passed, LinkError> {
        let chain = tls::peer_chain(connection)?;
        let eid = tls::certificate_eid(&chain[0])?;
        let rules = self.rules();
        if rules.trust.revoked.contains(&eid) {
            return Err(LinkError::Banned(eid));
        }
        rules.identity.check(&chain).map_err(|distrust| LinkError::Distrusted(eid, distrust))?;
        let grants = tls::certificate_grants(&chain[0])?.and(rules.trust.allow.of(eid));
        Ok(Passed { eid, grants })
    }

    /// Keeps what a peer is trusted for, for when it is not connected.
    pub fn remember(&self, peer: Eid, grants: &Grants) {
        let mut known = lock(&self.known);
        let before = match grants {
            Grants::All => known.remove(&peer),
            Grants::Only(_) if known.len() >= REMEMBERED_MAX && !known.contains_key(&peer) => return,
            Grants::Only(_) => known.insert(peer, grants.clone()),
        };
        drop(known);
        if before.unwrap_or_default() != *grants {
            self.changes.send_modify(|n| *n += 1);
        }
    }

    /// What a peer that is not connected is trusted for.
    pub fn last_known(&self, peer: Eid) -> Grants {
        let known = lock(&self.known).get(&peer).cloned().unwrap_or_default();
        known.and(self.rules().trust.allow.of(peer))
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Keeps that the peer was refused. True if it is time to log it.
    pub fn note_refused(&self, peer: Eid, why: &LinkError) -> bool {
        let now = Instant::now();
        let mut refused = lock(&self.refused);
        refused.retain(|_, refused| now < refused.last + REFUSED_HOLD);
        if refused.len() >= REMEMBERED_MAX && !refused.contains_key(&peer) {
            return false;
        }
        let fresh = !refused.contains_key(&peer);
        let entry = refused.entry(peer).or_insert(RefusedPeer { why: why.to_string(), last: now, logged: now });
        entry.last = now;
        let log = fresh || now >= entry.logged + REFUSED_HOLD;
        if log {
            entry.logged = now;
        }
        log
    }

    /// True if it is time to log it.
    pub fn note_not_allowed(&self, peer: Eid, family: &Family) -> bool {
        let now = Instant::now();
        let mut logged = lock(&self.not_allowed);
        logged.retain(|_, at| now < *at + REFUSED_HOLD);
        let room = logged.len() < REMEMBERED_MAX;
        let key = (peer, family.clone());
        room && !logged.contains_key(&key) && logged.insert(key, now).is_none()
    }

    pub fn own_grants_allow(&self, family: &Family) -> bool {
        self.rules().identity.grants().allow(family)
    }

    pub fn refused(&self) -> BTreeMap<Eid, RefusedPeer> {
        lock(&self.refused).clone()
    }

    fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn server_config(identity: &Identity, transport: &Arc<quinn::TransportConfig>) -> quinn::ServerConfig {
    let mut server = identity.server_config();
    server.transport_config(transport.clone());
    server
}

fn client_config(identity: &Identity, transport: &Arc<quinn::TransportConfig>) -> quinn::ClientConfig {
    let mut client = identity.client_config();
    client.transport_config(transport.clone());
    client
}
