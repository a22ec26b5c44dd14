//! SIP messages: parse and print (RFC 3261 sections 7, 20 and 25).
//!
//! A parser of our own, for requests and responses as they travel in one datagram or as [`super::framing`]
//! cuts them out of a stream. It takes folded header lines, compact names and header names in any case,
//! and never panics, loops or allocates more than a small multiple of its bounded input.
//!
//! Only the shape is checked here: the start line, the header lines, `Content-Length`. What a header's
//! value means is asked of it in [`super::header`] when it matters.

/// The largest message that is read, in bytes: what one UDP datagram can carry.
pub const MESSAGE_MAX_BYTES: usize = 65_535;
/// The most header lines of a message, folded ones counted once.
pub const HEADERS_MAX: usize = 128;
/// The longest header line, name included, after unfolding, in bytes.
pub const HEADER_MAX_BYTES: usize = 8_192;

/// Why bytes are not a SIP message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("the message has {0} bytes, at most {MESSAGE_MAX_BYTES} are read")]
    TooLong(usize),
    #[error("no empty line ends the headers")]
    NoEnd,
    #[error("the start line is neither a request's nor a response's of SIP/2.0")]
    StartLine,
    #[error("the message has more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    #[error("header {0} is longer than {HEADER_MAX_BYTES} bytes")]
    HeaderTooLong(usize),
    #[error("header {0} is not 'name: value' in UTF-8 without control characters")]
    Header(usize),
    #[error("Content-Length is not one number of at most {MESSAGE_MAX_BYTES}")]
    ContentLength,
    #[error("the body is cut off: {found} bytes of {wanted}")]
    CutOff { found: usize, wanted: usize },
}

/// A request or a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Request(Request),
    Response(Response),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub uri: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub headers: Headers,
    pub body: Vec<u8>,
}

/// Header lines in their order. Compact names are kept in their long form (RFC 3261 section 7.3.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of the first line of that name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The values of all lines of that name, in their order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The value of the only line of that name; none if there are several, which then contradict each other.
    pub fn only(&self, name: &str) -> Option<&str> {
        let mut all = self.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// Adds a line. Control characters, which would end it, become blanks.
    pub fn push(&mut self, name: &str, value: impl AsRef<str>) {
        let value = value.as_ref().chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
        self.0.push((name.to_owned(), value));
    }

    /// The same, in a chain.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.push(name, value);
        self
    }

    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The long forms of compact names (RFC 3261 section 7.3.3; `o` is of RFC 6665, `u` too).
fn long_name(name: &str) -> &str {
    const COMPACT: [(&str, &str); 13] = [
        ("c", "Content-Type"),
        ("e", "Content-Encoding"),
        ("f", "From"),
        ("i", "Call-ID"),
        ("k", "Supported"),
        ("l", "Content-Length"),
        ("m", "Contact"),
        ("o", "Event"),
        ("s", "Subject"),
        ("t", "To"),
        ("u", "Allow-Events"),
        ("v", "Via"),
        ("x", "Session-Expires"),
    ];
    COMPACT.iter().find(|(short, _)| name.eq_ignore_ascii_case(short)).map_or(name, |(_, long)| long)
}

impl Message {
    /// Parses one whole message. Without `Content-Length` the body is the rest; bytes behind a body of
    /// that length are dropped (RFC 3261 section 18.3, for datagrams).
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_MAX_BYTES {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let bytes = skip_blank_lines(bytes);
        let mut lines = Lines { rest: bytes };
        let start = lines.next().ok_or(MessageError::NoEnd)?;
        let headers = parse_headers(&mut lines)?;
        let body = cut_body(lines.rest, content_length(&headers)?)?;
        parse_start(start, headers, body)
    }

    pub fn headers(&self) -> &Headers {
        match self {
            Message::Request(request) => &request.headers,
            Message::Response(response) => &response.headers,
        }
    }

    pub fn print(&self) -> Vec<u8> {
        match self {
            Message::Request(request) => request.print(),
            Message::Response(response) => response.print(),
        }
    }
}

impl Request {
    /// As it travels. `Content-Length` is written here, whatever the headers say.
    pub fn print(&self) -> Vec<u8> {
        print(&format!("{} {} SIP/2.0", self.method, self.uri), &self.headers, &self.body)
    }
}

impl Response {
    pub fn new(status: u16) -> Self {
        Self { status, reason: reason_phrase(status).to_owned(), headers: Headers::default(), body: Vec::new() }
    }

    /// As it travels. `Content-Length` is written here, whatever the headers say.
    pub fn print(&self) -> Vec<u8> {
        print(&format!("SIP/2.0 {} {}", self.status, self.reason), &self.headers, &self.body)
    }
}

/// Empty lines before a message keep connections open (RFC 3261 section 7.5).
pub(super) fn skip_blank_lines(bytes: &[u8]) -> &[u8] {
    let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    &bytes[blank..]
}

/// Lines that end with CR LF, or with LF alone; without their ends.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&b| b == b'\n')?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

fn parse_headers(lines: &mut Lines<'_>) -> Result<Headers, MessageError> {
    let mut headers: Vec<(String, String)> = Vec::new();
    loop {
        let line = lines.next().ok_or(MessageError::NoEnd)?;
        if line.is_empty() {
            return Ok(Headers(headers));
        }
        let at = headers.len() + usize::from(!is_blank(line[0]));
        if line.len() > HEADER_MAX_BYTES {
            return Err(MessageError::HeaderTooLong(at));
        }
        let text = std::str::from_utf8(line).map_err(|_| MessageError::Header(at))?;
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(MessageError::Header(at));
        }
        if is_blank(line[0]) {
            unfold(headers.last_mut().ok_or(MessageError::Header(at))?, text, at)?;
            continue;
        }
        if headers.len() == HEADERS_MAX {
            return Err(MessageError::TooManyHeaders);
        }
        let (name, value) = text.split_once(':').ok_or(MessageError::Header(at))?;
        let name = name.trim_end_matches([' ', '\t']);
        if !is_token(name) {
            return Err(MessageError::Header(at));
        }
        headers.push((long_name(name).to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

/// A line that begins with a blank continues the one before it (RFC 3261 section 7.3.1).
fn unfold(header: &mut (String, String), text: &str, at: usize) -> Result<(), MessageError> {
    let more = text.trim_matches([' ', '\t']);
    if header.1.len() + 1 + more.len() > HEADER_MAX_BYTES {
        return Err(MessageError::HeaderTooLong(at));
    }
    if !header.1.is_empty() && !more.is_empty() {
        header.1.push(' ');
    }
    header.1.push_str(more);
    Ok(())
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 3261 section 25.1, `token`.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&b))
}

/// What `Content-Length` says; none if it is absent.
pub(super) fn content_length(headers: &Headers) -> Result<Option<usize>, MessageError> {
    if headers.get("Content-Length").is_none() {
        return Ok(None);
    }
    let text = headers.only("Content-Length").ok_or(MessageError::ContentLength)?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let length = text.parse().ok().filter(|&length| digits && length <= MESSAGE_MAX_BYTES);
    length.map(Some).ok_or(MessageError::ContentLength)
}

fn cut_body(rest: &[u8], length: Option<usize>) -> Result<Vec<u8>, MessageError> {
    let wanted = length.unwrap_or(rest.len());
    rest.get(..wanted).map(<[u8]>::to_vec).ok_or(MessageError::CutOff { found: rest.len(), wanted })
}

/// The version is compared in any case (RFC 3261 section 7.1).
const VERSION: &str = "SIP/2.0";

fn parse_start(line: &[u8], headers: Headers, body: Vec<u8>) -> Result<Message, MessageError> {
    let line = std::str::from_utf8(line).map_err(|_| MessageError::StartLine)?;
    if line.len() > HEADER_MAX_BYTES || line.chars().any(char::is_control) {
        return Err(MessageError::StartLine);
    }
    let (first, rest) = line.split_once(' ').ok_or(MessageError::StartLine)?;
    if first.eq_ignore_ascii_case(VERSION) {
        let (status, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let valid = status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit());
        let status = status.parse().ok().filter(|status| valid && (100..700).contains(status));
        let status = status.ok_or(MessageError::StartLine)?;
        return Ok(Message::Response(Response { status, reason: reason.to_owned(), headers, body }));
    }
    let (uri, version) = rest.split_once(' ').ok_or(MessageError::StartLine)?;
    if !is_token(first) || uri.is_empty() || !version.eq_ignore_ascii_case(VERSION) {
        return Err(MessageError::StartLine);
    }
    Ok(Message::Request(Request { method: first.to_owned(), uri: uri.to_owned(), headers, body }))
}

fn print(start: &str, headers: &Headers, body: &[u8]) -> Vec<u8> {
    let mut text = format!("{start}\r\n");
    for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("Content-Length")) {
        text += name;
        text += ": ";
        text += value;
        text += "\r\n";
    }
    text += &format!("Content-Length: {}\r\n\r\n", body.len());
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The reason phrases of what is answered here.
fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Conditional Request Failed",
        413 => "Request Entity Too Large",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        423 => "Interval Too Brief",
        481 => "Call/Transaction Does Not Exist",
        489 => "Bad Event",
        500 => "Server Internal Error",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}
