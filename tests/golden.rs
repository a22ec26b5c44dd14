//! The bytes of every version of the protocol between nodes, as files that outlive the code that wrote them.
//!
//! `tests/fixtures/golden/v<version>/<message>.hex`. A version that is still spoken is read and written as it
//! stands there. A file is never changed: what would change it is a new version, with a directory of its own.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use kinfolk::core::clock::{Hlc, Stamp};
use kinfolk::core::codec::{Message, PROTOCOL_VERSION, decode_frame, encode_frame};
use kinfolk::core::eid::Eid;
use kinfolk::core::family::Mode;
use kinfolk::core::message::{
    Compare, Counts, Entries, Follow, FollowReply, Gossip, Heard, Hello, Missing, Packed, Reconcile, WideGossip,
};
use kinfolk::core::path::{Family, Path as AstPath, Value};
use kinfolk::core::protocol::{PROTOCOL_VERSION_MIN, Versions};
use kinfolk::core::record::{Classes, Record, RecordKey};
use kinfolk::core::register::{Register, value_hash};
use kinfolk::core::sketch::Root;
use kinfolk::core::storage::{Cursor, Run};

const EID: Eid = Eid::new([2, 0, 0, 0, 1, 0xab]);
const RUN: Run = Run(0x1122_3344_5566_7788);

fn dir(version: u8) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/golden/v{version}"))
}

/// Messages that were compared, by the name of their file.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    /// The file holds this message, to the byte, and is read as it.
    #[track_caller]
    fn golden<M: Message + PartialEq + Debug>(&mut self, name: &str, message: &M) {
        let file = dir(1).join(name).with_extension("hex");
        let written = encode_frame(message).expect("a frame");
        let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        let golden: String = golden.split_whitespace().collect();
        assert_eq!(golden, hex, "{}", file.display());
        assert_eq!(decode_frame::<M>(&unhex(&golden)).as_ref(), Ok(message), "{}", file.display());
        self.0.insert(format!("{name}.hex"));
    }
}

fn unhex(digits: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex digits");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn record(path: &str, owner: Option<Eid>, value: Option<&str>, crossed: bool) -> Record {
    let value = value.map(|text| Value::new(text).expect("a value"));
    let hlc = Hlc::from_parts(1_790_000_000_000, 7).expect("in range");
    let stamp = Stamp { hlc, eid: EID, hash: value_hash(value.as_ref()) };
    let key = RecordKey { path: AstPath::new(path).expect("a path"), owner };
    Record { key, register: Register::new(value, stamp), crossed }
}

#[test]
fn version_1_is_read_and_written_as_its_files_say() {
    let mut seen = Seen::default();
    let protocol = Versions { min: 1, max: 1 };
    seen.golden(
        "hello",
        &Hello {
            cluster: "kinfolk".into(),
            eid: EID,
            run: RUN,
            site: "frankfurt".into(),
            advertise: "node1.example.com:7480".into(),
            version: "0.1.0".into(),
            protocol,
        },
    );
    let family = Family::new("CF").expect("a family");
    let floor = Hlc::from_parts(1_790_000_000_000, 7).expect("in range");
    let follow = |cursor| Follow { family: family.clone(), mode: Mode::Global, classes: Classes::LOCAL, cursor, floor };
    seen.golden("follow-from-the-beginning", &follow(None));
    seen.golden("follow-from-a-cursor", &follow(Some(Cursor { run: RUN, seq: 513 })));
    let unique = Follow { mode: Mode::Unique, classes: Classes::ALL, ..follow(None) };
    seen.golden("follow-a-unique-family", &unique);
    seen.golden("reply-resume", &FollowReply::Resume { run: RUN, head: 70_000 });
    seen.golden("reply-compare", &FollowReply::Compare { run: RUN, head: 70_000 });
    seen.golden("reply-not-shared", &FollowReply::NotShared { mode: None });
    seen.golden("reply-other-floor", &FollowReply::OtherFloor { floor: Some(floor) });
    seen.golden("reply-no-floor-yet", &FollowReply::OtherFloor { floor: None });
    seen.golden("reply-shared-otherwise", &FollowReply::NotShared { mode: Some(Mode::Unique) });
    let root = Root::from(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    let compare = |counts| Compare { family: family.clone(), mode: Mode::Global, floor, root, counts };
    seen.golden("compare", &compare(None));
    seen.golden("compare-with-counts", &compare(Some(Counts { records: 70_000, estimator: b"opaque".to_vec() })));
    let records = vec![
        record("/CF/1001", None, Some("1002"), false),
        record("/CF/1003", None, None, true),
        record("/hotdesk/é", Some(EID), Some(""), false),
    ];
    let wants = vec![0x0102_0304_0506_0708];
    let (cells, estimator) = (b"opaque".to_vec(), Vec::new());
    for frame in [
        Reconcile::Equal { run: RUN, head: 513 },
        Reconcile::Differs { run: RUN, head: 513, root, records: 70_000, cells: cells.clone(), last: false, estimator },
        Reconcile::NotShared { mode: Some(Mode::Unique) },
        Reconcile::OtherFloor { floor: Some(floor) },
        Reconcile::Busy,
        Reconcile::Cells { packed: cells, last: true },
        Reconcile::More { upto: 300 },
        Reconcile::Records { records: records.clone(), wants, last: true },
    ] {
        seen.golden(&format!("reconcile-{}", frame.name().replace(' ', "-")), &frame);
    }
    seen.golden("entries", &Entries { records, complete_to: 513, head: 514 });
    seen.golden("entries-without-records", &Entries { records: vec![], complete_to: 514, head: 514 });
    seen.golden("gossip", &Gossip { payload: b"opaque".to_vec() });
    seen.golden("heard", &Heard { family, source: EID, run: RUN, to: 513 });
    seen.golden("missing", &Missing { after: 513 });
    seen.golden("wide-gossip", &WideGossip { payload: b"opaque".to_vec() });
    seen.golden("packed", &Packed { payload: b"opaque".to_vec() });
    let files: BTreeSet<String> = std::fs::read_dir(dir(1))
        .expect("golden files")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, seen.0, "every file is compared");
}

#[test]
fn every_version_that_is_spoken_has_golden_files() {
    for version in PROTOCOL_VERSION_MIN..=PROTOCOL_VERSION {
        let files = std::fs::read_dir(dir(version)).map(Iterator::count).unwrap_or_default();
        assert!(files > 0, "version {version} has none");
    }
}
