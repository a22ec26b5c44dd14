//! The HTTP client of the command line: one node, a token if there is one, and errors that say what to try.

use std::io::Read;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{Request, Response};
use ureq::{Agent, Body};

use super::{Exit, Failure, NodeArgs};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the first byte of the answer: the node commits to disk before it gives one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of an answer that is not JSON is shown.
const EXCERPT_CHARS: usize = 200;

/// Everything but RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One segment of a URL; a '/' in it becomes %2F.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A key in a URL: each of its segments encoded, the '/' between them kept.
pub fn segments(key: &str) -> String {
    key.split('/').map(segment).collect::<Vec<_>>().join("/")
}

#[derive(Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// What a node answered, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// What a person should know of an error: the problem's `detail`, or what there is instead.
    pub fn detail(&self) -> String {
        let problem = serde_json::from_str::<serde_json::Value>(&self.body).ok();
        let field = |name| problem.as_ref().and_then(|problem| problem.get(name)).and_then(|text| text.as_str());
        match field("detail").or_else(|| field("title")) {
            Some(text) => text.to_string(),
            None if self.body.trim().is_empty() => format!("the node answered HTTP {}", self.status),
            None => {
                let excerpt: String = self.body.trim().chars().take(EXCERPT_CHARS).collect();
                format!("the node answered HTTP {}: {excerpt}", self.status)
            }
        }
    }

    /// The exit code of an error: 3 if the node failed, else 1, the answer is no.
    pub fn exit(&self) -> Exit {
        if self.ok() {
            Exit::Done
        } else if self.status >= 500 {
            Exit::Failed
        } else {
            Exit::No
        }
    }
}

impl Client {
    pub fn new(args: &NodeArgs) -> Result<Self, Failure> {
        let base = args.node.trim_end_matches('/').to_string();
        let host = base.strip_prefix("http://").unwrap_or_default();
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) {
            let message = format!("--node '{}' is not a node: write http://<host>:<port>", args.node);
            return Err(Failure::new(Exit::Usage, message));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kinfolk/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .build();
        Ok(Self { agent: Agent::new_with_config(config), base, token: token(args)? })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.whole(self.agent.run(self.finish(Request::get(self.url(path)), ())?), "GET", path)
    }

    pub fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.whole(self.agent.run(self.finish(Request::delete(self.url(path)), ())?), "DELETE", path)
    }

    pub fn put(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, Failure> {
        let request = Request::put(self.url(path)).header("content-type", content_type);
        self.whole(self.agent.run(self.finish(request, body)?), "PUT", path)
    }

    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, Failure> {
        let request = Request::post(self.url(path)).header("content-type", content_type);
        self.whole(self.agent.run(self.finish(request, body)?), "POST", path)
    }

    /// GET of an answer too large to hold: its status, and its body to read from.
    pub fn stream(&self, path: &str) -> Result<(u16, impl Read + use<>), Failure> {
        let response = self
            .agent
            .run(self.finish(Request::get(self.url(path)), ())?)
            .map_err(|error| self.unreachable(&error, "GET", path))?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().into_with_config().limit(u64::MAX).reader()))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn finish<B>(&self, request: ureq::http::request::Builder, body: B) -> Result<Request<B>, Failure> {
        let request = request.header("accept", "application/json");
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        request.body(body).map_err(|error| {
            let message = format!("cannot ask the node at {}: {error}. Look at --node and at the token", self.base);
            Failure::new(Exit::Usage, message)
        })
    }

    fn whole(
        &self,
        response: Result<Response<Body>, ureq::Error>,
        method: &str,
        path: &str,
    ) -> Result<Answer, Failure> {
        let response = response.map_err(|error| self.unreachable(&error, method, path))?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .read_to_string()
            .map_err(|error| self.unreachable(&error, method, path))?;
        let answer = Answer { status, body };
        if status == 401 { Err(self.token_refused(&answer)) } else { Ok(answer) }
    }

    /// For 401 on any route.
    pub fn token_refused(&self, answer: &Answer) -> Failure {
        let what = if self.token.is_some() { "refuses this token" } else { "wants a token" };
        let message = format!(
            "the node at {} {what}: {}. Put the token of its token_file into KINFOLK_TOKEN, or name a file with \
             --token-file",
            self.base,
            answer.detail()
        );
        Failure::new(Exit::Failed, message)
    }

    fn unreachable(&self, error: &ureq::Error, method: &str, path: &str) -> Failure {
        let message = format!(
            "no answer from the node at {} ({method} {path}: {error}). Is it running? Its log says more; another node \
             is named with --node URL or KINFOLK_NODE",
            self.base
        );
        Failure::new(Exit::Failed, message)
    }

    /// For an answer that no Kinfolk node gives.
    pub fn nonsense(&self, answer: &Answer, error: impl std::fmt::Display) -> Failure {
        let excerpt: String = answer.body.trim().chars().take(EXCERPT_CHARS).collect();
        let message = format!(
            "{} answered HTTP {} with something unexpected ({error}): {excerpt:?}. Is that a Kinfolk node of this version?",
            self.base, answer.status
        );
        Failure::new(Exit::Failed, message)
    }
}

/// The token of `--token-file`, else of the environment.
fn token(args: &NodeArgs) -> Result<Option<String>, Failure> {
    let text = match &args.token_file {
        Some(file) => std::fs::read_to_string(file).map_err(|error| {
            Failure::new(Exit::Usage, format_args!("cannot read the token file {}: {error}", file.display()))
        })?,
        None => std::env::var("KINFOLK_TOKEN").unwrap_or_default(),
    };
    let token = text.trim();
    Ok((!token.is_empty()).then(|| token.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_one_segment_and_a_key_keeps_its_slashes() {
        assert_eq!(segment("foo/bar"), "foo%2Fbar");
        assert_eq!(segments("1001;@x/a b/ü"), "1001%3B%40x/a%20b/%C3%BC");
        assert_eq!(segment("a-b_c.d~e%"), "a-b_c.d~e%25");
    }

    #[test]
    fn the_detail_of_an_error_is_found_whatever_answers() {
        let detail = |status, body: &str| Answer { status, body: body.to_string() }.detail();
        assert_eq!(detail(409, r#"{"title":"t","detail":"why"}"#), "why");
        assert_eq!(detail(409, r#"{"title":"t"}"#), "t");
        assert_eq!(detail(502, " "), "the node answered HTTP 502");
        assert_eq!(detail(502, "<html>"), "the node answered HTTP 502: <html>");
    }

    #[test]
    fn what_is_no_url_of_a_node_is_a_usage_error() {
        for node in ["", "localhost:7481", "https://a", "http://", "http://a/b"] {
            let args = NodeArgs { node: node.to_string(), token_file: None };
            let failure = Client::new(&args).expect_err(node);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(&format!("'{node}'")), "{}", failure.message);
        }
    }
}
