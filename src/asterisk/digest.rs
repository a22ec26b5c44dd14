//! Digest authentication, both sides: MD5 as a patched Asterisk does it (RFC 2617, `qop=auth`), and
//! SHA-256 (RFC 7616, RFC 8760).
//!
//! A server's nonces are numbered and bound to their time, realm and number by an HMAC: none is stored.
//! What is remembered of them is bounded ([`USED_MAX`]): the highest `nc` of each nonce that was used, so
//! that no header is accepted twice; a nonce older than all of these is stale, and its user is challenged
//! anew, which costs a round trip and nothing else.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;

use super::event::Moment;
use super::header::{parameter_of, quoted, split, unquoted};
use super::settings::Credentials;

/// How many used nonces are remembered.
pub const USED_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    Md5,
    Sha256,
}

impl Algorithm {
    /// The token: in a challenge of ours, and compared in any case in what arrives.
    pub fn token(self) -> &'static str {
        match self {
            Algorithm::Md5 => "MD5",
            Algorithm::Sha256 => "SHA-256",
        }
    }

    /// Without a token it is MD5 (RFC 2617 section 3.2.1).
    fn named(token: Option<&str>) -> Option<Self> {
        let token = token.unwrap_or("MD5");
        [Algorithm::Md5, Algorithm::Sha256].into_iter().find(|algorithm| token.eq_ignore_ascii_case(algorithm.token()))
    }

    fn hash(self, text: &str) -> String {
        match self {
            Algorithm::Md5 => hex(&Md5::digest(text.as_bytes())),
            Algorithm::Sha256 => hex(&Sha256::digest(text.as_bytes())),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first bytes of an HMAC-SHA-256, as hexadecimal digits.
pub(super) fn tag(key: &[u8; 32], text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key length will do");
    mac.update(text.as_bytes());
    hex(&mac.finalize().into_bytes()[..16])
}

/// A challenge: what `WWW-Authenticate` and `Proxy-Authenticate` carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    pub realm: String,
    pub nonce: String,
    pub opaque: Option<String>,
    pub algorithm: Algorithm,
    /// `qop=auth` is offered; without any offer the answer is computed as RFC 2069 did.
    pub qop_auth: bool,
    pub stale: bool,
}

/// What `Authorization` carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    pub username: String,
    pub realm: String,
    pub nonce: String,
    pub uri: String,
    pub response: String,
    pub algorithm: Algorithm,
    pub opaque: Option<String>,
    /// With `qop=auth`: `cnonce` and `nc`.
    pub qop: Option<(String, u32)>,
}

/// Why a header is no digest that can be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("the scheme is not Digest")]
    Scheme,
    #[error("a parameter that must be there is missing, doubled or malformed")]
    Parameter,
    #[error("the algorithm is neither MD5 nor SHA-256")]
    Algorithm,
    #[error("no quality of protection that is done here")]
    Qop,
}

type Parameters<'a> = BTreeMap<String, &'a str>;

fn parameters(value: &str) -> Result<Parameters<'_>, DigestError> {
    let (scheme, rest) = value.trim().split_once([' ', '\t']).ok_or(DigestError::Scheme)?;
    if !scheme.eq_ignore_ascii_case("Digest") {
        return Err(DigestError::Scheme);
    }
    let mut found = BTreeMap::new();
    for piece in split(rest, ',').filter(|piece| !piece.trim().is_empty()) {
        let (name, value) = parameter_of(piece);
        let value = value.filter(|value| is_value(value)).ok_or(DigestError::Parameter)?;
        // Two of one name contradict each other: which of them was signed?
        if found.insert(name.to_ascii_lowercase(), value).is_some() {
            return Err(DigestError::Parameter);
        }
    }
    Ok(found)
}

/// A token, or a quoted string that ends where the value ends.
fn is_value(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"') else { return !text.contains('"') };
    let mut escaped = false;
    let end = inner.char_indices().find(|(_, c)| {
        let ends = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        ends
    });
    end.is_some_and(|(at, _)| at + 1 == inner.len())
}

/// The digits of a hash.
fn hash_digits(found: &Parameters<'_>) -> Result<String, DigestError> {
    let digits = wanted(found, "response")?.to_ascii_lowercase();
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then_some(digits).ok_or(DigestError::Parameter)
}

fn text(found: &Parameters<'_>, name: &str) -> Option<String> {
    found.get(name).map(|value| unquoted(value))
}

fn wanted(found: &Parameters<'_>, name: &str) -> Result<String, DigestError> {
    text(found, name).ok_or(DigestError::Parameter)
}

fn algorithm(found: &Parameters<'_>) -> Result<Algorithm, DigestError> {
    Algorithm::named(text(found, "algorithm").as_deref()).ok_or(DigestError::Algorithm)
}

impl Challenge {
    pub fn parse(value: &str) -> Result<Self, DigestError> {
        let found = parameters(value)?;
        let qop = text(&found, "qop");
        let qop_auth =
            qop.as_ref().is_some_and(|qop| qop.split(',').any(|one| one.trim().eq_ignore_ascii_case("auth")));
        if qop.is_some() && !qop_auth {
            return Err(DigestError::Qop);
        }
        Ok(Self {
            realm: wanted(&found, "realm")?,
            nonce: wanted(&found, "nonce")?,
            opaque: text(&found, "opaque"),
            algorithm: algorithm(&found)?,
            qop_auth,
            stale: text(&found, "stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
        })
    }

    pub fn print(&self) -> String {
        let stale = if self.stale { ", stale=true" } else { "" };
        let opaque = self.opaque.as_ref().map_or(String::new(), |opaque| format!(", opaque={}", quoted(opaque)));
        let qop = if self.qop_auth { ", qop=\"auth\"" } else { "" };
        let (realm, nonce) = (quoted(&self.realm), quoted(&self.nonce));
        format!("Digest realm={realm}, nonce={nonce}{opaque}, algorithm={}{qop}{stale}", self.algorithm.token())
    }

    /// The answer to the challenge (the client's side). `count` is how often this nonce has been used,
    /// from 1; `cnonce` is drawn afresh.
    pub fn answer(
        &self,
        credentials: &Credentials,
        method: &str,
        uri: &str,
        count: u32,
        cnonce: &str,
    ) -> Authorization {
        let qop = self.qop_auth.then(|| (cnonce.to_owned(), count));
        let mut answer = Authorization {
            username: credentials.username.clone(),
            realm: self.realm.clone(),
            nonce: self.nonce.clone(),
            uri: uri.to_owned(),
            response: String::new(),
            algorithm: self.algorithm,
            opaque: self.opaque.clone(),
            qop,
        };
        answer.response = answer.expected(&credentials.password, method);
        answer
    }
}

impl Authorization {
    pub fn parse(value: &str) -> Result<Self, DigestError> {
        let found = parameters(value)?;
        let qop = match text(&found, "qop") {
            None => None,
            Some(qop) if qop.eq_ignore_ascii_case("auth") => {
                let count = wanted(&found, "nc")?;
                let valid = count.len() == 8 && count.bytes().all(|b| b.is_ascii_hexdigit());
                let count = u32::from_str_radix(&count, 16).ok().filter(|_| valid).ok_or(DigestError::Parameter)?;
                Some((wanted(&found, "cnonce")?, count))
            }
            Some(_) => return Err(DigestError::Qop),
        };
        Ok(Self {
            username: wanted(&found, "username")?,
            realm: wanted(&found, "realm")?,
            nonce: wanted(&found, "nonce")?,
            uri: wanted(&found, "uri")?,
            response: hash_digits(&found)?,
            algorithm: algorithm(&found)?,
            opaque: text(&found, "opaque"),
            qop,
        })
    }

    pub fn print(&self) -> String {
        let mut text = format!(
            "Digest username={}, realm={}, nonce={}, uri={}, response=\"{}\", algorithm={}",
            quoted(&self.username),
            quoted(&self.realm),
            quoted(&self.nonce),
            quoted(&self.uri),
            self.response,
            self.algorithm.token()
        );
        if let Some((cnonce, count)) = &self.qop {
            text += &format!(", cnonce={}, qop=auth, nc={count:08x}", quoted(cnonce));
        }
        if let Some(opaque) = &self.opaque {
            text += &format!(", opaque={}", quoted(opaque));
        }
        text
    }

    /// What `response` must be (RFC 2617 section 3.2.2, RFC 7616 section 3.4.1).
    pub fn expected(&self, password: &str, method: &str) -> String {
        let hash = |text: &str| self.algorithm.hash(text);
        let who = hash(&format!("{}:{}:{password}", self.username, self.realm));
        let what = hash(&format!("{method}:{}", self.uri));
        match &self.qop {
            Some((cnonce, count)) => hash(&format!("{who}:{}:{count:08x}:{cnonce}:auth:{what}", self.nonce)),
            None => hash(&format!("{who}:{}:{what}", self.nonce)),
        }
    }
}

/// What became of credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good,
    /// The nonce is too old, unknown or was used: challenge anew, with `stale=true`, so that the password
    /// is not asked for again (RFC 2617 section 3.2.1).
    Stale,
    Wrong,
}

/// The server's side for one attached Asterisk.
#[derive(Debug)]
pub struct Guard {
    key: [u8; 32],
    realm: String,
    nonce_ms: u64,
    issued: u64,
    /// By number: how often the nonce was used.
    used: BTreeMap<u64, u32>,
    /// Nonces up to this number are stale.
    forgotten: u64,
}

impl Guard {
    pub fn new(key: [u8; 32], realm: String, nonce_ms: u64) -> Self {
        Self { key, realm, nonce_ms, issued: 0, used: BTreeMap::new(), forgotten: 0 }
    }

    pub fn challenge(&mut self, algorithm: Algorithm, stale: bool, now: Moment) -> Challenge {
        self.issued += 1;
        let nonce = self.nonce(now, self.issued);
        Challenge { realm: self.realm.clone(), nonce, opaque: None, algorithm, qop_auth: true, stale }
    }

    fn nonce(&self, at: Moment, number: u64) -> String {
        let named = format!("{at:x}.{number:x}");
        let tag = tag(&self.key, &format!("nonce {} {named}", self.realm));
        format!("{named}.{tag}")
    }

    /// Checks credentials for a request. Only [`Verdict::Good`] counts a nonce as used.
    pub fn check(
        &mut self,
        given: &Authorization,
        credentials: &Credentials,
        method: &str,
        uri: &str,
        offered: &[Algorithm],
        now: Moment,
    ) -> Verdict {
        let known = given.username == credentials.username && given.realm == self.realm && given.uri == uri;
        let expected = given.expected(&credentials.password, method);
        if !known || !offered.contains(&given.algorithm) || !same(&expected, &given.response) {
            return Verdict::Wrong;
        }
        // The answer is right, but whoever answers a challenge that was never made may have it from
        // elsewhere.
        let (Some((_, count)), Some(number)) = (&given.qop, self.number_of(&given.nonce, now)) else {
            return Verdict::Stale;
        };
        if *count <= self.used.get(&number).copied().unwrap_or(0) {
            return Verdict::Stale;
        }
        self.used.insert(number, *count);
        if self.used.len() > USED_MAX
            && let Some((oldest, _)) = self.used.pop_first()
        {
            self.forgotten = oldest;
        }
        Verdict::Good
    }

    /// The number of a nonce of ours that is still good.
    fn number_of(&self, nonce: &str, now: Moment) -> Option<u64> {
        let mut parts = nonce.splitn(3, '.');
        let (at, number) = (parts.next()?, parts.next()?);
        let (at, number) = (Moment::from_str_radix(at, 16).ok()?, u64::from_str_radix(number, 16).ok()?);
        let ours = same(&self.nonce(at, number), nonce);
        let fresh = at <= now && now - at <= self.nonce_ms && number > self.forgotten;
        (ours && fresh).then_some(number)
    }
}

/// Compares without telling by the time it takes where the two differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
