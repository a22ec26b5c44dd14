//! A cluster of two programs: today's, and a model of the next one, which speaks the next version of the protocol as well.
//!
//! Which version two nodes speak is the daemon's own negotiation. The next version is made up: the frame of today with one
//! more byte behind its payload, so that whoever is sent what was not agreed on cannot read it.

use std::sync::Arc;

use kinfolk::core::codec::{HEADER_BYTES, PROTOCOL_VERSION};
use kinfolk::core::protocol::{PROTOCOL_VERSION_MIN, Versions};

use crate::check::{Check, Violation};
use crate::history::HostId;
use crate::network::Frame;
use crate::world::World;

pub const NEXT: u8 = PROTOCOL_VERSION + 1;

/// What the next version has behind each payload.
const MORE: u8 = 0xa5;
const VERSION_AT: usize = 2;
const LENGTH_AT: usize = 4;

/// A frame of today as the next version has it.
pub fn encoded(today: &[u8]) -> Arc<[u8]> {
    let mut next = today.to_vec();
    next.push(MORE);
    next[VERSION_AT] = NEXT;
    set_length(&mut next);
    next.into()
}

/// The other way; none: it is no frame of the next version.
pub fn decoded(next: &[u8]) -> Option<Arc<[u8]>> {
    if next.get(VERSION_AT) != Some(&NEXT) || next.last() != Some(&MORE) {
        return None;
    }
    let mut today = next[..next.len() - 1].to_vec();
    today[VERSION_AT] = PROTOCOL_VERSION;
    set_length(&mut today);
    Some(today.into())
}

fn set_length(frame: &mut [u8]) {
    let payload = u32::try_from(frame.len() - HEADER_BYTES).expect("frames are small");
    frame[LENGTH_AT..HEADER_BYTES].copy_from_slice(&payload.to_le_bytes());
}

impl World {
    /// The version that a node speaks with another, as it finds it from both hellos.
    pub fn speaks_with(&self, node: HostId, peer: HostId) -> Option<u8> {
        self.hosts[node].spoken.common(self.hosts[peer].spoken)
    }

    pub fn count_version(&mut self, a: HostId, b: HostId) {
        let next = [a, b].map(|node| self.hosts[node].spoken.max == NEXT);
        self.stats.connected_next += u64::from(next == [true, true]);
        self.stats.connected_mixed += u64::from(next[0] != next[1]);
    }

    pub fn wrong_version(&self, frame: &Frame) -> Violation {
        let (from, to) = (frame.from(), frame.to());
        let version = frame.bytes[VERSION_AT];
        let what = format!("node {from} sends node {to} a frame of version {version}, which was not agreed on");
        Violation { check: Check::Wire, what }
    }

    /// The process ends, and another program starts on its disk.
    pub fn change_program(&mut self, node: HostId, speaks_to: u8) {
        self.crash(node);
        self.hosts[node].spoken = Versions { min: PROTOCOL_VERSION_MIN, max: speaks_to };
        self.start_again(node);
    }
}

#[cfg(test)]
mod tests {
    use kinfolk::core::codec;
    use kinfolk::core::message::Entries;

    use super::*;

    #[test]
    fn a_frame_of_the_next_version_is_none_of_today_and_comes_back_whole() {
        let entries = Entries { records: Vec::new(), complete_to: 7, head: 7 };
        let today = codec::encode_frame(&entries).expect("it is small");
        let next = encoded(&today);
        assert_eq!(codec::decode_frame::<Entries>(&next), Err(codec::CodecError::Version(NEXT)));
        assert_eq!(decoded(&next).as_deref(), Some(&today[..]));
        assert_eq!(decoded(&today), None);
    }
}
