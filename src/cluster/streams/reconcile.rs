//! Drives the machines of [`core::reconcile`](crate::core::reconcile) over one stream each: asks and answers.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use quinn::{RecvStream, SendStream};

use super::Shared;
use crate::cluster::frames::{FrameError, read_frame};
use crate::cluster::mesh::{Incoming, OpenError};
use crate::core::codec::{self, HEADER_BYTES};
use crate::core::eid::Eid;
use crate::core::message::{Compare, Reconcile};
use crate::core::path::Family;
use crate::core::reconcile::{Answerer, Ended, Fault, Opener, Peer, Served, Snapshot, Step};
use crate::core::replica::{Apply, Input, Outcome, Refusal};
use crate::core::sketch::Root;
use crate::core::storage::Reads;
use crate::store::writer::SubmitError;

/// Why a reconcile ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("what the peer sent was refused: {0}")]
    Refused(Refusal),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the family is not shared here any more")]
    Unshared,
    #[error("the peer is not trusted for the family")]
    NotAllowed,
    #[error("the peer took longer than {0} ms over a frame")]
    Slow(u64),
}

/// How a reconcile ended, and at which head of its own this node began to compare.
pub(super) struct Compared {
    pub ended: Ended,
    pub own_head: u64,
}

/// Makes one family equal with one peer. What it does is counted and logged here.
pub(super) async fn reconcile<R: Reads>(
    room: &Shared<R>,
    peer: Peer,
    family: &Family,
) -> Result<Compared, ReconcileError> {
    let result = open(room, peer, family).await;
    let source = peer.eid;
    match &result {
        Ok(Compared { ended, .. }) => {
            if let Ended::Reconciled { sent, received, .. } = ended {
                tracing::info!(peer = %source, %family, sent, received, "reconciled: both were not equal, now they are");
            } else {
                tracing::debug!(peer = %source, %family, ?ended, "compared");
            }
            room.streams.verifies.count(ended.name());
            if ended.is_verified() {
                room.streams.verifies.note_verified(family, source);
            }
        }
        Err(error) => {
            room.streams.verifies.count("failed");
            report(room, source, family, error);
        }
    }
    result
}

fn report<R: Reads>(room: &Shared<R>, peer: Eid, family: &Family, error: &ReconcileError) {
    match error {
        ReconcileError::Frame(error) => super::serve::refuse(room, peer, error),
        ReconcileError::Refused(_) | ReconcileError::Fault(Fault::Violation(_)) => {
            if room.mesh.counters().refuse("reconcile") {
                tracing::error!(%peer, %family, %error, "a reconcile failed; it is tried again, with another peer if there is one");
            }
        }
        ReconcileError::Fault(Fault::Store(_)) | ReconcileError::Submit(SubmitError::Store(_)) => {
            tracing::error!(%peer, %family, %error, "a reconcile failed: the store");
        }
        _ => tracing::debug!(%peer, %family, %error, "a reconcile broke off"),
    }
}

async fn open<R: Reads>(room: &Shared<R>, peer: Peer, family: &Family) -> Result<Compared, ReconcileError> {
    if !room.mesh.allows(peer.eid, family) {
        return Err(ReconcileError::NotAllowed);
    }
    let snapshot = room.database.snapshot(family).await?.ok_or(ReconcileError::Unshared)?;
    if !room.knows(family, peer.eid) {
        return Ok(Compared { ended: Ended::OtherFloor { floor: None }, own_head: snapshot.head });
    }
    let (mut send, mut recv) = room.mesh.open_bi(peer.eid).await?;
    let (heard, own_head) = (heard(room, peer.eid, family), snapshot.head);
    let mut opener = Opener::new(&snapshot, peer, heard);
    let mut read = snapshot.read;
    loop {
        let (machine, same, step) = aside(opener, read, |opener, read| opener.next(read)).await?;
        (opener, read) = (machine, same);
        match step {
            Step::Ask(ask) => write(room, &mut send, &ask).await?,
            Step::Send(frame) => write(room, &mut send, &frame).await?,
            Step::Apply(apply) => self::apply(room, apply).await?,
            Step::Read => {
                let frame = next_frame(room, &mut recv).await?;
                let (machine, same, ()) = aside(opener, read, |opener, read| opener.on_frame(read, frame)).await?;
                (opener, read) = (machine, same);
            }
            Step::End(ended) => {
                let _ = send.finish();
                let _ = recv.stop(0u32.into());
                return Ok(Compared { ended, own_head });
            }
        }
    }
}

/// The peer's root as it gossips it.
fn heard<R>(room: &Shared<R>, peer: Eid, family: &Family) -> Option<Root> {
    room.members.borrow().iter().find(|member| member.eid == peer)?.roots.get(family).copied()
}

/// Answers a peer that wants to compare, and reports if that failed.
pub(super) async fn answered<R: Reads>(room: &Shared<R>, stream: Incoming, ask: Compare) {
    let (peer, family) = (stream.peer, ask.family.clone());
    match answer(room, stream, ask).await {
        Ok(Served { sent: 0, received: 0 }) => {}
        Ok(Served { sent, received }) => tracing::info!(%peer, %family, sent, received, "reconciled at its wish"),
        // An opener that knows enough ends the stream.
        Err(ReconcileError::Frame(FrameError::Ended)) => {}
        Err(error) => report(room, peer, &family, &error),
    }
}

async fn answer<R: Reads>(room: &Shared<R>, stream: Incoming, ask: Compare) -> Result<Served, ReconcileError> {
    let crossing = stream.site != room.mesh.config().site;
    let Incoming { peer, mut send, mut recv, .. } = stream;
    if !room.mesh.allows(peer, &ask.family) {
        room.mesh.note_not_allowed(peer, &ask.family);
        write(room, &mut send, &Reconcile::NotShared { mode: None }).await?;
        let _ = send.finish();
        return Ok(Served::default());
    }
    if !room.lets_in(&ask.family, peer).await {
        write(room, &mut send, &Reconcile::OtherFloor { floor: None }).await?;
        let _ = send.finish();
        return Ok(Served::default());
    }
    let Ok(_permit) = room.answering.try_acquire() else {
        write(room, &mut send, &Reconcile::Busy).await?;
        let _ = send.finish();
        return Ok(Served::default());
    };
    let snapshot = room.database.snapshot(&ask.family).await?;
    let peer = Peer { eid: peer, crossing };
    let mut answerer = match Answerer::open(snapshot.as_ref(), peer, &ask)? {
        Ok(answerer) => answerer,
        Err(refusal) => {
            write(room, &mut send, &refusal).await?;
            let _ = send.finish();
            return Ok(Served::default());
        }
    };
    let Some(Snapshot { mut read, .. }) = snapshot else { return Ok(Served::default()) };
    loop {
        let (machine, same, step) = aside(answerer, read, |answerer, read| answerer.next(read)).await?;
        (answerer, read) = (machine, same);
        match step {
            Step::Ask(_) => unreachable!("who answers does not ask"),
            Step::Send(frame) => write(room, &mut send, &frame).await?,
            Step::Apply(apply) => self::apply(room, apply).await?,
            Step::Read => {
                let frame = next_frame(room, &mut recv).await?;
                let (machine, same, ()) =
                    aside(answerer, read, |answerer, read| answerer.on_frame(read, frame)).await?;
                (answerer, read) = (machine, same);
            }
            Step::End(served) => {
                let _ = send.finish();
                // Until the opener has everything, the stream must not be forgotten.
                let _ = tokio::time::timeout(patience(room), send.stopped()).await;
                room.streams.verifies.count("served");
                return Ok(served);
            }
        }
    }
}

/// Works with the store off the async threads.
async fn aside<M, R, T>(
    mut machine: M,
    read: R,
    work: impl FnOnce(&mut M, &R) -> Result<T, Fault> + Send + 'static,
) -> Result<(M, R, T), ReconcileError>
where
    M: Send + 'static,
    R: Send + 'static,
    T: Send + 'static,
{
    let worked = tokio::task::spawn_blocking(move || {
        let result = work(&mut machine, &read);
        (machine, read, result)
    });
    match worked.await {
        Ok((machine, read, result)) => Ok((machine, read, result?)),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn patience<R: Reads>(room: &Shared<R>) -> Duration {
    Duration::from_millis(room.config.reconcile_timeout_ms)
}

async fn next_frame<R: Reads>(room: &Shared<R>, recv: &mut RecvStream) -> Result<Reconcile, ReconcileError> {
    let waited = tokio::time::timeout(patience(room), read_frame(recv)).await;
    let frame = waited.map_err(|_| ReconcileError::Slow(room.config.reconcile_timeout_ms))??;
    let (header, payload) = frame.ok_or(FrameError::Ended)?;
    let verifies = &room.streams.verifies;
    verifies.received_bytes.fetch_add((HEADER_BYTES + payload.len()) as u64, Relaxed);
    let frame: Reconcile = codec::decode_payload(header, &payload).map_err(FrameError::from)?;
    if let Reconcile::Records { records, .. } = &frame {
        verifies.received_records.fetch_add(records.len() as u64, Relaxed);
    }
    Ok(frame)
}

async fn write<R: Reads, M: codec::Message>(
    room: &Shared<R>,
    send: &mut SendStream,
    message: &M,
) -> Result<(), ReconcileError> {
    let frame = codec::encode_frame(message).map_err(FrameError::from)?;
    room.streams.verifies.sent_bytes.fetch_add(frame.len() as u64, Relaxed);
    let written = tokio::time::timeout(patience(room), send.write_all(&frame)).await;
    let written = written.map_err(|_| ReconcileError::Slow(room.config.reconcile_timeout_ms))?;
    Ok(written.map_err(FrameError::from)?)
}

/// Returns when the records are durable.
async fn apply<R: Reads>(room: &Shared<R>, apply: Apply) -> Result<(), ReconcileError> {
    match room.database.submit(Input::Apply(apply)).await? {
        Outcome::Applied(_) => Ok(()),
        Outcome::Refused(Refusal::NotShared(_)) => Err(ReconcileError::Unshared),
        Outcome::Refused(refusal) => Err(ReconcileError::Refused(refusal)),
        other => unreachable!("records are applied or refused, not {other:?}"),
    }
}
