//! What is durable of an attachment: the state of its link, and the shadow of each key.
//!
//! Rows of the store's `adapter` table, under the attached Asterisk's EID; committed together with the
//! writes that they tell of ([`crate::core::replica::Adapted`]). Each has a golden vector.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::event::Moment;
use crate::core::codec::{self, CodecError};
use crate::core::eid::Eid;
use crate::core::path::{Family, Value};
use crate::core::record::RecordKey;
use crate::core::storage::{Read, StoreError};

/// The state of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub inbound: Inbound,
    /// The ETag that the Asterisk gave our publication last.
    pub etag: Option<String>,
    /// Rises when everything is sent again: what was agreed under an older one is sent whatever it was.
    pub epoch: u32,
    /// Rises when the Asterisk was found restarted: what was agreed in an older one it may have lost.
    pub lineage: u32,
    /// How often it was asked for its content.
    pub asks: u32,
    /// How far the feed has been sent.
    pub cursors: BTreeMap<Family, FeedCursor>,
}

/// Its publication here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// The ETag that it was given last; none: it has no publication here.
    pub etag: Option<String>,
    pub expires_at: Moment,
    pub expires_s: u32,
    /// Of the last request that was carried out; empty before the first.
    pub call_id: String,
    pub cseq: u32,
    pub body_hash: u64,
    /// It was answered 412 since, to a body of this hash: the same body under a new Call-ID is no restart.
    pub told_stale: Option<u64>,
}

/// How far a family's feed has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedCursor {
    /// The sharing it belongs to, by the sequence number of its mark.
    pub since: u64,
    pub seq: u64,
}

/// What is known of a key at the Asterisk. It outlives the register: a deleted key whose tombstone was
/// purged is still known as deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// What both sides agreed on last.
    pub agreed: Agreed,
    /// The winner must be sent, whatever was agreed on: the Asterisk wrote while something was on its way.
    pub owed: bool,
    /// Something was sent for it since its last inbound update.
    pub sent: bool,
    /// What was sent was not accepted yet: the Asterisk may hold it or not.
    pub unsure: bool,
    /// When this was: [`Link::epoch`], [`Link::lineage`], and [`Link::asks`] at the last update or push.
    pub epoch: u32,
    pub lineage: u32,
    pub asks: u32,
    /// What it held before, the latest last: a late answer may still tell of it.
    pub past: Vec<Agreed>,
    /// What it accepted last of what was sent, and all that was sent since. It may have made its updates before it
    /// took one of these, and then holds that, however many updates come in after it.
    pub pushed: Vec<Agreed>,
}

/// How many former values of a key are known.
const PAST_MAX: usize = 4;
/// How many values that were sent are known.
const PUSHED_MAX: usize = 4;

impl Shadow {
    /// The Asterisk holds this, or may.
    pub fn held(&mut self, agreed: Agreed) {
        self.past.retain(|one| *one != agreed);
        self.past.push(agreed);
        if self.past.len() > PAST_MAX {
            self.past.remove(0);
        }
    }

    /// This is sent. What was sent too long ago to be known stays as [`Agreed::Unknown`] until something is accepted.
    pub fn push(&mut self, agreed: Agreed) {
        (self.sent, self.unsure) = (true, true);
        self.held(agreed);
        self.pushed.retain(|one| *one != agreed);
        self.pushed.push(agreed);
        if self.pushed.len() > PUSHED_MAX {
            self.pushed.remove(0);
            self.pushed[0] = Agreed::Unknown;
        }
    }

    /// It was known to hold this before, or may hold it because it was sent: an answer that tells of it may be old.
    pub fn is_familiar(&self, agreed: Agreed) -> bool {
        self.past.contains(&agreed) || self.pushed.contains(&agreed) || self.pushed.contains(&Agreed::Unknown)
    }
}

/// A value by its hash. Two values of one hash (1 in 2^64) would cost one push until the next change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agreed {
    /// Nothing yet.
    #[default]
    Unknown,
    Absent,
    Value(u64),
}

impl Agreed {
    pub fn on(value: Option<&Value>) -> Self {
        value.map_or(Agreed::Absent, |value| Agreed::Value(xxh3_64(value.as_str().as_bytes())))
    }
}

/// Where the link of the Asterisk of this EID is kept.
pub fn link_key(eid: Eid) -> Vec<u8> {
    [b"sip/".as_slice(), &eid.bytes(), b"/link"].concat()
}

/// Where the shadow of a record is kept.
pub fn shadow_key(eid: Eid, record: &RecordKey) -> Vec<u8> {
    [b"sip/".as_slice(), &eid.bytes(), b"/key/", &record.to_bytes()].concat()
}

fn read_row<T: serde::de::DeserializeOwned>(read: &impl Read, key: &[u8]) -> Result<Option<T>, StoreError> {
    let malformed = |error: CodecError| StoreError::Corrupted(format!("a row of the adapter: {error}"));
    read.adapter(key)?.map(|row| codec::decode_row(&row).map_err(malformed)).transpose()
}

pub fn read_link(read: &impl Read, eid: Eid) -> Result<Option<Link>, StoreError> {
    read_row(read, &link_key(eid))
}

pub fn read_shadow(read: &impl Read, eid: Eid, record: &RecordKey) -> Result<Option<Shadow>, StoreError> {
    read_row(read, &shadow_key(eid, record))
}

/// A row to be committed.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

pub fn link_row(eid: Eid, link: &Link) -> Row {
    (link_key(eid), Some(codec::encode_row(link)))
}

pub fn shadow_row(eid: Eid, record: &RecordKey, shadow: &Shadow) -> Row {
    (shadow_key(eid, record), Some(codec::encode_row(shadow)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::path::Path;

    const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

    fn hex(bytes: &[u8]) -> String {
        super::super::digest::hex(bytes)
    }

    #[test]
    fn rows_keep_their_form() {
        let record = RecordKey::plain(Path::new("/foo/k").expect("a path"));
        let shadow = Shadow {
            agreed: Agreed::Value(7),
            owed: true,
            sent: false,
            unsure: true,
            epoch: 1,
            lineage: 2,
            asks: 3,
            past: vec![Agreed::Absent, Agreed::Value(7)],
            pushed: vec![Agreed::Value(8)],
        };
        let (key, row) = shadow_row(EID, &record, &shadow);
        assert_eq!(hex(&key), "7369702f0200000000012f6b65792f2f666f6f2f6b00");
        assert_eq!(
            hex(&row.expect("a row")),
            "01020000000700000000000000010001010000000200000003000000020000000000000001000000020000000700000000000000\
             0100000000000000020000000800000000000000"
        );
        let link = Link {
            inbound: Inbound {
                etag: Some("e".into()),
                expires_at: 5,
                expires_s: 6,
                call_id: "c".into(),
                cseq: 7,
                body_hash: 8,
                told_stale: Some(9),
            },
            etag: None,
            epoch: 1,
            lineage: 2,
            asks: 3,
            cursors: BTreeMap::from([(Family::new("foo").expect("a family"), FeedCursor { since: 1, seq: 2 })]),
        };
        let (key, row) = link_row(EID, &link);
        assert_eq!(hex(&key), "7369702f0200000000012f6c696e6b");
        assert_eq!(
            hex(&row.expect("a row")),
            "0101010000000000000065050000000000000006000000010000000000000063070000000800000000000000010900000000000000\
             000100000002000000030000000100000000000000030000000000000066\
             6f6f01000000000000000200000000000000"
        );
    }

    #[test]
    fn what_was_sent_is_known_whatever_comes_in_and_its_loss_makes_everything_familiar() {
        let mut shadow = Shadow { pushed: vec![Agreed::Value(1)], ..Shadow::default() };
        shadow.push(Agreed::Value(2));
        for value in 10..20 {
            shadow.held(Agreed::Value(value));
        }
        let familiar = |shadow: &Shadow, value| shadow.is_familiar(Agreed::Value(value));
        assert!(familiar(&shadow, 1) && familiar(&shadow, 2) && familiar(&shadow, 19));
        assert!(!familiar(&shadow, 10) && !familiar(&shadow, 3));
        for value in [3, 4, 3] {
            shadow.push(Agreed::Value(value));
        }
        assert!(familiar(&shadow, 1) && !familiar(&shadow, 99));
        shadow.push(Agreed::Value(5));
        assert!(familiar(&shadow, 99), "it may hold what was sent first, and nobody knows what that was");
    }

    #[test]
    fn the_last_values_of_a_key_are_known_each_once() {
        let mut shadow = Shadow::default();
        for value in [1, 2, 1, 3, 4, 5] {
            shadow.held(Agreed::Value(value));
        }
        assert_eq!(shadow.past, [Agreed::Value(1), Agreed::Value(3), Agreed::Value(4), Agreed::Value(5)]);
    }
}
