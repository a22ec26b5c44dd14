//! Everything between nodes: identities, the mesh of QUIC connections, and membership.
//!
//! Never here: records, the store, the wall clock (whoever needs it is handed it), the rules of who
//! follows whom (those are pure, in [`core::topology`](crate::core::topology)).
//!
//! Invariants: no byte of a peer is looked at before its certificate is verified; at most one connection
//! to a peer is kept; every queue has a bound; a slow, dead or hostile peer costs the others nothing.

mod counters;
pub mod frames;
mod gossip;
mod gossip_config;
mod gossip_far;
mod gossip_transport;
mod gossip_values;
mod gossip_wide;
mod members;
mod mesh;
pub mod streams;
pub mod tls;

pub use counters::{Counter, Counters, REFUSALS, WanCounters};
pub use gossip::{Gossip, GossipError};
pub use gossip_config::GossipConfig;
pub use mesh::{
    Cut, DEFAULT_PORT, GossipMessage, Incoming, Mesh, MeshConfig, MeshError, OpenError, PeerInfo, Peers, RefusedPeer,
    Ring, Rings, Traffic,
};

/// Never, if there is no moment.
async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
