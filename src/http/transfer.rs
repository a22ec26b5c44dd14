//! Export and import: records in bulk, one JSON object a line.

use std::ops::ControlFlow;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Shared;
use super::problem::Problem;
use crate::core::clock::Stamp;
use crate::core::eid::Eid;
use crate::core::path::{Path, Value};
use crate::core::record::{Record, RecordKey};
use crate::core::replica::{ImportLine, Input, Outcome};
use crate::core::storage::Reads;

/// An export is sent in pieces of about this many bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Pieces that may wait for a slow client; the read transaction waits with them.
const CHUNKS_WAITING_MAX: usize = 4;

/// One line of an export, and what a change tells (contract: `Export`). Without a stamp, an import makes a new write of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    owner: Option<Eid>,
    path: Path,
    /// Null is a tombstone, so a line that was meant to have a value must not be taken for one.
    #[serde(deserialize_with = "Option::deserialize")]
    value: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub struct ExportQuery {
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Default, Deserialize)]
pub struct ImportQuery {
    #[serde(default)]
    as_new: bool,
}

#[derive(Serialize)]
struct Report {
    won: u64,
    lost: u64,
    same: u64,
    written: u64,
    refused: Vec<RefusedLine>,
}

/// A line that was refused, counted from 1.
#[derive(Serialize)]
struct RefusedLine {
    line: usize,
    reason: String,
}

pub async fn export<R: Reads>(
    State(api): State<Shared<R>>,
    query: Result<Query<ExportQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let (chunks, stream) = mpsc::channel(CHUNKS_WAITING_MAX);
    let database = api.database.clone();
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let send = |chunk: &mut Vec<u8>| chunks.blocking_send(Ok(Bytes::from(std::mem::take(chunk))));
        let result = database.view().and_then(|view| {
            view.export(query.all, &mut |record| {
                write_line(&mut chunk, record);
                // A client that has gone away ends the scan.
                if chunk.len() < CHUNK_BYTES || send(&mut chunk).is_ok() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        });
        // An export that breaks off must not look complete: the connection is cut.
        let _ = match result {
            Ok(()) => send(&mut chunk),
            Err(error) => chunks.blocking_send(Err(error)),
        };
    });
    let body = Body::from_stream(ReceiverStream::new(stream));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

pub(super) fn write_line(chunk: &mut Vec<u8>, record: Record) {
    let stamp = Some(record.register.stamp().to_string());
    let value = record.register.value().cloned();
    let line = Line { owner: record.key.owner, path: record.key.path, value, stamp };
    serde_json::to_writer(&mut *chunk, &line).expect("a line is written to memory");
    chunk.push(b'\n');
}

pub async fn import<R: Reads>(
    State(api): State<Shared<R>>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    body: Body,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let too_large = || {
        let detail = format!("the import is larger than {} bytes: send it in parts", api.import_max_bytes);
        api.refuse("import_too_large", Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
    };
    let body = api.whole(body, api.import_max_bytes, too_large).await?;
    let mut refused = Vec::new();
    let mut lines = Vec::new();
    let mut numbers = Vec::new();
    for (at, text) in body.split(|&byte| byte == b'\n').enumerate().filter(|(_, text)| !text.trim_ascii().is_empty()) {
        match parse_line(text, query.as_new) {
            Ok(line) => {
                lines.push(line);
                numbers.push(at + 1);
            }
            Err(reason) => {
                api.metrics.refuse("import_line");
                refused.push(RefusedLine { line: at + 1, reason });
            }
        }
    }
    let imported = match api.submit(Input::Import { lines }).await? {
        Outcome::Imported(imported) => imported,
        other => unreachable!("an import is imported, not {other:?}"),
    };
    refused
        .extend(imported.refused.iter().map(|(at, why)| RefusedLine { line: numbers[*at], reason: why.to_string() }));
    refused.sort_by_key(|refused| refused.line);
    let merges = imported.merges;
    let report = Report { won: merges.won, lost: merges.lost, same: merges.same, written: imported.written, refused };
    Ok(Json(report).into_response())
}

fn parse_line(text: &[u8], as_new: bool) -> Result<ImportLine, String> {
    let line: Line = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let stamp = match line.stamp {
        Some(stamp) if !as_new => Some(stamp.parse::<Stamp>().map_err(|error| error.to_string())?),
        _ => None,
    };
    Ok(ImportLine { key: RecordKey { owner: line.owner, path: line.path }, value: line.value, stamp })
}
