//! Within a site, silence is noticed long before the connection's idle timeout: whoever waits for a dead relay
//! waits for every write of the other sites.
//!
//! Where nothing came for a while an empty datagram is sent (RFC 9221), which the other side has to acknowledge.
//! Never here: what is done about a peer that is gone. Invariant: a node that slept itself blames nobody.

use std::time::Duration;

use quinn::{Connection, ConnectionError};
use tokio::time::{Instant, MissedTickBehavior};

use super::config::ms;
use super::{MeshConfig, link};
use crate::core::eid::Eid;

/// What the peers' datagrams may take before the oldest are dropped: that they come is all that is told by them.
pub(super) const RECEIVED_MAX_BYTES: usize = 1_024;

/// Ends the connection to a node of the same site on which nothing comes any more. To a program that
/// takes no datagrams the idle timeout alone applies.
pub(super) async fn watch(config: &MeshConfig, peer: Eid, connection: &Connection) -> ConnectionError {
    let far_apart = ms(config.pulse_ms) * 2;
    let mut ticks = tokio::time::interval(ms(config.pulse_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Silence::new(Instant::now());
    while connection.max_datagram_size().is_some() {
        let now = ticks.tick().await;
        match silence.look(now, connection.stats().udp_rx.datagrams, far_apart) {
            silent if silent >= ms(config.silence_ms) => {
                tracing::info!(%peer, "nothing has come for {} ms: the connection is given up", silent.as_millis());
                connection.close(link::CLOSE_SILENT.into(), b"silent");
                break;
            }
            Duration::ZERO => {}
            // The connection may be ending: its own end tells.
            _ => _ = connection.send_datagram(Default::default()),
        }
    }
    connection.closed().await
}

/// Since when nothing has come.
struct Silence {
    looked: Instant,
    heard: Instant,
    received: u64,
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { looked: now, heard: now, received: 0 }
    }

    /// How long it has been silent, by how many packets have come in all. Looks that are further apart tell nothing:
    /// what came meanwhile may not have been taken yet.
    fn look(&mut self, now: Instant, received: u64, far_apart: Duration) -> Duration {
        if received != self.received || now - self.looked > far_apart {
            self.heard = now;
        }
        (self.looked, self.received) = (now, received);
        now - self.heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_millis(600);

    #[test]
    fn silence_is_counted_from_the_last_look_at_which_something_had_come() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut look = |at_ms: u64, received| silence.look(start + ms(at_ms), received, FAR).as_millis();
        assert_eq!([look(300, 1), look(600, 1), look(900, 1), look(1_200, 2), look(1_500, 2)], [0, 300, 600, 0, 300]);
    }

    #[test]
    fn a_node_that_slept_itself_blames_nobody() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        let mut look = |at_ms: u64| silence.look(start + ms(at_ms), 0, FAR).as_millis();
        assert_eq!([look(300), look(600), look(30_000), look(30_300)], [300, 600, 0, 300]);
    }
}
