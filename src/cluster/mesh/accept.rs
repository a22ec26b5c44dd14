//! The side that is dialled.

use std::sync::Arc;
use std::time::Duration;

use super::config::ms;
use super::link::{self, LinkError};
use super::{Shared, link::Greeted};
use crate::cluster::frames;

/// Close code of a node that stops.
pub(super) const CLOSE_STOPPED: u32 = 0;
/// How long closing may take to be told to the peers.
const FAREWELL: Duration = Duration::from_secs(1);

/// Accepts until cancelled, then closes every connection.
pub(super) async fn run(shared: Arc<Shared>) {
    // Those that have not said who they are yet must not starve, nor be starved by, those that have.
    let connections_max = shared.config.peers_max.saturating_mul(2).saturating_add(64);
    while let Some(Some(incoming)) = shared.cancel.run_until_cancelled(shared.endpoint.accept()).await {
        if shared.endpoint.open_connections() >= connections_max {
            let remote = incoming.remote_address();
            if shared.counters.refuse("too_many_connections") {
                tracing::warn!(%remote, connections_max, "refused a connection: too many are open");
            }
            incoming.refuse();
            continue;
        }
        shared.spawn(accept(shared.clone(), incoming));
    }
    shared.endpoint.close(CLOSE_STOPPED.into(), b"stopped");
    if tokio::time::timeout(FAREWELL, shared.endpoint.wait_idle()).await.is_err() {
        tracing::debug!("some peers were not told that this node stops");
    }
}

async fn accept(shared: Arc<Shared>, incoming: quinn::Incoming) {
    let remote = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    let connection = match tokio::time::timeout(ms(shared.config.connect_timeout_ms), handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return shared.note_failure(remote, &LinkError::from(error)),
        Err(_) => return tracing::debug!(%remote, "a handshake was not finished in time"),
    };
    match greet(&shared, &connection).await {
        Ok(greeted) => link::serve(shared, greeted).await,
        Err(error) => {
            link::close(&connection, &error);
            shared.note_failure(remote, &error);
        }
    }
}

/// The peer speaks first; it is admitted before it is answered, so that the answer means admission.
async fn greet(shared: &Arc<Shared>, connection: &quinn::Connection) -> Result<Greeted, LinkError> {
    let passed = shared.access.judge(connection)?;
    let timeout = ms(shared.config.hello_timeout_ms);
    let (mut send, mut recv) =
        tokio::time::timeout(timeout, connection.accept_bi()).await.map_err(|_| LinkError::NoHello)??;
    let hello = frames::read_message(&mut recv, shared.config.hello_max_bytes, timeout).await?;
    let greeted = link::admit(shared, connection, passed, hello, false).await?;
    let answered = async {
        frames::write_frame(&mut send, &shared.hello()).await?;
        let _ = send.finish();
        Ok::<_, LinkError>(())
    };
    match tokio::time::timeout(timeout, answered).await.unwrap_or(Err(LinkError::NoHello)) {
        Ok(()) => Ok(greeted),
        Err(error) => {
            shared.table().remove(greeted.peer, connection);
            Err(error)
        }
    }
}
