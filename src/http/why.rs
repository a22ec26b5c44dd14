//! `GET /v1/why/{family}/{key…}`: what stands at a path, since when and from whom, and what it won against.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::api::path_after;
use super::problem::Problem;
use crate::core::clock::Stamp;
use crate::core::losers::{LOSERS_MAX, Loser};
use crate::core::path::{Path, Value};
use crate::core::record::{Class, Classes, Stored};
use crate::core::storage::Reads;
use crate::core::view::Explained;
use crate::status::why::{LostWrite, Why, Write};

/// 404 if nothing stands there and nothing that lost is remembered.
pub async fn why<R: Reads>(State(api): State<Shared<R>>, uri: Uri) -> Result<Response, Problem> {
    let path = path_after(&api, &uri, "/v1/why")?;
    let asked = path.clone();
    let explained = api.read(move |view| view.explain(&asked)).await?;
    let Some(explained) = explained else {
        let detail = format!("'{path}' is kept by the program itself: nothing is known of its past");
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    };
    let losers = api.database.losers(&explained.key);
    if explained.stored.is_none() && losers.is_empty() {
        let detail = format!(
            "nothing stands at '{path}', and nothing that was there is remembered (a node remembers the latest {LOSERS_MAX} \
             writes that lost, since its start)"
        );
        return Err(Problem::new(StatusCode::NOT_FOUND, detail));
    }
    Ok(Json(answer(path, explained, losers)).into_response())
}

fn answer(path: Path, explained: Explained, losers: Vec<Loser>) -> Why {
    let Explained { key, stored, shared } = explained;
    let (family, shared) = shared.unzip();
    let arrived = stored.as_ref().map(|stored| class_name(stored.class));
    Why {
        path: path.to_string(),
        owner: key.owner,
        family: family.map(|family| family.to_string()),
        shared,
        winner: stored.map(|Stored { register, .. }| write(register.value(), register.stamp())),
        arrived,
        losers: losers.into_iter().map(lost_write).collect(),
        losers_max: LOSERS_MAX,
    }
}

fn write(value: Option<&Value>, stamp: Stamp) -> Write {
    Write {
        value: value.map(ToString::to_string),
        stamp: stamp.to_string(),
        unix_ms: stamp.hlc.unix_ms(),
        origin: stamp.eid,
    }
}

fn lost_write(loser: Loser) -> LostWrite {
    LostWrite {
        write: write(loser.value.as_ref(), loser.stamp),
        lost_to: loser.winner.to_string(),
        how: loser.how.name().to_string(),
        seen_unix_ms: loser.seen,
    }
}

fn class_name(class: Class) -> String {
    Classes::only(class).to_string()
}
