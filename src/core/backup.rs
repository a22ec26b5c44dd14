//! The form of a backup: what `kinfolk backup` writes and `kinfolk restore` reads. No files here, only bytes.
//!
//! A backup is a preamble, `magic (8) | format (4, little endian)`, and pieces, each of them
//! `length (4) | checksum (8) | row`, the row as in [`codec`](super::codec). The checksum is XXH3-64 of the row,
//! seeded with the piece's place: a piece that is flipped, missing, doubled or moved does not fit. The last piece
//! counts the records, so that what is cut off is never taken for whole.
//!
//! It holds everything that a store knows of the data: records with their stamps, tombstones and the cluster's
//! books too, and the marks. What belongs to one life of one node stays out: runs, sequence numbers, cursors,
//! the state of adapters, and whose store it was, except as a name for people.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::clock::{Stamp, UnixMs};
use super::codec::{CodecError, FRAME_MAX_BYTES, decode_row, encode_row};
use super::eid::Eid;
use super::family::Mode;
use super::path::Family;
use super::record::{Class, Record, Stored};
use super::register::HashMismatch;
use super::storage::{Read, Span, StoreError, Write};

pub const MAGIC: [u8; 8] = *b"KINFOLKB";
/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
pub const PREAMBLE_BYTES: usize = 12;
pub const PIECE_HEADER_BYTES: usize = 12;
/// The longest row of a piece, in bytes.
pub const PIECE_MAX_BYTES: usize = FRAME_MAX_BYTES;
/// How many bytes of records go into one piece: below the limit by more than any fixed part.
const RECORDS_MAX_BYTES: usize = PIECE_MAX_BYTES - 4_096;

/// Where a backup comes from, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub eid: Eid,
    pub taken_unix_ms: UnixMs,
    /// The program's version.
    pub version: String,
}

/// One piece. The order is: the head, the marks, the records, the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    Head(Head),
    /// A shared family of the node.
    Mark {
        family: Family,
        mode: Mode,
        stamp: Stamp,
    },
    Records(Vec<Record>),
    End {
        records: u64,
    },
}

/// Why bytes are not a backup, or not a whole one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    #[error("it does not begin as a backup does")]
    NoBackup,
    #[error("it has format {found}, this program knows up to {FORMAT}: use the newer kinfolk that wrote it")]
    NewerFormat { found: u32 },
    #[error("piece {place} is damaged: its checksum does not fit")]
    Checksum { place: u64 },
    #[error("piece {place} claims {bytes} bytes, at most {PIECE_MAX_BYTES} are possible")]
    TooLong { place: u64, bytes: usize },
    #[error("piece {place} is damaged: {error}")]
    Piece { place: u64, error: CodecError },
    #[error("piece {place} is damaged: {error}")]
    Record { place: u64, error: HashMismatch },
    #[error("piece {place} is out of place")]
    Order { place: u64 },
    #[error("it says that it holds {said} records and holds {found}")]
    Count { said: u64, found: u64 },
    #[error("it is cut off after {pieces} pieces")]
    CutOff { pieces: u64 },
    #[error("something follows after its end")]
    LeftOver,
}

/// Writes the backup of what `read` shows, piece by piece. `emit` breaks it off.
pub fn write<R: Read>(
    read: &R,
    head: Head,
    emit: &mut dyn FnMut(Vec<u8>) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut place = 0;
    let mut send = |piece: &Piece| {
        place += 1;
        emit(framed(place - 1, piece))
    };
    if send(&Piece::Head(head)).is_break() {
        return Ok(());
    }
    for (family, mark) in read.marks()? {
        if send(&Piece::Mark { family, mode: mark.mode, stamp: mark.stamp }).is_break() {
            return Ok(());
        }
    }
    let (mut records, mut bytes, mut count) = (Vec::new(), 0, 0);
    let mut broken_off = false;
    read.scan(Span::All, &mut |(key, stored)| {
        let record = Record::new(key, stored);
        if bytes + record.frame_bytes() > RECORDS_MAX_BYTES {
            bytes = 0;
            if send(&Piece::Records(std::mem::take(&mut records))).is_break() {
                broken_off = true;
                return ControlFlow::Break(());
            }
        }
        bytes += record.frame_bytes();
        count += 1;
        records.push(record);
        ControlFlow::Continue(())
    })?;
    let rest = if records.is_empty() { None } else { Some(Piece::Records(records)) };
    for piece in rest.into_iter().chain([Piece::End { records: count }]) {
        if broken_off || send(&piece).is_break() {
            break;
        }
    }
    Ok(())
}

/// A piece with its header, and before the first one the preamble.
fn framed(place: u64, piece: &Piece) -> Vec<u8> {
    let row = encode_row(piece);
    let mut bytes = Vec::with_capacity(PREAMBLE_BYTES + PIECE_HEADER_BYTES + row.len());
    if place == 0 {
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
    }
    let length = u32::try_from(row.len()).expect("a piece is far below 4 GiB");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64_with_seed(&row, place).to_le_bytes());
    bytes.extend_from_slice(&row);
    bytes
}

/// Reads a backup: the preamble, then for each piece its header and its row, until [`Decoder::ended`].
#[derive(Debug, Default)]
pub struct Decoder {
    place: u64,
    records: u64,
    /// Marks come no more.
    in_records: bool,
    ended: bool,
}

impl Decoder {
    /// Judges the first bytes.
    pub fn begin(preamble: &[u8; PREAMBLE_BYTES]) -> Result<Self, BackupError> {
        let (magic, format) = preamble.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(BackupError::NoBackup);
        }
        let found = u32::from_le_bytes(format.try_into().expect("four bytes are left"));
        match found {
            FORMAT => Ok(Self::default()),
            0 => Err(BackupError::NoBackup),
            _ => Err(BackupError::NewerFormat { found }),
        }
    }

    /// How many bytes the row behind this header has.
    pub fn row_bytes(&self, header: &[u8; PIECE_HEADER_BYTES]) -> Result<usize, BackupError> {
        let bytes = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if self.ended {
            return Err(BackupError::LeftOver);
        }
        if bytes > PIECE_MAX_BYTES { Err(BackupError::TooLong { place: self.place, bytes }) } else { Ok(bytes) }
    }

    /// The piece that came behind this header.
    pub fn piece(&mut self, header: &[u8; PIECE_HEADER_BYTES], row: &[u8]) -> Result<Piece, BackupError> {
        let place = self.place;
        if header[4..] != xxh3_64_with_seed(row, place).to_le_bytes() {
            return Err(BackupError::Checksum { place });
        }
        let piece = decode_row(row).map_err(|error| BackupError::Piece { place, error })?;
        match &piece {
            Piece::Head(_) if place == 0 => {}
            Piece::Mark { .. } if place > 0 && !self.in_records => {}
            Piece::Records(records) if place > 0 => {
                self.in_records = true;
                self.records += records.len() as u64;
                let check = |record: &Record| record.register.check();
                records.iter().try_for_each(check).map_err(|error| BackupError::Record { place, error })?;
            }
            Piece::End { records } if place > 0 => {
                if *records != self.records {
                    return Err(BackupError::Count { said: *records, found: self.records });
                }
                self.ended = true;
            }
            _ => return Err(BackupError::Order { place }),
        }
        self.place += 1;
        Ok(piece)
    }

    /// Whether the last piece has come: nothing may follow it.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Judges the end of the bytes.
    pub fn finish(&self) -> Result<(), BackupError> {
        if self.ended { Ok(()) } else { Err(BackupError::CutOff { pieces: self.place }) }
    }

    pub fn records(&self) -> u64 {
        self.records
    }
}

/// Puts a piece into a store that is empty but for the pieces before it. `head` is the greatest sequence number
/// given out so far, which this moves on.
///
/// Records enter as those of a new member do: at new places in a feed of its own, as if written here, so that
/// whoever follows it is offered them; their stamps decide what they are still worth.
pub fn restore<W: Write>(write: &mut W, piece: Piece, head: &mut u64) -> Result<(), StoreError> {
    match piece {
        Piece::Head(_) | Piece::End { .. } => {}
        Piece::Mark { family, mode, stamp } => {
            *head += 1;
            write.set_mark(&family, Some(super::family::Mark { mode, since: *head, stamp }))?;
        }
        Piece::Records(records) => {
            for Record { key, register, .. } in records {
                *head += 1;
                write.put_record(&key, &Stored { register, class: Class::Local, seq: *head })?;
            }
        }
    }
    write.set_head(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::path::{Path, Value};
    use crate::core::replica::{Input, Outcome, Replica, Settings};
    use crate::core::storage::{Run, Store};
    use crate::store::memory::MemoryStore;

    const NOW: UnixMs = 1_790_000_000_000;
    const EID: Eid = Eid::new([2, 0, 0, 0, 1, 0xab]);

    fn head() -> Head {
        Head { eid: EID, taken_unix_ms: NOW, version: "0.1.0".into() }
    }

    fn replica(store: MemoryStore, eid: Eid, run: u64) -> Replica<MemoryStore> {
        Replica::open(store, Settings::new(eid), Run(run), NOW).expect("opens")
    }

    fn put(key: &str, value: &str) -> Input {
        Input::Put { path: Path::new(key).expect("a path"), value: Value::new(value).expect("a value") }
    }

    /// A node that shares foo, with a value, a tombstone, a local key and its entry in the books.
    fn source(values: usize) -> Replica<MemoryStore> {
        let mut source = replica(MemoryStore::new(), EID, 1);
        let foo = Family::new("foo").expect("a family");
        let gone = Path::new("/foo/gone").expect("a path");
        let mut inputs = vec![
            Input::Share { family: foo, mode: Mode::Global },
            put("/foo/gone", "v"),
            Input::Delete { path: gone },
            put("/own/k", "v"),
            Input::Admit,
        ];
        inputs.extend((0..values).map(|n| put(&format!("/foo/{n}"), &"v".repeat(200))));
        let done = source.handle(inputs, NOW).expect("written");
        assert!(!done.outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))), "{:?}", done.outcomes);
        source
    }

    fn backup(replica: &Replica<MemoryStore>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut emit = |piece: Vec<u8>| {
            bytes.extend_from_slice(&piece);
            ControlFlow::Continue(())
        };
        write(&replica.read().expect("reads"), head(), &mut emit).expect("written");
        bytes
    }

    /// Every piece, or what is wrong with the bytes.
    fn read(bytes: &[u8]) -> Result<Vec<Piece>, BackupError> {
        let (preamble, mut rest) = bytes.split_first_chunk().ok_or(BackupError::NoBackup)?;
        let mut decoder = Decoder::begin(preamble)?;
        let mut pieces = Vec::new();
        while let Some((header, behind)) = rest.split_first_chunk() {
            let length = decoder.row_bytes(header)?;
            let Some((row, behind)) = behind.split_at_checked(length) else { break };
            pieces.push(decoder.piece(header, row)?);
            rest = behind;
        }
        decoder.finish()?;
        if rest.is_empty() { Ok(pieces) } else { Err(BackupError::LeftOver) }
    }

    fn records(
        replica: &Replica<MemoryStore>,
    ) -> Vec<(super::super::record::RecordKey, super::super::register::Register)> {
        let mut records = Vec::new();
        let read = replica.read().expect("reads");
        read.scan(Span::All, &mut |(key, stored)| {
            records.push((key, stored.register));
            ControlFlow::Continue(())
        })
        .expect("scanned");
        records
    }

    #[test]
    fn a_restored_store_holds_the_same_records_and_marks_and_nothing_of_the_former_life() {
        let source = source(3_000);
        let pieces = read(&backup(&source)).expect("whole");
        assert!(pieces.len() > 5, "several pieces of records");
        let (mut store, mut head) = (MemoryStore::new(), 0);
        let mut writer = store.write().expect("a transaction");
        for piece in pieces {
            restore(&mut writer, piece, &mut head).expect("restored");
        }
        writer.commit().expect("durable");
        let other = Eid::new([2, 0, 0, 0, 1, 0xac]);
        let mut restored = replica(store, other, 2);
        assert_eq!(records(&restored), records(&source));
        let read = restored.read().expect("reads");
        let marks = read.marks().expect("marks");
        assert_eq!(marks.len(), 1);
        assert_eq!(read.runs().expect("runs").len(), 1, "its own run alone");
        assert_eq!(read.head().expect("head"), head);
        assert_eq!(restored.ledger().tallies, source.ledger().tallies);
        let before = source.clock_last();
        restored.handle(vec![put("/foo/0", "new")], NOW - 3_600_000).expect("written");
        assert!(
            restored.clock_last() > before,
            "what it writes beats what was restored, also with a clock that is late"
        );
    }

    #[test]
    fn a_backup_that_is_cut_off_or_flipped_anywhere_is_refused() {
        let bytes = backup(&source(3));
        assert!(read(&bytes).is_ok());
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "cut off at {end}");
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(read(&flipped).is_err(), "flipped at {at}");
        }
        assert_eq!(read(&[&bytes[..], b"more than a header"].concat()), Err(BackupError::LeftOver));
        assert_eq!(read(b"something else entirely"), Err(BackupError::NoBackup));
    }

    #[test]
    fn pieces_that_are_missing_doubled_or_moved_are_refused() {
        let pieces = |values| {
            let mut pieces = Vec::new();
            let mut emit = |piece: Vec<u8>| {
                pieces.push(piece);
                ControlFlow::Continue(())
            };
            write(&source(values).read().expect("reads"), head(), &mut emit).expect("written");
            pieces
        };
        let whole = pieces(3_000);
        assert!(read(&whole.concat()).is_ok());
        for at in 1..whole.len() - 1 {
            let mut missing = whole.clone();
            missing.remove(at);
            assert!(read(&missing.concat()).is_err(), "without piece {at}");
            let mut doubled = whole.clone();
            doubled.insert(at, whole[at].clone());
            assert!(read(&doubled.concat()).is_err(), "piece {at} twice");
            let mut moved = whole.clone();
            moved.swap(at, at + 1);
            assert!(read(&moved.concat()).is_err(), "piece {at} moved");
        }
    }

    #[test]
    fn a_backup_of_a_newer_program_says_so() {
        let mut bytes = backup(&source(0));
        bytes[8] = 2;
        assert_eq!(read(&bytes), Err(BackupError::NewerFormat { found: 2 }));
    }

    #[test]
    fn whoever_does_not_want_more_ends_the_backup() {
        let source = source(3_000);
        for wanted in 1..4 {
            let mut pieces = 0;
            let mut emit = |_| {
                pieces += 1;
                if pieces == wanted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            write(&source.read().expect("reads"), head(), &mut emit).expect("read");
            assert_eq!(pieces, wanted);
        }
    }
}
