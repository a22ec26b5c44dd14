//! The members' standing and the quarantine: `/v1/members` and `/v1/quarantine` (ARCHITECTURE, purge floors).

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path as Segment, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::api::path_after;
use super::problem::Problem;
use super::{Api, Shared};
use crate::core::books::Standing;
use crate::core::eid::Eid;
use crate::core::path::Path;
use crate::core::record::RecordKey;
use crate::core::replica::{Input, Outcome};
use crate::core::storage::{Quarantined, Read, Reads};
use crate::status::quarantine::{Doubtful, Quarantine};

/// The largest JSON body of a request to change a standing, in bytes.
const STANDING_BODY_MAX_BYTES: usize = 1_024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StandingJson {
    standing: String,
}

/// Every member that the cluster's books name, and whether it counts.
pub async fn members<R: Reads>(State(api): State<Shared<R>>) -> Response {
    let books = api.database.published().ledger.books.clone();
    let standings: BTreeMap<_, _> = books.members.iter().map(|(eid, standing)| (*eid, standing.as_str())).collect();
    Json(standings).into_response()
}

/// 404 for an EID that the books do not name, 400 for the node's own decommission.
pub async fn stand<R: Reads>(
    State(api): State<Shared<R>>,
    Segment(eid): Segment<String>,
    body: Body,
) -> Result<Response, Problem> {
    let bad = |detail: String| api.refuse("decommission", Problem::new(StatusCode::BAD_REQUEST, detail));
    let wanted = "a body {\"standing\":\"decommissioned\"} or {\"standing\":\"admitted\"} is wanted";
    let eid: Eid = eid.parse().map_err(|error| bad(format!("'{eid}' is no EID: {error}")))?;
    let body = api.whole(body, STANDING_BODY_MAX_BYTES, || bad(wanted.to_string())).await?;
    let body: StandingJson = serde_json::from_slice(&body).map_err(|error| bad(format!("{wanted}: {error}")))?;
    let standing = Standing::named(&body.standing).ok_or_else(|| bad(wanted.to_string()))?;
    noted(api.submit(Input::Standing { eid, standing }).await?)?;
    Ok(Json(StandingJson { standing: standing.as_str().to_string() }).into_response())
}

/// What is set aside, by key.
pub async fn list<R: Reads>(State(api): State<Shared<R>>) -> Result<Response, Problem> {
    let entries = api.read(|view| {
        let mut entries = Vec::new();
        view.read.quarantine(&mut |(key, quarantined)| {
            entries.push(doubtful(&key, &quarantined));
            ControlFlow::Continue(())
        })?;
        Ok(entries)
    });
    Ok(Json(Quarantine { entries: entries.await? }).into_response())
}

/// Writes what is set aside there anew, as a write of now. 404 if nothing is, 403 if it is another server's copy.
pub async fn adopt<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let (path, key) = doubted(&api, &uri)?;
    noted(api.submit(Input::Release { key }).await?)?;
    Ok(done(&path))
}

/// Takes what is set aside there away for good. 404 if nothing is.
pub async fn discard<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let (path, key) = doubted(&api, &uri)?;
    noted(api.submit(Input::Discard { key }).await?)?;
    Ok(done(&path))
}

fn noted(outcome: Outcome) -> Result<(), Problem> {
    match outcome {
        Outcome::Refused(refusal) => Err(refusal.into()),
        _ => Ok(()),
    }
}

fn done(path: &Path) -> Response {
    Json(BTreeMap::from([("path", path.to_string())])).into_response()
}

/// The record that the list shows under this path: an owned one, this node's too, stands under its owner's EID.
fn doubted<R: Reads>(api: &Api<R>, uri: &Uri) -> Result<(Path, RecordKey), Problem> {
    let path = path_after(api, uri, "/v1/quarantine")?;
    let key = match path.split_eid() {
        Some((owner, rest)) => RecordKey::owned(owner, rest),
        None => RecordKey::plain(path.clone()),
    };
    Ok((path, key))
}

fn doubtful(key: &RecordKey, quarantined: &Quarantined) -> Doubtful {
    Doubtful {
        path: key.text_under_eid(),
        owner: key.owner,
        value: quarantined.register.value().map(ToString::to_string),
        stamp: quarantined.register.stamp().to_string(),
        unix_ms: quarantined.register.stamp().hlc.unix_ms(),
        floor_unix_ms: quarantined.floor.unix_ms(),
        since_unix_ms: quarantined.since_unix_ms,
    }
}
