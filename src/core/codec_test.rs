//! The form of frames and rows, byte by byte, and what is refused.
//!
//! A golden vector that fails means that nodes of two versions, or a program and the data directory of its
//! predecessor, do not understand each other any more: raise the version instead of mending the vector.

use proptest::prelude::*;

use super::backup::{self, Head, Piece};
use super::clock::{Hlc, Stamp};
use super::codec::{
    CodecError, FRAME_MAX_BYTES, HEADER_BYTES, Header, MAGIC, Message, PROTOCOL_VERSION, ROW_VERSION, decode_frame,
    decode_payload, decode_row, encode_frame, encode_row,
};
use super::eid::Eid;
use super::family::Mode;
use super::message::{
    Compare, Counts, Entries, Follow, FollowReply, Gossip, Heard, Hello, Missing, Packed, Reconcile, WideGossip,
};
use super::path::{Family, PATH_MAX_BYTES, Path, VALUE_MAX_BYTES, Value};
use super::protocol::Versions;
use super::record::{Class, Classes, Record, RecordKey, Stored};
use super::register::{Register, value_hash};
use super::storage::{Cursor, Run};

const EID: Eid = Eid::new([2, 0, 0, 0, 1, 0xab]);
const RUN: Run = Run(0x1122_3344_5566_7788);
const RUN_HEX: &str = "8877665544332211";
const ROOT: &str = "00112233445566778899aabbccddeeff";
const ROOT_HEX: &str = "ffeeddccbbaa99887766554433221100";
/// The moment and the EID of every stamp here; the hash of the value follows.
const STAMP_HEX: &str = "070000009e7f0005 0200000001ab";

fn register(value: Option<&str>, ms: u64, counter: u64) -> Register {
    let value = value.map(|text| Value::new(text).expect("a value"));
    let hlc = Hlc::from_parts(ms, counter).expect("in range");
    let stamp = Stamp { hlc, eid: EID, hash: value_hash(value.as_ref()) };
    Register::new(value, stamp)
}

fn record(path: &str, owner: Option<Eid>, value: Option<&str>, crossed: bool) -> Record {
    let key = RecordKey { path: Path::new(path).expect("a path"), owner };
    Record { key, register: register(value, 1_790_000_000_000, 7), crossed }
}

/// Hexadecimal digits in groups, each of them one field.
fn unhex(groups: &[&str]) -> Vec<u8> {
    let digits: Vec<u8> = groups.concat().bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex digits");
    digits.chunks(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn golden<M: Message + PartialEq + std::fmt::Debug>(message: &M, groups: &[&str]) {
    let bytes = unhex(groups);
    assert_eq!(hex(&encode_frame(message).expect("it fits")), hex(&bytes), "what is written has changed");
    assert_eq!(decode_frame::<M>(&bytes).as_ref(), Ok(message), "what is read has changed");
}

/// A frame of this kind around any payload.
fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short one").to_le_bytes();
    [&MAGIC[..], &[PROTOCOL_VERSION, kind], &length, payload].concat()
}

// ---- golden vectors ---------------------------------------------------------------------------

#[test]
fn a_hello_has_this_form() {
    let hello = Hello {
        cluster: "kin".into(),
        eid: EID,
        run: RUN,
        site: "ulm".into(),
        advertise: "a:7480".into(),
        version: "0.1.0".into(),
        protocol: Versions { min: 1, max: 2 },
    };
    let cluster_and_eid = "0300000000000000 6b696e 0200000001ab";
    let site_and_address = "0300000000000000 756c6d 0600000000000000 613a37343830";
    let version_and_protocol = "0500000000000000 302e312e30 01 02";
    golden(&hello, &["4b46 01 01 41000000", cluster_and_eid, RUN_HEX, site_and_address, version_and_protocol]);
}

#[test]
fn a_follow_request_has_this_form() {
    let mut follow = Follow {
        family: Family::new("foo").expect("a family"),
        mode: Mode::Unique,
        classes: Classes::LOCAL | Classes::FAR,
        cursor: Some(Cursor { run: RUN, seq: 513 }),
        floor: Hlc::from_parts(1_790_000_000_000, 7).expect("in range"),
    };
    let family_mode_classes = "0300000000000000 666f6f 01000000 05";
    let floor = "070000009e7f0005";
    golden(&follow, &["4b46 01 02 29000000", family_mode_classes, "01", RUN_HEX, "0102000000000000", floor]);
    follow.mode = Mode::Global;
    follow.cursor = None;
    follow.floor = Hlc::ZERO;
    let no_floor = "0000000000000000";
    golden(&follow, &["4b46 01 02 19000000", "0300000000000000 666f6f 00000000 05", "00", no_floor]);
}

#[test]
fn what_relays_tell_each_other_has_this_form() {
    let heard = Heard { family: Family::new("foo").expect("a family"), source: EID, run: RUN, to: 513 };
    golden(&heard, &["4b46 01 16 21000000", "0300000000000000 666f6f 0200000001ab", RUN_HEX, "0102000000000000"]);
    golden(&Missing { after: 513 }, &["4b46 01 17 08000000", "0102000000000000"]);
}

#[test]
fn each_reply_to_a_follow_request_has_this_form() {
    let head = "0900000000000000";
    golden(&FollowReply::Resume { run: RUN, head: 9 }, &["4b46 01 03 14000000", "00000000", RUN_HEX, head]);
    golden(&FollowReply::Compare { run: RUN, head: 9 }, &["4b46 01 03 14000000", "01000000", RUN_HEX, head]);
    let unique = FollowReply::NotShared { mode: Some(Mode::Unique) };
    golden(&unique, &["4b46 01 03 09000000", "02000000", "01 01000000"]);
    golden(&FollowReply::NotShared { mode: None }, &["4b46 01 03 05000000", "02000000", "00"]);
    let floor = Some(Hlc::from_parts(1_790_000_000_000, 7).expect("in range"));
    golden(&FollowReply::OtherFloor { floor }, &["4b46 01 03 0d000000", "03000000", "01 070000009e7f0005"]);
    golden(&FollowReply::OtherFloor { floor: None }, &["4b46 01 03 05000000", "03000000", "00"]);
}

#[test]
fn entries_with_a_put_a_tombstone_and_an_owner_have_this_form() {
    let records = vec![record("/foo/a", None, Some("v1"), false), record("/foo/b", Some(EID), None, true)];
    let put = ["0600000000000000 2f666f6f2f61 00", "01 0200000000000000 7631", STAMP_HEX, "0d39cd65a9969a69", "00"];
    let tombstone = ["0600000000000000 2f666f6f2f62 01 0200000001ab", "00", STAMP_HEX, "216b6c6f666e696b", "01"];
    let (put, tombstone) = (put.concat(), tombstone.concat());
    golden(
        &Entries { records, complete_to: 5, head: 6 },
        &["4b46 01 04 76000000", "0200000000000000", &put, &tombstone, "0500000000000000", "0600000000000000"],
    );
}

#[test]
fn a_request_to_compare_has_this_form() {
    let (floor, root) = (Hlc::from_parts(1_790_000_000_000, 7).expect("in range"), ROOT.parse().expect("a root"));
    let (family, mode) = (Family::new("foo").expect("a family"), Mode::Unique);
    let compare = Compare { family, mode, floor, root, counts: None };
    let fixed = ["0300000000000000 666f6f 01000000", "070000009e7f0005", ROOT_HEX].concat();
    golden(&compare, &["4b46 01 06 28000000", &fixed, "00"]);
    let counts = Some(Counts { records: 3, estimator: vec![0xbb, 0xcc] });
    let counted = "01 0300000000000000 0200000000000000 bbcc";
    golden(&Compare { counts, ..compare }, &["4b46 01 06 3a000000", &fixed, counted]);
}

#[test]
fn each_frame_of_a_reconcile_has_this_form() {
    let (head, floor) = (9, Hlc::from_parts(1_790_000_000_000, 7).expect("in range"));
    let (head_hex, three) = ("0900000000000000", "0300000000000000");
    golden(&Reconcile::Equal { run: RUN, head }, &["4b46 01 07 14000000", "00000000", RUN_HEX, head_hex]);
    let root = ROOT.parse().expect("a root");
    let (cells, estimator) = (vec![0xaa], vec![0xbb, 0xcc]);
    let differs = Reconcile::Differs { run: RUN, head, root, records: 3, cells, last: true, estimator };
    let bytes = "0100000000000000 aa 01 0200000000000000 bbcc";
    golden(&differs, &["4b46 01 07 40000000", "01000000", RUN_HEX, head_hex, ROOT_HEX, three, bytes]);
    let not_shared = Reconcile::NotShared { mode: Some(Mode::Unique) };
    golden(&not_shared, &["4b46 01 07 09000000", "02000000", "01 01000000"]);
    golden(&Reconcile::OtherFloor { floor: Some(floor) }, &["4b46 01 07 0d000000", "03000000", "01 070000009e7f0005"]);
    golden(&Reconcile::Busy, &["4b46 01 07 04000000", "04000000"]);
    let cells = Reconcile::Cells { packed: vec![0xaa], last: true };
    golden(&cells, &["4b46 01 07 0e000000", "05000000", "0100000000000000 aa", "01"]);
    golden(&Reconcile::More { upto: 258 }, &["4b46 01 07 08000000", "06000000", "02010000"]);
    let records = vec![record("/foo/b", Some(EID), None, true)];
    let tombstone =
        ["0600000000000000 2f666f6f2f62 01 0200000001ab", "00", STAMP_HEX, "216b6c6f666e696b", "01"].concat();
    let wants = "0100000000000000 0100000000000000";
    golden(
        &Reconcile::Records { records, wants: vec![1], last: false },
        &["4b46 01 07 4a000000", "07000000", "0100000000000000", &tombstone, wants, "00"],
    );
}

#[test]
fn a_backup_has_this_form() {
    use crate::core::storage::Store as _;
    let head = Head { eid: EID, taken_unix_ms: 1_790_000_000_000, version: "0.1.0".into() };
    let mut backup = Vec::new();
    let mut emit = |piece: Vec<u8>| {
        backup.extend_from_slice(&piece);
        std::ops::ControlFlow::Continue(())
    };
    let empty = crate::store::memory::MemoryStore::new().read().expect("reads");
    backup::write(&empty, head, &mut emit).expect("written");
    let head = "01 00000000 0200000001ab 006c50c4a0010000 0500000000000000 302e312e30";
    let end = "01 03000000 0000000000000000";
    let (head_sum, end_sum) = ("17d1c503b0f41077", "02454aeedba99430");
    let golden = unhex(&["4b494e464f4c4b42 01000000", "20000000", head_sum, head, "0d000000", end_sum, end]);
    assert_eq!(hex(&backup), hex(&golden));

    let stamp = Stamp { hlc: Hlc::from_parts(1_790_000_000_000, 7).expect("in range"), eid: EID, hash: 1 };
    let mark = Piece::Mark { family: Family::new("foo").expect("a family"), mode: Mode::Unique, stamp };
    let family_and_mode = "0300000000000000 666f6f 01000000";
    let golden = unhex(&["01 01000000", family_and_mode, STAMP_HEX, "0100000000000000"]);
    assert_eq!(hex(&encode_row(&mark)), hex(&golden));
    let put = ["0600000000000000 2f666f6f2f61 00", "01 0200000000000000 7631", STAMP_HEX, "0d39cd65a9969a69", "00"];
    let golden = unhex(&["01 02000000 0100000000000000", &put.concat()]);
    let records = Piece::Records(vec![record("/foo/a", None, Some("v1"), false)]);
    assert_eq!(hex(&encode_row(&records)), hex(&golden));
}

#[test]
fn a_message_of_the_membership_has_this_form() {
    golden(&Gossip { payload: vec![0xde, 0xad] }, &["4b46 01 05 0a000000", "0200000000000000 dead"]);
    golden(&WideGossip { payload: vec![0xde, 0xad] }, &["4b46 01 15 0a000000", "0200000000000000 dead"]);
    golden(&Packed { payload: vec![0xde, 0xad] }, &["4b46 01 14 0a000000", "0200000000000000 dead"]);
}

#[test]
fn a_stored_row_has_this_form() {
    let put = Stored { register: register(Some("v1"), 1_790_000_000_000, 7), class: Class::Far, seq: 300 };
    let tombstone = Stored { register: register(None, 1_790_000_000_000, 7), class: Class::Local, seq: 1 };
    let put_hex = ["01", "01 0200000000000000 7631", STAMP_HEX, "0d39cd65a9969a69", "02000000", "2c01000000000000"];
    let tombstone_hex = ["01", "00", STAMP_HEX, "216b6c6f666e696b", "00000000", "0100000000000000"];
    for (stored, row) in [(put, unhex(&put_hex)), (tombstone, unhex(&tombstone_hex))] {
        assert_eq!(hex(&encode_row(&stored)), hex(&row), "what is written has changed");
        assert_eq!(decode_row(&row), Ok(stored), "what is read has changed");
    }
}

// ---- refusals ---------------------------------------------------------------------------------

fn header(frame: &[u8]) -> Result<Header, CodecError> {
    Header::decode(frame.first_chunk().expect("a whole header"))
}

#[track_caller]
fn refused_payload<M: Message + std::fmt::Debug>(payload: &[u8], why: &str) {
    match decode_frame::<M>(&framed(M::KIND, payload)) {
        Err(CodecError::Payload(text)) => assert!(text.contains(why), "'{text}' does not say '{why}'"),
        other => panic!("not refused as a payload but {other:?}"),
    }
}

#[test]
fn a_frame_that_is_not_ours_is_refused_by_its_header() {
    let good = encode_frame(&Gossip { payload: vec![1] }).expect("it fits");
    let with = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        decode_frame::<Gossip>(&frame)
    };
    assert_eq!(with(0, b'k'), Err(CodecError::Magic));
    assert_eq!(with(1, 0), Err(CodecError::Magic));
    assert_eq!(with(2, 2), Err(CodecError::Version(2)));
    assert_eq!(with(3, 4), Err(CodecError::Kind { found: 4, wanted: 5 }));
}

#[test]
fn a_length_over_the_limit_is_refused_before_a_byte_of_the_payload_is_read() {
    let length = u32::try_from(FRAME_MAX_BYTES).expect("it fits");
    let frame = |length: u32| [&MAGIC[..], &[PROTOCOL_VERSION, 5], &length.to_le_bytes()].concat();
    assert_eq!(header(&frame(length)), Ok(Header { kind: 5, payload_bytes: FRAME_MAX_BYTES }));
    assert_eq!(header(&frame(length + 1)), Err(CodecError::TooLong(FRAME_MAX_BYTES + 1)));
    assert_eq!(header(&frame(u32::MAX)), Err(CodecError::TooLong(u32::MAX as usize)));
}

#[test]
fn a_message_that_does_not_fit_a_frame_is_not_written() {
    let fitting = FRAME_MAX_BYTES - 8;
    let frame = encode_frame(&Gossip { payload: vec![7; fitting] }).expect("it just fits");
    assert_eq!(decode_frame::<Gossip>(&frame).expect("it is read again").payload.len(), fitting);
    assert!(encode_frame(&Gossip { payload: vec![7; fitting + 1] }).is_err());
}

#[test]
fn the_largest_record_fits_a_frame() {
    let path = format!("/f/{}", "k".repeat(PATH_MAX_BYTES - 3));
    let records = vec![record(&path, Some(EID), Some(&"v".repeat(VALUE_MAX_BYTES)), true)];
    let entries = Entries { records, complete_to: u64::MAX, head: u64::MAX };
    let frame = encode_frame(&entries).expect("it fits");
    assert_eq!(decode_frame(&frame), Ok(entries));
}

#[test]
fn a_frame_cut_off_anywhere_is_refused() {
    let records = vec![record("/foo/a", Some(EID), Some("v"), false)];
    let frame = encode_frame(&Entries { records, complete_to: 1, head: 1 }).expect("it fits");
    for end in 0..frame.len() {
        let error = decode_frame::<Entries>(&frame[..end]).expect_err("it is cut off");
        assert!(matches!(error, CodecError::CutOff { found, wanted } if found < wanted), "at {end}: {error}");
    }
    // The header says what is there, but the message in it ends too early.
    for end in 0..frame.len() - HEADER_BYTES {
        refused_payload::<Entries>(&frame[HEADER_BYTES..HEADER_BYTES + end], "");
    }
}

#[test]
fn bytes_left_over_are_refused() {
    let mut payload = encode_frame(&Gossip { payload: vec![1] }).expect("it fits").split_off(HEADER_BYTES);
    payload.extend([0, 0]);
    assert_eq!(decode_frame::<Gossip>(&framed(5, &payload)), Err(CodecError::LeftOver(2)));
    let mut row = encode_row(&7_u64);
    row.push(0);
    assert_eq!(decode_row::<u64>(&row), Err(CodecError::LeftOver(1)));
}

/// What is said to come is not reserved: 2^40 bytes would end the process, u64::MAX even sooner.
#[test]
fn a_hostile_length_within_a_payload_is_refused_and_nothing_is_reserved_for_it() {
    for length in [FRAME_MAX_BYTES as u64 + 1, 1 << 40, u64::MAX] {
        let length = length.to_le_bytes();
        refused_payload::<Entries>(&length, "");
        refused_payload::<Gossip>(&length, "");
        refused_payload::<Hello>(&length, "");
        refused_payload::<Follow>(&length, "");
        refused_payload::<Compare>(&length, "");
        refused_payload::<Reconcile>(&[&8_u32.to_le_bytes()[..], &length].concat(), "");
        let in_a_path = [&1_u64.to_le_bytes()[..], &length, b"/foo/a"].concat();
        refused_payload::<Entries>(&in_a_path, "");
        let row = [&[ROW_VERSION, 1][..], &length, b"value"].concat();
        assert!(matches!(decode_row::<Stored>(&row), Err(CodecError::Payload(_))));
    }
}

/// The payload of one put of "v1", with the parts that a test may want to spoil.
fn entries_payload(path: &str, value: &[u8], hlc: u64) -> Vec<u8> {
    let text = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    let stamp = [&hlc.to_le_bytes()[..], &EID.bytes(), &[0; 8]].concat();
    let record = [&text(path.as_bytes())[..], &[0, 1], &text(value), &stamp, &[0]].concat();
    [&1_u64.to_le_bytes()[..], &record, &[0; 16]].concat()
}

#[test]
fn a_stamp_above_the_maximum_of_the_protocol_is_malformed() {
    let good = entries_payload("/foo/a", b"v1", Hlc::MAX.as_u64());
    assert!(decode_frame::<Entries>(&framed(4, &good)).is_ok());
    refused_payload::<Entries>(
        &entries_payload("/foo/a", b"v1", Hlc::MAX.as_u64() + 1),
        "above the protocol's maximum",
    );
    refused_payload::<Entries>(&entries_payload("/foo/a", b"v1", u64::MAX), "above the protocol's maximum");
}

#[test]
fn a_malformed_path_or_value_within_a_payload_is_refused_and_named() {
    let hlc = Hlc::ZERO.as_u64();
    refused_payload::<Entries>(&entries_payload("/foo//a", b"v1", hlc), "segment 2 is empty");
    refused_payload::<Entries>(&entries_payload("/foo", b"v1", hlc), "names a family and a key");
    refused_payload::<Entries>(&entries_payload("/foo/\0", b"v1", hlc), "no NUL byte");
    let long = format!("/foo/{}", "k".repeat(PATH_MAX_BYTES));
    refused_payload::<Entries>(&entries_payload(&long, b"v1", hlc), "at most 1024 are allowed");
    refused_payload::<Entries>(&entries_payload("/foo/a", b"v\0", hlc), "no NUL byte");
    refused_payload::<Entries>(&entries_payload("/foo/a", b"v\xff", hlc), "");
    let large = vec![b'v'; VALUE_MAX_BYTES + 1];
    refused_payload::<Entries>(&entries_payload("/foo/a", &large, hlc), "at most 65536 are allowed");
}

#[test]
fn what_names_no_case_of_an_enumeration_is_refused() {
    refused_payload::<FollowReply>(&[3, 0, 0, 0], "");
    let no_such_mode = [&3_u64.to_le_bytes()[..], b"foo", &[2, 0, 0, 0], &[1, 0]].concat();
    refused_payload::<Follow>(&no_such_mode, "");
    let no_such_class = [&3_u64.to_le_bytes()[..], b"foo", &[0, 0, 0, 0], &[8, 0]].concat();
    refused_payload::<Follow>(&no_such_class, "no set of classes");
    refused_payload::<FollowReply>(&[2, 0, 0, 0, 7], "");
}

#[test]
fn a_row_of_another_version_is_refused() {
    let mut row = encode_row(&7_u64);
    row[0] = ROW_VERSION + 1;
    assert_eq!(decode_row::<u64>(&row), Err(CodecError::RowVersion(ROW_VERSION + 1)));
    assert_eq!(decode_row::<u64>(&[]), Err(CodecError::CutOff { found: 0, wanted: 1 }));
}

// ---- any input --------------------------------------------------------------------------------

fn any_eid() -> impl Strategy<Value = Eid> {
    any::<[u8; Eid::BYTES]>().prop_map(Eid::new)
}

fn any_register() -> impl Strategy<Value = Register> {
    (proptest::option::of("[^\0]{0,40}"), 0..=Hlc::MAX.as_u64(), any_eid()).prop_map(|(text, hlc, eid)| {
        let value = text.map(|text| Value::new(&text).expect("a value"));
        let stamp = Stamp { hlc: Hlc::from_u64(hlc).expect("in range"), eid, hash: value_hash(value.as_ref()) };
        Register::new(value, stamp)
    })
}

fn any_record() -> impl Strategy<Value = Record> {
    ("(/[^/\0]{1,8}){2,4}", proptest::option::of(any_eid()), any_register(), any::<bool>()).prop_map(
        |(path, owner, register, crossed)| {
            let key = RecordKey { path: Path::new(&path).expect("a path"), owner };
            Record { key, register, crossed }
        },
    )
}

fn any_entries() -> impl Strategy<Value = Entries> {
    (proptest::collection::vec(any_record(), 0..8), any::<u64>(), any::<u64>())
        .prop_map(|(records, complete_to, head)| Entries { records, complete_to, head })
}

fn any_class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Local), Just(Class::Near), Just(Class::Far)]
}

/// Decodes as whatever it might be taken for.
fn decode_as_anything(kind: u8, payload: &[u8]) {
    let header = Header { kind, payload_bytes: payload.len() };
    let _ = decode_payload::<Hello>(header, payload);
    let _ = decode_payload::<Follow>(header, payload);
    let _ = decode_payload::<FollowReply>(header, payload);
    let _ = decode_payload::<Entries>(header, payload);
    let _ = decode_payload::<Gossip>(header, payload);
    let _ = decode_row::<Stored>(payload);
    let _ = decode_row::<Cursor>(payload);
    let _ = RecordKey::from_bytes(payload);
}

proptest! {
    #[test]
    fn bytes_of_any_kind_are_decoded_or_refused_without_a_panic(
        kind in 1..=5_u8,
        payload in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        decode_as_anything(kind, &payload);
        let _ = decode_frame::<Entries>(&payload);
    }

    /// Arbitrary bytes hardly ever get past the first length: so a good frame is spoilt as well.
    #[test]
    fn a_good_frame_with_any_byte_changed_is_decoded_or_refused_without_a_panic(
        entries in any_entries(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut frame = encode_frame(&entries).expect("it fits");
        let at = at.index(frame.len());
        frame[at] = byte;
        let _ = decode_frame::<Entries>(&frame);
        decode_as_anything(4, &frame[HEADER_BYTES..]);
    }

    #[test]
    fn what_is_written_is_read_again(entries in any_entries()) {
        let frame = encode_frame(&entries).expect("it fits");
        prop_assert_eq!(decode_frame::<Entries>(&frame), Ok(entries));
    }

    #[test]
    fn a_row_that_is_written_is_read_again(register in any_register(), class in any_class(), seq in any::<u64>()) {
        let stored = Stored { register, class, seq };
        prop_assert_eq!(decode_row::<Stored>(&encode_row(&stored)), Ok(stored));
    }

    /// A record never takes more bytes in a frame than the batches count for it.
    #[test]
    fn the_size_of_a_record_is_never_underestimated(record in any_record()) {
        let one = Entries { records: vec![record.clone()], complete_to: 0, head: 0 };
        let none = Entries { records: vec![], complete_to: 0, head: 0 };
        let bytes = |entries: &Entries| encode_frame(entries).expect("it fits").len();
        prop_assert!(bytes(&one) - bytes(&none) <= record.frame_bytes());
    }
}
