//! What the values of headers mean: the few that the adapter asks (RFC 3261 section 25).
//!
//! Each function takes a value that [`super::message`] has unfolded, and says nothing but None when it
//! is malformed: who asked knows which header it was.

/// The first `Via` (RFC 3261 section 20.42).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Via<'a> {
    pub transport: &'a str,
    pub sent_by: &'a str,
    pub branch: Option<&'a str>,
    /// `rport` is there, with or without a value (RFC 3581).
    pub rport: bool,
}

/// The first of the comma-separated `Via` values in `value`.
pub fn via(value: &str) -> Option<Via<'_>> {
    let first = split(value, ',').next()?;
    let mut parts = split(first, ';');
    // Blanks may stand around the slashes (RFC 4475 section 3.1.1.1).
    let (name, rest) = parts.next()?.split_once('/')?;
    let (version, rest) = rest.split_once('/')?;
    let (transport, sent_by) = rest.trim().split_once([' ', '\t'])?;
    if !name.trim().eq_ignore_ascii_case("SIP") || version.trim() != "2.0" {
        return None;
    }
    let mut via = Via { transport, sent_by: sent_by.trim(), branch: None, rport: false };
    for parameter in parts {
        match parameter_of(parameter) {
            (name, value) if name.eq_ignore_ascii_case("branch") => via.branch = value.filter(|text| !text.is_empty()),
            (name, _) if name.eq_ignore_ascii_case("rport") => via.rport = true,
            _ => {}
        }
    }
    (!via.sent_by.is_empty()).then_some(via)
}

/// A `CSeq`: less than 2^31, and the method (RFC 3261 section 8.1.1.5).
pub fn cseq(value: &str) -> Option<(u32, &str)> {
    let (number, method) = value.split_once([' ', '\t'])?;
    Some((digits(number)?.try_into().ok().filter(|&number: &u32| number < 1 << 31)?, method.trim()))
}

/// A number of seconds; more than fits is the most that fits.
pub fn seconds(value: &str) -> Option<u32> {
    // A parameter behind it means nothing to anyone here.
    let number = split(value, ';').next()?.trim();
    digits(number).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
}

fn digits(text: &str) -> Option<u64> {
    let valid = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    valid.then(|| text.parse().unwrap_or(u64::MAX))
}

/// A value with parameters, as in `Event` and `Content-Type`: the value alone, lower case.
pub fn bare(value: &str) -> String {
    split(value, ';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The URI of a From or To, and its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameAddr<'a> {
    pub uri: &'a str,
    pub tag: Option<&'a str>,
}

pub fn name_addr(value: &str) -> Option<NameAddr<'_>> {
    let (uri, parameters) = match find_unquoted(value, '<') {
        Some(open) => {
            let close = open + value[open..].find('>')?;
            (&value[open + 1..close], &value[close + 1..])
        }
        // Without angle brackets what follows a semicolon belongs to the header (RFC 3261 section 20.10).
        None => value.split_at(value.find(';').unwrap_or(value.len())),
    };
    let tag = split(parameters, ';').map(parameter_of).find(|(name, _)| name.eq_ignore_ascii_case("tag"));
    let uri = uri.trim();
    (!uri.is_empty()).then_some(NameAddr { uri, tag: tag.and_then(|(_, value)| value) })
}

/// A SIP or SIPS URI (RFC 3261 section 19.1), as far as it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// Unescaped, without a password.
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
}

/// What kind of URI it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UriError {
    /// The scheme is not `sip` or `sips`.
    Scheme,
    Malformed,
}

pub fn uri(text: &str) -> Result<Uri, UriError> {
    let (scheme, rest) = text.split_once(':').ok_or(UriError::Malformed)?;
    if !scheme.eq_ignore_ascii_case("sip") && !scheme.eq_ignore_ascii_case("sips") {
        return Err(UriError::Scheme);
    }
    let (user, rest) = match rest.rsplit_once('@') {
        Some((user, rest)) => (Some(user.split(':').next().unwrap_or_default()), rest),
        None => (None, rest),
    };
    let host_port = &rest[..rest.find([';', '?']).unwrap_or(rest.len())];
    let (host, port) = match host_port.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or(UriError::Malformed)?;
            (host, rest.strip_prefix(':'))
        }
        None => match host_port.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host_port, None),
        },
    };
    let port = port.map(|port| port.parse().map_err(|_| UriError::Malformed)).transpose()?;
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c == '<' || c == '>') {
        return Err(UriError::Malformed);
    }
    let user = user.map(|user| unescape(user).ok_or(UriError::Malformed)).transpose()?;
    Ok(Uri { user: user.filter(|user| !user.is_empty()), host: host.to_owned(), port })
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let pair = std::str::from_utf8(rest.get(..2)?).ok()?;
        if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(pair, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

/// `name=value` or `name`, trimmed; quotes around the value stay.
pub fn parameter_of(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (text.trim(), None),
    }
}

/// A value without its quotes and escapes, if it has any (RFC 3261 section 25.1, `quoted-string`).
pub fn unquoted(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        plain.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    plain
}

/// A value in quotes.
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn find_unquoted(text: &str, wanted: char) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if c == wanted && !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The pieces between separators that stand outside quotes.
pub fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        match find_unquoted(text, separator) {
            Some(at) => {
                rest = Some(&text[at + separator.len_utf8()..]);
                Some(&text[..at])
            }
            None => rest.take(),
        }
    })
}
