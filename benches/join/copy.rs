//! The peer: everything that a store holds, copied over one stream of the mesh into another, and nothing else.
//!
//! The same connection (QUIC, TLS, windows), the same frames of the same size, the same commits, immediately durable, and
//! reading, sending, receiving and writing all at once. It reads in the order of the keys, which is the cheapest for both
//! disks; compares nothing, sums nothing, merges nothing, keeps no cursor.

use std::ops::ControlFlow;
use std::path::Path as FilePath;
use std::time::Instant;

use kinfolk::cluster::tls::{self, Identity};
use kinfolk::cluster::{Mesh, MeshConfig};
use kinfolk::core::codec::{FRAME_MAX_BYTES, HEADER_BYTES, Header, decode_payload, encode_frame, encode_row};
use kinfolk::core::eid::Eid;
use kinfolk::core::message::Entries;
use kinfolk::core::record::{Class, Record, Stored};
use kinfolk::core::storage::{Read, Run, Span, Store, Write};
use kinfolk::node::unix_ms;
use kinfolk::store::redb::{CACHE_DEFAULT_BYTES, Options, RedbReads, RedbStore};
use kinfolk::store::writer::Database;
use quinn::{RecvStream, SendStream};
use redb::{Durability, ReadableDatabase as _, TableDefinition};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Cost, cpu, foo};

/// Where the copy is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// A store like a node's: records, and the change feed from which others could follow.
    SameTables,
    /// One table of redb: the bare records.
    OneTable,
}

const BATCH_MAX_BYTES: usize = FRAME_MAX_BYTES - 4_096;
/// Frames between two steps of the copy.
const QUEUE_FRAMES: usize = 8;
const ONE_TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("records");

const FROM: Eid = Eid::new([2, 0, 0, 0, 1, 1]);
const TO: Eid = Eid::new([2, 0, 0, 0, 1, 2]);

/// From the start of both ends until the last record is durable.
pub async fn run(dir: &FilePath, [from, to]: [Identity; 2], database: &Database<RedbReads>, sink: Sink) -> Cost {
    let data = dir.join("copy");
    let (began, cpu_before) = (Instant::now(), cpu());
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let source = mesh(from, Vec::new(), &tracker, &cancel).await;
    let seed = source.local_address().expect("it listens").to_string();
    let target = mesh(to, vec![seed], &tracker, &cancel).await;
    let mut peers = target.peers();
    peers.wait_for(|peers| peers.contains_key(&FROM)).await.expect("the mesh runs");

    let mut incoming = source.take_incoming().expect("nobody else takes it");
    let view = database.view().expect("reads");
    let serving = tokio::spawn(async move {
        let stream = incoming.recv().await.expect("one stream is opened");
        send_all(stream.send, view.read).await;
        incoming
    });
    let (mut send, recv) = target.open_bi(FROM).await.expect("connected");
    send.write_all(&[0]).await.expect("sends");
    receive_all(recv, sink, data.clone()).await;
    drop(serving.await.expect("no panic"));
    let (took, cpu) = (began.elapsed(), cpu() - cpu_before);
    let traffic = target.traffic();
    cancel.cancel();
    tracker.close();
    tracker.wait().await;
    std::fs::remove_dir_all(data).expect("removed");
    Cost { took, cpu, bytes: traffic.sent_bytes + traffic.received_bytes }
}

/// Certificates for both ends.
pub fn identities(dir: &FilePath) -> [Identity; 2] {
    let now_s = unix_ms() / 1_000;
    [FROM, TO].map(|eid| {
        let issued = tls::issue(dir, Some(eid), tls::NODE_VALID_DAYS, now_s).expect("issues");
        Identity::load(&dir.join(tls::CA_CERT_FILE), &issued.cert, &issued.key, now_s).expect("an identity")
    })
}

async fn mesh(identity: Identity, seeds: Vec<String>, tracker: &TaskTracker, cancel: &CancellationToken) -> Mesh {
    let listen = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let config = MeshConfig { listen, seeds, ..MeshConfig::default() };
    Mesh::start(config, identity, Run(1), tracker.clone(), cancel.clone()).await.expect("starts")
}

/// Reads and encodes on a thread of its own, while this task sends.
async fn send_all(mut send: SendStream, read: impl Read + Send + 'static) {
    let (frames, mut queue) = mpsc::channel(QUEUE_FRAMES);
    let reader = tokio::task::spawn_blocking(move || {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let ship = |records: &mut Vec<Record>| {
            let entries = Entries { records: std::mem::take(records), complete_to: 0, head: 0 };
            frames.blocking_send(encode_frame(&entries).expect("fits")).expect("the sender runs");
        };
        let visit = &mut |(key, stored)| {
            let record = Record::new(key, stored);
            if bytes + record.frame_bytes() > BATCH_MAX_BYTES {
                ship(&mut records);
                bytes = 0;
            }
            bytes += record.frame_bytes();
            records.push(record);
            ControlFlow::Continue(())
        };
        read.scan(Span::Under(&foo()), visit).expect("reads");
        ship(&mut records);
    });
    while let Some(frame) = queue.recv().await {
        send.write_all(&frame).await.expect("sends");
    }
    reader.await.expect("no panic");
    send.finish().expect("it is open");
    let _ = send.stopped().await;
}

/// Receives while a thread of its own decodes and commits: one commit for all frames that wait.
async fn receive_all(mut recv: RecvStream, sink: Sink, data: std::path::PathBuf) {
    let (frames, queue) = mpsc::channel(QUEUE_FRAMES);
    let writer = tokio::task::spawn_blocking(move || match sink {
        Sink::SameTables => write_store(queue, &data),
        Sink::OneTable => write_one_table(queue, &data),
    });
    let mut header = [0; HEADER_BYTES];
    while recv.read_exact(&mut header).await.is_ok() {
        let header = Header::decode(&header).expect("a frame");
        let mut payload = vec![0; header.payload_bytes];
        recv.read_exact(&mut payload).await.expect("a whole frame");
        frames.send((header, payload)).await.expect("the writer runs");
    }
    drop(frames);
    writer.await.expect("no panic");
}

type Frame = (Header, Vec<u8>);
type Frames = mpsc::Receiver<Frame>;

/// The frame, and what else has come by now: one commit for all of them.
fn waiting(first: Frame, queue: &mut Frames) -> Vec<Frame> {
    let mut frames = vec![first];
    while frames.len() < QUEUE_FRAMES
        && let Ok(frame) = queue.try_recv()
    {
        frames.push(frame);
    }
    frames
}

fn write_store(mut queue: Frames, data: &FilePath) {
    let mut store = RedbStore::open(data, &Options::new(TO)).expect("opens");
    let mut head = 0;
    while let Some(first) = queue.blocking_recv() {
        let mut txn = store.write().expect("begins");
        for (header, payload) in waiting(first, &mut queue) {
            let entries: Entries = decode_payload(header, &payload).expect("entries");
            for Record { key, register, .. } in entries.records {
                head += 1;
                txn.put_record(&key, &Stored { register, class: Class::Near, seq: head }).expect("puts");
            }
        }
        txn.set_head(head).expect("puts");
        txn.commit().expect("commits");
    }
}

fn write_one_table(mut queue: Frames, data: &FilePath) {
    std::fs::create_dir_all(data).expect("a directory");
    let mut builder = redb::Database::builder();
    builder.set_cache_size(CACHE_DEFAULT_BYTES).set_check_integrity_on_open(true);
    let db = builder.create(data.join("raw.redb")).expect("opens");
    while let Some(first) = queue.blocking_recv() {
        let mut txn = db.begin_write().expect("begins");
        txn.set_durability(Durability::Immediate).expect("it may");
        let mut table = txn.open_table(ONE_TABLE).expect("opens");
        for (header, payload) in waiting(first, &mut queue) {
            let entries: Entries = decode_payload(header, &payload).expect("entries");
            for Record { key, register, .. } in entries.records {
                let stored = Stored { register, class: Class::Near, seq: 0 };
                table.insert(&*key.to_bytes(), &*encode_row(&stored)).expect("inserts");
            }
        }
        drop(table);
        txn.commit().expect("commits");
    }
    drop(db.begin_read().expect("it is readable"));
}
