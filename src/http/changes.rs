//! `GET /v1/changes`: the change feed of the shared families as server-sent events (WHATWG HTML, section 9.2).
//!
//! A watcher is a follower like any other: it has a cursor, `run:seq`, which each event carries as its `id`, and
//! the feed is read from the store when the watcher can take more. A slow one costs the node no memory, only
//! itself some lag; a record that changed twice meanwhile is told once, as it is now.
//!
//! The feed is compacted and ordered, so that the full state is nothing but the feed from 0. Records that are
//! not shared are not told: their deletes leave no trace that a later watcher could read.

use std::collections::{BTreeMap, BinaryHeap};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::problem::Problem;
use super::transfer::write_line;
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::record::{Record, RecordKey};
use crate::core::storage::{Cursor, Read, Reads, Run, RunStart, StoreError};
use crate::core::view::View;

/// How many may watch at a time; the next one is told to come again later.
const WATCHERS_MAX: usize = 256;
/// An idle stream says a comment this often, so that proxies and the node's own listener let it live.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Entries of the feed in one read at most.
const PAGE_MAX_ENTRIES: usize = 256;
/// Records are read for one page until it has this many bytes.
const PAGE_MAX_BYTES: usize = 128 * 1024;
/// Pages that may wait for a slow watcher.
const PAGES_WAITING_MAX: usize = 1;

/// Who may watch, and until when: streams of events do not end by themselves.
pub struct Watchers {
    permits: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Watchers {
    /// All streams end when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { permits: Arc::new(Semaphore::new(WATCHERS_MAX)), stop }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesQuery {
    since: Option<String>,
}

/// The families that a stream tells of, with their modes and the sequence numbers of their marks. When they
/// change, the watcher begins anew.
type Sharings = BTreeMap<Family, (Mode, u64)>;

pub async fn changes<R: Reads>(
    State(api): State<Shared<R>>,
    query: Result<Query<ChangesQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let since = match headers.get("last-event-id") {
        // An EventSource that reconnects asks for the same address again: the header is newer.
        Some(id) => Some(id.to_str().unwrap_or("?").to_string()),
        None => query.since,
    };
    let cursor = since.map(|text| parse_cursor(&text)).transpose().map_err(|problem| api.refuse("changes", problem))?;
    let permit = api.watchers.permits.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{WATCHERS_MAX} clients watch the changes already: try again later");
        api.refuse("changes", Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    })?;
    let (pages, stream) = mpsc::channel(PAGES_WAITING_MAX);
    let stop = api.watchers.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled_owned(tell(api, cursor, pages, permit)).await });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(ReceiverStream::new(stream))).into_response())
}

/// `<run as 16 hex digits>:<sequence number>`, as an event's `id` has it.
fn parse_cursor(text: &str) -> Result<Cursor, Problem> {
    let cursor = text
        .split_once(':')
        .and_then(|(run, seq)| Some(Cursor { run: run.parse::<Run>().ok()?, seq: seq.parse().ok()? }));
    cursor.ok_or_else(|| {
        let detail = format!("'{text}' is no place in the changes: the id of an event is wanted, RUN:SEQ");
        Problem::new(StatusCode::BAD_REQUEST, detail)
    })
}

/// Sends page after page until the watcher goes away or the store fails. Holds one page beside those that wait.
async fn tell<R: Reads>(
    api: Shared<R>,
    mut cursor: Option<Cursor>,
    pages: mpsc::Sender<Result<Bytes, Infallible>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut published = api.database.watch();
    let mut sharings = None;
    loop {
        published.borrow_and_update();
        let asked = (cursor, sharings.take());
        let page = match api.read(move |view| next_page(&view, asked.0, asked.1)).await {
            Ok(page) => page,
            Err(problem) => {
                // The stream ends; the watcher comes again with its last id.
                tracing::error!(?problem, "the changes could not be read");
                return;
            }
        };
        (cursor, sharings) = (Some(page.cursor), Some(page.sharings));
        if !page.text.is_empty() && pages.send(Ok(page.text.into())).await.is_err() {
            return;
        }
        if page.more {
            continue;
        }
        tokio::select! {
            biased;
            () = pages.closed() => return,
            changed = published.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(KEEP_ALIVE) => {
                if pages.send(Ok(Bytes::from_static(b":\n\n"))).await.is_err() {
                    return;
                }
            }
        }
    }
}

struct Page {
    text: Vec<u8>,
    cursor: Cursor,
    sharings: Sharings,
    /// The feed has more already.
    more: bool,
}

/// What comes after `cursor`. Begins anew where the cursor is not of this store's past, or where the families
/// are not shared as they were: `seen` is how the stream knew them, none if it has just begun.
fn next_page<R: Read>(view: &View<R>, cursor: Option<Cursor>, seen: Option<Sharings>) -> Result<Page, StoreError> {
    let (runs, head) = (view.read.runs()?, view.read.head()?);
    let run = runs.last().expect("a store that is open has a run").run;
    let marks = view.families.marks();
    let sharings: Sharings = marks.iter().map(|(family, mark)| (family.clone(), (mark.mode, mark.since))).collect();
    let goes_on = match (&cursor, &seen) {
        (None, _) => false,
        (Some(_), Some(seen)) => *seen == sharings,
        (Some(cursor), None) => {
            part_end(&runs, head, cursor.run).is_some_and(|end| cursor.seq <= end)
                && sharings.values().all(|(_, since)| cursor.seq >= *since)
        }
    };
    let mut text = Vec::new();
    let after = match cursor {
        Some(cursor) if goes_on => cursor.seq,
        _ => {
            text.extend_from_slice(format!("id: {run}:0\nevent: reset\ndata: {{}}\n\n").as_bytes());
            0
        }
    };
    let complete_to = write_changes(view, run, after, head, &mut text)?;
    Ok(Page { text, cursor: Cursor { run, seq: complete_to }, sharings, more: complete_to < head })
}

/// Where the part of the store's past ends that a run gave out; none if there was no such run.
fn part_end(runs: &[RunStart], head: u64, run: Run) -> Option<u64> {
    let at = runs.iter().position(|start| start.run == run)?;
    Some(runs.get(at + 1).map_or(head, |next| next.first_seq - 1))
}

/// Writes the changes after `after`, as many as a page takes; returns how far they are complete.
fn write_changes<R: Read>(
    view: &View<R>,
    run: Run,
    after: u64,
    head: u64,
    text: &mut Vec<u8>,
) -> Result<u64, StoreError> {
    let (entries, mut complete_to) = first_entries(view, after, head)?;
    for (seq, key) in entries {
        if text.len() >= PAGE_MAX_BYTES {
            complete_to = seq - 1;
            break;
        }
        let stored = view.read.record(&key)?.expect("what stands in the feed is in the store");
        text.extend_from_slice(format!("id: {run}:{seq}\nevent: change\ndata: ").as_bytes());
        write_line(text, Record::new(key, stored));
        text.push(b'\n');
    }
    Ok(complete_to)
}

/// The first entries of the shared families after `after`, over all of them in the order of sequence numbers,
/// and how far these are complete. The feed is kept by first segments, so it is read once for each.
fn first_entries<R: Read>(view: &View<R>, after: u64, head: u64) -> Result<(Vec<(u64, RecordKey)>, u64), StoreError> {
    let mut tops: Vec<&str> = view.families.marks().keys().map(Family::top).collect();
    tops.dedup();
    // The greatest sequence number is on top: where the page is full, it makes room for a lesser one.
    let mut page = BinaryHeap::new();
    for top in tops {
        view.read.feed(top, after, &mut |(seq, _, key)| {
            if view.families.of_record(&key).is_none() {
                return ControlFlow::Continue(());
            }
            if page.len() == PAGE_MAX_ENTRIES {
                if page.peek().is_some_and(|(greatest, _): &(u64, RecordKey)| *greatest < seq) {
                    return ControlFlow::Break(());
                }
                page.pop();
            }
            page.push((seq, key));
            ControlFlow::Continue(())
        })?;
    }
    let complete_to = if page.len() < PAGE_MAX_ENTRIES { head } else { page.peek().map_or(head, |(seq, _)| *seq) };
    Ok((page.into_sorted_vec(), complete_to))
}

#[cfg(test)]
#[path = "changes_test.rs"]
mod tests;
