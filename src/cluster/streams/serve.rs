//! The source's side: answers each follower that opens a stream, and sends what its change feed has.

use std::time::Duration;

use tokio::sync::watch;

use super::{Shared, nearby, reconcile};
use crate::cluster::frames::{FrameError, read_frame, write_frame};
use crate::cluster::mesh::Incoming;
use crate::core::codec::{self, Message};
use crate::core::eid::Eid;
use crate::core::message::{Compare, Entries, Follow, FollowReply, Heard};
use crate::core::session::Source;
use crate::core::storage::{Read, Reads, StoreError};

/// Why serving a stream ended, other than that the follower went away.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub async fn run<R: Reads>(room: Shared<R>) {
    let mut incoming = room.mesh.take_incoming().expect("only this task takes the streams");
    let take = async {
        while let Some(stream) = incoming.recv().await {
            let room = room.clone();
            room.tracker.clone().spawn(async move {
                room.cancel.clone().run_until_cancelled(serve(&room, stream)).await;
            });
        }
    };
    room.cancel.run_until_cancelled(take).await;
}

async fn serve<R: Reads>(room: &Shared<R>, stream: Incoming) {
    let peer = stream.peer;
    match serve_stream(room, stream).await {
        Ok(()) => {}
        Err(ServeError::Frame(error)) => refuse(room, peer, &error),
        Err(ServeError::Store(error)) => tracing::error!(%peer, %error, "serving a follower failed: the store"),
    }
}

/// Counts and logs what a peer did wrong; a stream that merely broke is nobody's fault.
pub(super) fn refuse<R: Reads>(room: &Shared<R>, peer: Eid, error: &FrameError) {
    match error.reason() {
        Some(reason) => {
            if room.mesh.counters().refuse(reason) {
                tracing::warn!(%peer, %error, reason, "a peer's stream was refused");
            }
        }
        None => tracing::debug!(%peer, %error, "a stream ended"),
    }
}

async fn serve_stream<R: Reads>(room: &Shared<R>, stream: Incoming) -> Result<(), ServeError> {
    let Incoming { peer, run, site, mut send, mut recv } = stream;
    let far = site != room.mesh.config().site;
    let timeout = Duration::from_millis(room.config.request_timeout_ms);
    let frame = tokio::time::timeout(timeout, read_frame(&mut recv)).await;
    let frame = frame.map_err(|_| FrameError::TimedOut(timeout.as_millis()))??;
    let (header, payload) = frame.ok_or(FrameError::Ended)?;
    if header.kind == Compare::KIND {
        let ask = codec::decode_payload(header, &payload).map_err(FrameError::from)?;
        reconcile::answered(room, Incoming { peer, run, site, send, recv }, ask).await;
        return Ok(());
    }
    if header.kind == Heard::KIND {
        let heard = codec::decode_payload(header, &payload).map_err(FrameError::from)?;
        nearby::told(room, Incoming { peer, run, site, send, recv }, heard).await?;
        return Ok(());
    }
    let request: Follow = codec::decode_payload(header, &payload).map_err(FrameError::from)?;
    if !room.mesh.allows(peer, &request.family) {
        room.mesh.note_not_allowed(peer, &request.family);
        write_frame(&mut send, &FollowReply::NotShared { mode: None }).await?;
        let _ = send.finish();
        return Ok(());
    }
    if !room.lets_in(&request.family, peer).await {
        write_frame(&mut send, &FollowReply::OtherFloor { floor: None }).await?;
        let _ = send.finish();
        return Ok(());
    }
    // Subscribed before the feed is read: a write in between wakes, none is missed.
    let mut wakes = room.database.wakes(&request.family, request.classes);
    let (reply, source) = {
        let view = room.database.view()?;
        Source::open(&view.read, &view.families, &request)?
    };
    tracing::debug!(%peer, family = %request.family, classes = %request.classes, ?reply, "follower");
    if matches!(reply, FollowReply::Compare { .. }) {
        note_unknown_run(room, peer, &request)?;
    }
    write_frame(&mut send, &reply).await?;
    let Some(mut source) = source else {
        let _ = send.finish();
        return Ok(());
    };
    loop {
        wakes.borrow_and_update();
        let (next, entries) = next_page(room, source).await?;
        source = next;
        // A family that is no longer shared as it was is not served a moment longer.
        if !source.still_serves(&room.database.published().ledger.families) {
            let _ = send.finish();
            return Ok(());
        }
        match entries {
            Some(entries) if far => room.wan.send(peer, &mut send, &entries, &room.mesh.counters().wan).await?,
            Some(entries) => write_frame(&mut send, &entries).await?,
            None => {
                let stopped = send.stopped();
                if idle(room, &mut wakes, stopped).await.is_break() {
                    return Ok(());
                }
                if far {
                    room.wan.gather().await;
                }
            }
        }
    }
}

/// A peer has followed a run of this node that the disk knows nothing of: the disk was lost, put back or copied.
fn note_unknown_run<R: Reads>(room: &Shared<R>, peer: Eid, request: &Follow) -> Result<(), StoreError> {
    let Some(cursor) = request.cursor else { return Ok(()) };
    if room.database.view()?.read.runs()?.iter().any(|start| start.run == cursor.run) {
        return Ok(());
    }
    room.streams.verifies.note_unknown_run();
    if room.mesh.counters().refuse("unknown_run") {
        tracing::warn!(
            %peer,
            run = %cursor.run,
            "a peer has followed a run of this node that its disk does not know: the disk was lost, put back or copied. What \
             is missing comes from the peers by itself; if it was copied, stop the other node"
        );
    }
    Ok(())
}

/// Reads the feed off the async threads.
async fn next_page<R: Reads>(room: &Shared<R>, mut source: Source) -> Result<(Source, Option<Entries>), StoreError> {
    let database = room.database.clone();
    let read = tokio::task::spawn_blocking(move || {
        let view = database.view()?;
        let entries = source.next(&view.read)?;
        Ok((source, entries))
    });
    match read.await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Waits until the family has something new, or it is time to say how far it is complete. Breaks when the
/// follower has gone.
async fn idle<R: Reads>(
    room: &Shared<R>,
    wakes: &mut watch::Receiver<u64>,
    stopped: impl Future<Output = Result<Option<quinn::VarInt>, quinn::StoppedError>>,
) -> std::ops::ControlFlow<()> {
    use std::ops::ControlFlow::{Break, Continue};
    tokio::select! {
        biased;
        _ = stopped => Break(()),
        woken = wakes.changed() => if woken.is_ok() { Continue(()) } else { Break(()) },
        () = tokio::time::sleep(Duration::from_millis(room.config.idle_frame_ms)) => Continue(()),
    }
}
