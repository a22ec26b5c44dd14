//! The HTTP interface of a node (`contract`: the table of routes). JSON unless said; errors are problem
//! JSON (RFC 9457) with a `detail` that a person understands.
//!
//! Paths are taken apart before they are decoded, so that a segment may hold an encoded '/'.

mod api;
mod backup;
mod changes;
mod floors;
mod listener;
mod problem;
#[cfg(test)]
mod tests;
mod transfer;
mod why;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::core::storage::Reads;
use crate::metrics::{CONTENT_TYPE, Extra, Metrics};
use crate::status::Status;
use crate::store::writer::Database;

pub use changes::Watchers;
pub use listener::{ConnectionLimits, LimitedListener};
use problem::Problem;

/// The longest that a request may take until its answer begins, a slow body included.
const REQUEST_MAX: Duration = Duration::from_secs(60);

/// What the server needs of the node.
pub struct Api<R> {
    pub database: Database<R>,
    pub metrics: Arc<Metrics>,
    /// The status as of now, and what only the metrics show.
    pub status: Arc<dyn Fn() -> (Status, Extra) + Send + Sync>,
    /// Wanted as `Authorization: Bearer` on every route except health, if there is one.
    pub token: Option<String>,
    /// The largest body of an import, in bytes. The body of a put is bounded by the largest value.
    pub import_max_bytes: usize,
    pub watchers: Watchers,
}

type Shared<R> = Arc<Api<R>>;

/// The routes of a node.
pub fn router<R: Reads>(api: Api<R>) -> Router {
    let api = Arc::new(api);
    Router::new()
        .route("/v1/db/{*path}", get(api::get).put(api::put).post(api::put).delete(api::delete))
        .route("/v1/tree", get(api::tree).delete(api::delete_tree))
        .route("/v1/tree/{*path}", get(api::tree).delete(api::delete_tree))
        .route("/v1/keys/{*path}", get(api::keys))
        .route("/v1/shared", get(api::shared))
        .route("/v1/shared/{*path}", get(api::shared_one).put(api::share).delete(api::unshare))
        .route("/v1/members", get(floors::members))
        .route("/v1/members/{eid}", axum::routing::put(floors::stand))
        .route("/v1/quarantine", get(floors::list))
        .route("/v1/quarantine/{*path}", axum::routing::post(floors::adopt).delete(floors::discard))
        .route("/v1/backup", get(backup::backup))
        .route("/v1/why/{*path}", get(why::why))
        .route("/v1/export", get(transfer::export))
        .route("/v1/import", axum::routing::post(transfer::import))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .fallback(|method: Method, request: Request| async move {
            Problem::new(StatusCode::NOT_FOUND, format!("there is no {method} {} here", request.uri().path()))
        })
        // For the routes since the first one, which the guard does not watch.
        .method_not_allowed_fallback(not_allowed)
        .with_state(api)
}

async fn not_allowed(method: Method) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed on this path"))
}

/// Lets in who has the token. Without one, keeps out web pages: a browser names their origin.
async fn guard<R: Reads>(State(api): State<Shared<R>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    match &api.token {
        Some(token) => {
            let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
            if !given.is_some_and(|given| equal_in_constant_time(given, token.as_bytes())) {
                api.metrics.refuse("http_token");
                let detail = "a bearer token is needed: Authorization: Bearer <the content of the node's token file>";
                let mut response = Problem::new(StatusCode::UNAUTHORIZED, detail).into_response();
                response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
                return response;
            }
        }
        None if headers.contains_key(header::ORIGIN) => {
            api.metrics.refuse("http_origin");
            return Problem::new(StatusCode::FORBIDDEN, "web pages may not use a node that has no token")
                .into_response();
        }
        None => {}
    }
    let answer = tokio::time::timeout(REQUEST_MAX, next.run(request)).await;
    answer.unwrap_or_else(|_| {
        api.metrics.refuse("http_timeout");
        let detail = format!("the request took longer than {} s", REQUEST_MAX.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail).into_response()
    })
}

/// Takes as long for a wrong token as for the right one of the same length.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

async fn status<R: Reads>(State(api): State<Shared<R>>) -> Response {
    axum::Json((api.status)().0).into_response()
}

async fn ready<R: Reads>(State(api): State<Shared<R>>) -> Response {
    let (status, _) = (api.status)();
    if status.node.ready {
        return "ready\n".into_response();
    }
    let mut detail = "the node has not caught up with its peers yet".to_string();
    for alarm in &status.node.alarms {
        detail = format!("{detail}; {alarm}");
    }
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

async fn metrics<R: Reads>(State(api): State<Shared<R>>) -> Response {
    let (status, extra) = (api.status)();
    match api.metrics.scrape(&status, &extra) {
        Ok(page) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
