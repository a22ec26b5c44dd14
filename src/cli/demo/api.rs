//! A small client of one node for the demo and the tests: keeps its connection, tells an answer that says
//! no from no answer at all, and reads stamps.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value as Json;
use ureq::Agent;
use ureq::http::Request;

use crate::cli::client::segments;
use crate::core::clock::Stamp;
use crate::status::Status;

/// A node that does not answer within this long is taken for gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What a node answered, read whole.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

impl Reply {
    pub fn ok(&self) -> bool {
        self.status == 200
    }

    /// The text of a field of the JSON body; empty if there is none.
    pub fn text(&self, field: &str) -> String {
        let body = serde_json::from_str::<Json>(&self.body).unwrap_or_default();
        body.get(field).and_then(Json::as_str).unwrap_or_default().to_string()
    }

    /// What a problem says to a person.
    pub fn detail(&self) -> String {
        self.text("detail")
    }
}

/// Why a call brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The request did not get out: nothing was done.
    #[error("{0} does not listen")]
    NotSent(SocketAddr),
    /// The request may have been carried out.
    #[error("no answer from {node}: {what}")]
    NoAnswer { node: SocketAddr, what: String },
    #[error("HTTP {status}: {detail}")]
    Refused { status: u16, detail: String },
}

/// A client of the node at one address.
#[derive(Clone, Debug)]
pub struct Api {
    agent: Agent,
    node: SocketAddr,
}

impl Api {
    pub fn new(node: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        Self { agent: Agent::new_with_config(config), node }
    }

    /// Any request; `path` as it goes over the wire.
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, CallError> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.node));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let malformed = |error: ureq::http::Error| self.no_answer(&error);
        let response = match method {
            "GET" | "DELETE" => self.agent.run(request.body(()).map_err(malformed)?),
            _ => self.agent.run(request.body(body).map_err(malformed)?),
        };
        let response = response.map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_string();
        let body = response.into_body().into_with_config().limit(u64::MAX).read_to_string();
        let body = body.map_err(|error| self.failed(&error))?;
        Ok(Reply { status, content_type, body })
    }

    pub fn get(&self, path: &str) -> Result<Reply, CallError> {
        self.call("GET", path, &[], b"")
    }

    /// Writes `value` at `/family/key`; gives the stamp of the acknowledgement.
    pub fn put(&self, path: &str, value: &str) -> Result<Stamp, CallError> {
        self.stamp(&taken(self.call("PUT", &db(path), &[], value.as_bytes())?)?)
    }

    /// Deletes `/family/key`; none if it was not there.
    pub fn delete(&self, path: &str) -> Result<Option<Stamp>, CallError> {
        let reply = self.call("DELETE", &db(path), &[], b"")?;
        if reply.status == 404 { Ok(None) } else { self.stamp(&taken(reply)?).map(Some) }
    }

    /// Deletes everything under `/family` or `/family/key`; gives how many keys that were.
    pub fn delete_tree(&self, tree: &str) -> Result<u64, CallError> {
        let reply = self.call("DELETE", &format!("/v1/tree{}", segments(tree)), &[], b"")?;
        if reply.status == 404 {
            return Ok(0);
        }
        let reply = taken(reply)?;
        let body = serde_json::from_str::<Json>(&reply.body).unwrap_or_default();
        body.get("removed").and_then(Json::as_u64).ok_or_else(|| self.no_answer(&reply.body))
    }

    /// The value at `/family/key`; none if it is not there.
    pub fn value(&self, path: &str) -> Result<Option<String>, CallError> {
        let reply = self.get(&db(path))?;
        if reply.status == 404 { Ok(None) } else { Ok(Some(taken(reply)?.text("value"))) }
    }

    /// All records of shared families, as `kinfolk export` prints them.
    pub fn export(&self) -> Result<String, CallError> {
        Ok(taken(self.get("/v1/export")?)?.body)
    }

    pub fn status(&self) -> Result<Status, CallError> {
        let reply = taken(self.get("/v1/status")?)?;
        serde_json::from_str(&reply.body).map_err(|error| self.no_answer(&error))
    }

    /// The sum of a metric over its series whose line contains `label`.
    pub fn metric(&self, name: &str, label: &str) -> Result<f64, CallError> {
        let page = taken(self.get("/metrics")?)?.body;
        let series = page.lines().filter_map(|line| line.rsplit_once(' '));
        let wanted = series.filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(label));
        Ok(wanted.filter_map(|(_, value)| value.parse::<f64>().ok()).sum())
    }

    fn stamp(&self, reply: &Reply) -> Result<Stamp, CallError> {
        reply.text("stamp").parse().map_err(|error| self.no_answer(&error))
    }

    fn failed(&self, error: &ureq::Error) -> CallError {
        match error {
            ureq::Error::ConnectionFailed => CallError::NotSent(self.node),
            ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                CallError::NotSent(self.node)
            }
            error => self.no_answer(error),
        }
    }

    fn no_answer(&self, what: &dyn std::fmt::Display) -> CallError {
        CallError::NoAnswer { node: self.node, what: what.to_string() }
    }
}

fn db(path: &str) -> String {
    format!("/v1/db{}", segments(path))
}

fn taken(reply: Reply) -> Result<Reply, CallError> {
    if reply.ok() { Ok(reply) } else { Err(CallError::Refused { status: reply.status, detail: reply.detail() }) }
}
