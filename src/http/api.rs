//! The routes on keys, trees and shared families.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Api, Shared};
use crate::core::eid::Eid;
use crate::core::family::Mode;
use crate::core::path::{Family, Path, PathError, VALUE_MAX_BYTES, Value, utf8};
use crate::core::replica::{Input, Outcome};
use crate::core::storage::{Reads, StoreError};
use crate::core::view::{Entry, View};

/// The largest JSON body of a request to share a family, in bytes.
const SHARE_BODY_MAX_BYTES: usize = 1_024;

#[derive(Serialize)]
struct Written {
    path: Path,
    stamp: String,
}

#[derive(Serialize)]
struct FoundJson {
    path: Path,
    value: Value,
    stamp: String,
    owner: Option<Eid>,
}

#[derive(Serialize)]
struct EntryJson {
    path: Path,
    value: Value,
    shared: Option<Mode>,
}

#[derive(Serialize)]
struct Tree {
    entries: Vec<EntryJson>,
}

#[derive(Serialize)]
struct Removed {
    removed: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeJson {
    mode: String,
}

pub async fn get<R: Reads>(State(api): State<Shared<R>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let path = db_path(&api, &uri)?;
    let found = api.read(move |view| view.get(&path)).await?;
    let found = found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "Database entry not found."))?;
    if wants_plain_text(&headers) {
        return Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], found.value.to_string()).into_response());
    }
    let (path, value, owner) = (found.path, found.value, found.owner);
    Ok(Json(FoundJson { path, value, stamp: found.stamp.to_string(), owner }).into_response())
}

pub async fn put<R: Reads>(State(api): State<Shared<R>>, uri: Uri, body: Body) -> Result<Response, Problem> {
    let path = db_path(&api, &uri)?;
    let too_large = || {
        let detail = format!("the value has more than {VALUE_MAX_BYTES} bytes, at most so many are allowed");
        api.refuse("value_too_long", Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
    };
    let body = api.whole(body, VALUE_MAX_BYTES, too_large).await?;
    let value = utf8(&body).and_then(Value::new).map_err(|error| api.refuse("bad_path_or_value", error.into()))?;
    written(api.submit(Input::Put { path, value }).await?)
}

pub async fn delete<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let path = db_path(&api, &uri)?;
    written(api.submit(Input::Delete { path }).await?)
}

fn written(outcome: Outcome) -> Result<Response, Problem> {
    match outcome {
        Outcome::Written { path, stamp } => Ok(Json(Written { path, stamp: stamp.to_string() }).into_response()),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => unreachable!("a write is written or refused, not {other:?}"),
    }
}

pub async fn tree<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let tree = subtree(&api, &uri, "/v1/tree")?;
    Ok(entries_json(api.read(move |view| view.tree(tree.as_ref())).await?))
}

pub async fn keys<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let key = named_subtree(&api, &uri, "/v1/keys")?;
    Ok(entries_json(api.read(move |view| view.keys(&key)).await?))
}

fn entries_json(entries: Vec<Entry>) -> Response {
    let entries = entries.into_iter().map(|Entry { path, value, shared }| EntryJson { path, value, shared }).collect();
    Json(Tree { entries }).into_response()
}

pub async fn delete_tree<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let tree = named_subtree(&api, &uri, "/v1/tree")?;
    match api.submit(Input::DeleteTree { tree }).await? {
        Outcome::Removed { count: 0 } => Err(Problem::new(StatusCode::NOT_FOUND, "Database entries do not exist.")),
        Outcome::Removed { count } => Ok(Json(Removed { removed: count }).into_response()),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => unreachable!("a tree is removed or refused, not {other:?}"),
    }
}

pub async fn shared<R: Reads>(State(api): State<Shared<R>>) -> Response {
    let families = api.database.published().ledger.families.clone();
    let modes: BTreeMap<_, _> = families.marks().iter().map(|(family, mark)| (family.clone(), mark.mode)).collect();
    Json(modes).into_response()
}

pub async fn shared_one<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let family = named_subtree(&api, &uri, "/v1/shared")?;
    let mark = api.database.published().ledger.families.mark(&family);
    let mark =
        mark.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("Shared family '{family}' does not exist.")))?;
    Ok(Json(ModeJson { mode: mark.mode.to_string() }).into_response())
}

pub async fn share<R: Reads>(State(api): State<Shared<R>>, uri: Uri, body: Body) -> Result<Response, Problem> {
    let family = named_subtree(&api, &uri, "/v1/shared")?;
    let bad_body = |detail: String| api.refuse("share", Problem::new(StatusCode::BAD_REQUEST, detail));
    let wanted = "a body {\"mode\":\"global\"} or {\"mode\":\"unique\"} is wanted";
    let body = api.whole(body, SHARE_BODY_MAX_BYTES, || bad_body(wanted.to_string())).await?;
    let body: ModeJson = serde_json::from_slice(&body).map_err(|error| bad_body(format!("{wanted}: {error}")))?;
    let mode: Mode = body.mode.parse().map_err(|error| bad_body(format!("{error}")))?;
    match api.submit(Input::Share { family, mode }).await? {
        Outcome::Shared => Ok(Json(ModeJson { mode: mode.to_string() }).into_response()),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => unreachable!("a family is shared or refused, not {other:?}"),
    }
}

pub async fn unshare<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let family = named_subtree(&api, &uri, "/v1/shared")?;
    match api.submit(Input::Unshare { family }).await? {
        Outcome::Unshared => Ok(Json(BTreeMap::<String, String>::new()).into_response()),
        Outcome::Refused(refusal) => Err(refusal.into()),
        other => unreachable!("a family is unshared or refused, not {other:?}"),
    }
}

impl<R: Reads> Api<R> {
    pub(super) async fn submit(&self, input: Input) -> Result<Outcome, Problem> {
        Ok(self.database.submit(input).await?)
    }

    /// Reads off the async threads: a scan may take a while, and the disk may be slow.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(View<R::Reader>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Problem> {
        let database = self.database.clone();
        let result = tokio::task::spawn_blocking(move || read(database.view()?)).await;
        match result {
            Ok(result) => Ok(result?),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// Takes a body in. One that was cut off is not mistaken for one that is too large: neither is written,
    /// but what the client has to do about it differs.
    pub(super) async fn whole(
        &self,
        body: Body,
        max_bytes: usize,
        too_large: impl FnOnce() -> Problem,
    ) -> Result<Bytes, Problem> {
        to_bytes(body, max_bytes).await.map_err(|error| {
            let error = error.into_inner();
            if error.is::<LengthLimitError>() {
                return too_large();
            }
            let detail = format!("the body of the request was cut off: {error}; nothing was written, send it again");
            self.refuse("http_cut_off", Problem::new(StatusCode::BAD_REQUEST, detail))
        })
    }

    /// Counts a refusal that did not reach the writer, which counts its own.
    pub(super) fn refuse(&self, reason: &'static str, problem: Problem) -> Problem {
        self.metrics.refuse(reason);
        problem
    }
}

/// True if the client would rather have text than JSON.
fn wants_plain_text(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    accept.split(',').any(|range| range.split(';').next().is_some_and(|kind| kind.trim() == "text/plain"))
}

fn db_path<R: Reads>(api: &Api<R>, uri: &Uri) -> Result<Path, Problem> {
    path_after(api, uri, "/v1/db")
}

/// The path that follows `route`.
pub(super) fn path_after<R: Reads>(api: &Api<R>, uri: &Uri, route: &str) -> Result<Path, Problem> {
    let path = decoded(uri, route).and_then(|path| Path::new(&path));
    path.map_err(|error| api.refuse("bad_path_or_value", error.into()))
}

fn named_subtree<R: Reads>(api: &Api<R>, uri: &Uri, route: &str) -> Result<Family, Problem> {
    let tree = subtree(api, uri, route)?;
    tree.ok_or_else(|| api.refuse("bad_path_or_value", Problem::new(StatusCode::BAD_REQUEST, "a family must be named")))
}

fn subtree<R: Reads>(api: &Api<R>, uri: &Uri, route: &str) -> Result<Option<Family>, Problem> {
    let tree = decoded(uri, route).and_then(|path| match path.strip_prefix('/') {
        None | Some("") => Ok(None),
        Some(tree) => Family::new(tree).map(Some),
    });
    tree.map_err(|error| api.refuse("bad_path_or_value", error.into()))
}

/// What follows `route` in the path, each segment decoded.
fn decoded(uri: &Uri, route: &str) -> Result<String, PathError> {
    let path = uri.path().strip_prefix(route).expect("the router matched the route");
    let bytes: Vec<u8> = percent_decode_str(path).collect();
    utf8(&bytes).map(str::to_string)
}
