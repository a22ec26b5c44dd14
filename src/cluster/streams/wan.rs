//! Frames of the feed between sites: what comes within a moment goes together, compressed, and no link gets more
//! than its share of the bandwidth.
//!
//! Never here: what is sent (the session decides), streams within a site (they send at once, as it is). Invariant: a
//! peer's compressed bytes never become more than a frame may hold.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::SendStream;
use tokio::time::Instant;

use crate::cluster::counters::WanCounters;
use crate::cluster::frames::FrameError;
use crate::core::codec::{self, CodecError, FRAME_MAX_BYTES, HEADER_BYTES, Header, Message};
use crate::core::eid::Eid;
use crate::core::message::{Entries, Packed};

/// Shorter frames are sent as they are: they would not become much shorter.
const PACK_MIN_BYTES: usize = 256;
/// zstd's own default: a good ratio at hundreds of MB/s.
const LEVEL: i32 = 3;
/// How far a link may run ahead of its bandwidth: a short burst is not held up.
const BURST_MS: u64 = 100;

/// How streams between sites are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WanConfig {
    /// How long a change waits for others to go with it.
    pub batch_ms: u64,
    /// What one link (to one node of another site) may carry of the feed; 0: no limit.
    pub bytes_per_s: u64,
}

impl Default for WanConfig {
    fn default() -> Self {
        Self { batch_ms: 2, bytes_per_s: 0 }
    }
}

/// The links to nodes of other sites.
#[derive(Debug, Default)]
pub(super) struct Wan {
    config: WanConfig,
    /// When each link will have carried what it was given.
    free_at: Mutex<BTreeMap<Eid, Instant>>,
}

impl Wan {
    pub fn new(config: WanConfig) -> Self {
        Self { config, free_at: Mutex::default() }
    }

    /// Waits for what may go together with the change that has just come.
    pub async fn gather(&self) {
        if self.config.batch_ms > 0 {
            tokio::time::sleep(Duration::from_millis(self.config.batch_ms)).await;
        }
    }

    /// Sends a piece of the feed when the link's bandwidth allows it.
    pub async fn send(
        &self,
        peer: Eid,
        send: &mut SendStream,
        entries: &Entries,
        counters: &WanCounters,
    ) -> Result<(), FrameError> {
        let plain = codec::encode_frame(entries)?;
        let frame = pack(&plain)?;
        self.pace(peer, frame.len()).await;
        send.write_all(&frame).await?;
        counters.sent_records.add(entries.records.len() as u64);
        counters.sent_bytes.add(frame.len() as u64);
        counters.sent_unpacked_bytes.add(plain.len() as u64);
        counters.sent_frames.add(1);
        Ok(())
    }

    async fn pace(&self, peer: Eid, bytes: usize) {
        if self.config.bytes_per_s > 0 {
            tokio::time::sleep_until(self.reserve(peer, bytes, Instant::now())).await;
        }
    }

    /// When so many bytes may go. The link is taken until they will have gone.
    fn reserve(&self, peer: Eid, bytes: usize, now: Instant) -> Instant {
        let earliest = now.checked_sub(Duration::from_millis(BURST_MS)).unwrap_or(now);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        free_at.retain(|of, at| *of == peer || *at > earliest);
        let at = free_at.entry(peer).or_insert(earliest);
        let due = (*at).max(earliest);
        *at = due + Duration::from_secs_f64(bytes as f64 / self.config.bytes_per_s as f64);
        due
    }
}

/// The frame as it goes between sites: packed if that makes it shorter.
fn pack(plain: &[u8]) -> Result<Vec<u8>, FrameError> {
    if plain.len() >= PACK_MIN_BYTES
        && let Ok(payload) = zstd::bulk::compress(&plain[HEADER_BYTES..], LEVEL)
    {
        let packed = codec::encode_frame(&Packed { payload })?;
        if packed.len() < plain.len() {
            return Ok(packed);
        }
    }
    Ok(plain.to_vec())
}

/// A piece of the feed, packed or not.
pub(super) fn read(header: Header, payload: &[u8]) -> Result<Entries, CodecError> {
    if header.kind != Packed::KIND {
        return codec::decode_payload(header, payload);
    }
    let packed: Packed = codec::decode_payload(header, payload)?;
    let plain = zstd::bulk::decompress(&packed.payload, FRAME_MAX_BYTES)
        .map_err(|error| CodecError::Payload(format!("it cannot be unpacked: {error}")))?;
    codec::decode_payload(Header { kind: Entries::KIND, payload_bytes: plain.len() }, &plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::clock::{Hlc, Stamp};
    use crate::core::path::{Path, Value};
    use crate::core::record::{Record, RecordKey};
    use crate::core::register::{Register, value_hash};

    fn entries(records: usize) -> Entries {
        let record = |n: usize| {
            let value = Value::new(&format!("Local/{n}@forwarding")).ok();
            let hlc = Hlc::from_parts(1_790_000_000_000 + n as u64, 0).expect("in range");
            let stamp = Stamp { hlc, eid: Eid::new([2, 0, 0, 0, 0, 1]), hash: value_hash(value.as_ref()) };
            let key = RecordKey::plain(Path::new(&format!("/CF/{n}")).expect("a path"));
            Record { key, register: Register::new(value, stamp), crossed: false }
        };
        Entries { records: (0..records).map(record).collect(), complete_to: 9, head: 9 }
    }

    fn sent(entries: &Entries) -> Vec<u8> {
        pack(&codec::encode_frame(entries).expect("it fits")).expect("it fits")
    }

    fn arrived(frame: &[u8]) -> Result<Entries, CodecError> {
        let (header, payload) = frame.split_first_chunk::<HEADER_BYTES>().expect("a header");
        read(Header::decode(header)?, payload)
    }

    #[test]
    fn what_is_packed_is_what_arrives_and_many_records_take_less_than_half() {
        for records in [0, 1, 3, 100, 1_000] {
            assert_eq!(arrived(&sent(&entries(records))), Ok(entries(records)));
        }
        let plain = codec::encode_frame(&entries(100)).expect("it fits").len();
        assert!(sent(&entries(100)).len() * 2 < plain, "{} of {plain} bytes", sent(&entries(100)).len());
    }

    #[test]
    fn a_short_frame_is_sent_as_it_is() {
        assert_eq!(sent(&entries(1)), codec::encode_frame(&entries(1)).expect("it fits"));
    }

    #[test]
    fn packed_bytes_that_would_become_more_than_a_frame_are_refused() {
        let bomb = zstd::bulk::compress(&vec![0; FRAME_MAX_BYTES + 1], LEVEL).expect("it compresses");
        for payload in [bomb, b"no zstd at all".to_vec(), Vec::new()] {
            let frame = codec::encode_frame(&Packed { payload }).expect("it fits");
            assert!(matches!(arrived(&frame), Err(CodecError::Payload(_) | CodecError::LeftOver(_))));
        }
    }

    #[tokio::test]
    async fn a_link_is_given_no_more_than_its_bandwidth_and_others_do_not_wait_for_it() {
        let wan = Wan::new(WanConfig { batch_ms: 0, bytes_per_s: 10_000 });
        let [busy, other] = [1, 2].map(|last| Eid::new([2, 0, 0, 0, 0, last]));
        let now = Instant::now() + Duration::from_secs(1);
        let due: Vec<Duration> =
            (0..20).map(|_| wan.reserve(busy, 5_000, now).saturating_duration_since(now)).collect();
        assert_eq!(
            (due[0], due[1], due[19]),
            (Duration::ZERO, Duration::from_millis(400), Duration::from_millis(9_400))
        );
        assert!(wan.reserve(other, 5_000, now) <= now);
    }
}
