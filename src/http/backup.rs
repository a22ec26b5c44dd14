//! `GET /v1/backup`: a consistent copy of the whole database, out of one read transaction.

use std::ops::ControlFlow;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Shared;
use crate::core::backup::{self, Head};
use crate::core::storage::{Reads, StoreError};

/// Pieces that may wait for a slow client, of at most 256 KiB each; the read transaction waits with them.
const PIECES_WAITING_MAX: usize = 2;

pub async fn backup<R: Reads>(State(api): State<Shared<R>>) -> Response {
    let (pieces, stream) = mpsc::channel::<Result<Bytes, StoreError>>(PIECES_WAITING_MAX);
    let database = api.database.clone();
    tokio::task::spawn_blocking(move || {
        let head =
            Head { eid: database.eid(), taken_unix_ms: database.now(), version: env!("CARGO_PKG_VERSION").to_string() };
        // A client that has gone away ends the scan.
        let mut send = |piece: Vec<u8>| match pieces.blocking_send(Ok(Bytes::from(piece))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let written = database.view().and_then(|view| backup::write(&view.read, head, &mut send));
        if let Err(error) = written {
            // It has no end, and so is not taken for a backup; the connection is cut besides.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let body = Body::from_stream(ReceiverStream::new(stream));
    ([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response()
}
