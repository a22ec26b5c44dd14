//! Decodes frames of entries, in the largest worlds each once.
//!
//! A source sends a thousand followers the same bytes, and what they decode to depends on nothing else. Where a
//! scenario says that not every commit is judged, the followers are handed copies of what the first one decoded; then
//! they also share the texts, as the memory of one process must hold a thousand disks.

use std::collections::VecDeque;
use std::sync::Arc;

use kinfolk::core::codec::{self, CodecError};
use kinfolk::core::message::Entries;

/// How many frames are under way at one time, about: writes come some tens of milliseconds apart.
const KEPT_MAX: usize = 16;

#[derive(Default)]
pub struct Decoder {
    kept: VecDeque<(Arc<[u8]>, Entries)>,
}

impl Decoder {
    /// The entries that these bytes are. With `once`, those that were decoded from the very same bytes before.
    pub fn entries(&mut self, bytes: &Arc<[u8]>, once: bool) -> Result<Entries, CodecError> {
        if !once {
            return codec::decode_frame(bytes);
        }
        // The bytes are kept with it, so that one address is one frame.
        if let Some((_, entries)) = self.kept.iter().find(|(kept, _)| Arc::ptr_eq(kept, bytes)) {
            return Ok(entries.clone());
        }
        let entries: Entries = codec::decode_frame(bytes)?;
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_back();
        }
        self.kept.push_front((bytes.clone(), entries.clone()));
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_decode_to_the_same_entries_kept_or_not() {
        let mut decoder = Decoder::default();
        for n in (0..40_u64).chain(0..40) {
            let entries = Entries { records: Vec::new(), complete_to: n, head: n };
            let bytes: Arc<[u8]> = codec::encode_frame(&entries).expect("it is small").into();
            for once in [true, true, false] {
                assert_eq!(decoder.entries(&bytes, once), Ok(entries.clone()));
            }
        }
        assert!(decoder.entries(&Arc::from(&b"KF"[..]), true).is_err());
    }
}
