//! The bodies of `asterisk-db`: JSON as the patch prints and reads it (Review Board 4490, measured).
//!
//! Printed to the byte as a patched Asterisk prints it: compact, the members in its order, UTF-8 raw.
//! Read more strictly than it does: what is missing or of another type is an error that names it, and
//! nothing destructive is inferred from it.

use serde_json::Value as Json;

use crate::core::eid::Eid;
use crate::core::family::Mode;

/// The content type of all bodies.
pub const CONTENT_TYPE: &str = "application/json";
/// The event of all publications.
pub const EVENT: &str = "asterisk-db";

/// What a body says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    pub eid: Eid,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// "Send me everything that you share."
    Refresh,
    State(DbState),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbState {
    pub verb: Verb,
    pub family: String,
    pub mode: Mode,
    /// None: the member is null or missing. In a delete the patch means the whole family by it.
    pub entries: Option<Vec<Entry>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    Put,
    Delete,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::Put => "put",
            Verb::Delete => "delete",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// None if the member is missing or no string.
    pub data: Option<String>,
}

/// A key as an entry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKey<'a> {
    /// The key alone: an update.
    Bare(&'a str),
    /// `/family/key`: an answer to a refresh request. This is the key in it.
    Full(&'a str),
}

impl Entry {
    pub fn key_in(&self, family: &str) -> EntryKey<'_> {
        let full = self.key.strip_prefix('/').and_then(|rest| rest.strip_prefix(family)?.strip_prefix('/'));
        full.map_or(EntryKey::Bare(&self.key), EntryKey::Full)
    }
}

/// Why a body is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is no JSON object")]
    Json,
    #[error("'{0}' is missing, or not what it must be")]
    Member(&'static str),
}

impl Body {
    pub fn parse(bytes: &[u8]) -> Result<Self, BodyError> {
        let Ok(Json::Object(object)) = serde_json::from_slice(bytes) else { return Err(BodyError::Json) };
        let text = |object: &serde_json::Map<String, Json>, name: &'static str| match object.get(name) {
            Some(Json::String(text)) => Ok(text.clone()),
            _ => Err(BodyError::Member(name)),
        };
        let eid = text(&object, "eid")?.parse().map_err(|_| BodyError::Member("eid"))?;
        let content = match text(&object, "type")?.as_str() {
            "refresh" => Content::Refresh,
            "dbstate" => {
                let Some(Json::Object(state)) = object.get("dbstate") else {
                    return Err(BodyError::Member("dbstate"));
                };
                // In any case, as the patch reads it.
                let verb = text(state, "verb")?.to_ascii_lowercase();
                let verb = [Verb::Put, Verb::Delete].into_iter().find(|one| one.as_str() == verb);
                Content::State(DbState {
                    verb: verb.ok_or(BodyError::Member("verb"))?,
                    family: text(state, "family")?,
                    mode: text(state, "share_type")?.parse().map_err(|_| BodyError::Member("share_type"))?,
                    entries: entries(state.get("entries"))?,
                })
            }
            _ => return Err(BodyError::Member("type")),
        };
        Ok(Self { eid, content })
    }

    pub fn print(&self) -> Vec<u8> {
        let mut text = format!("{{\"type\":\"{}\",\"eid\":\"{}\"", self.content.type_name(), self.eid);
        if let Content::State(state) = &self.content {
            text += &format!(",\"dbstate\":{{\"verb\":\"{}\",\"family\":", state.verb.as_str());
            push_string(&mut text, &state.family);
            text += &format!(",\"share_type\":\"{}\",\"entries\":", state.mode.as_str());
            match &state.entries {
                None => text += "null",
                Some(entries) => push_entries(&mut text, entries),
            }
            text.push('}');
        }
        text.push('}');
        text.into_bytes()
    }
}

impl Content {
    fn type_name(&self) -> &'static str {
        match self {
            Content::Refresh => "refresh",
            Content::State(_) => "dbstate",
        }
    }
}

fn entries(json: Option<&Json>) -> Result<Option<Vec<Entry>>, BodyError> {
    let list = match json {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Array(list)) => list,
        Some(_) => return Err(BodyError::Member("entries")),
    };
    let entry = |json: &Json| {
        let key = json.get("key").and_then(Json::as_str).ok_or(BodyError::Member("key"))?;
        let data = json.get("data").and_then(Json::as_str);
        Ok(Entry { key: key.to_owned(), data: data.map(str::to_owned) })
    };
    list.iter().map(entry).collect::<Result<_, _>>().map(Some)
}

fn push_entries(text: &mut String, entries: &[Entry]) {
    text.push('[');
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str("{\"key\":");
        push_string(text, &entry.key);
        if let Some(data) = &entry.data {
            text.push_str(",\"data\":");
            push_string(text, data);
        }
        text.push('}');
    }
    text.push(']');
}

/// As the patch's JSON library writes it: `/` and 0x7f raw, control characters as `\u001F`.
fn push_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if c < ' ' => text.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// How many bytes an entry takes in a printed body, its comma included.
pub fn entry_bytes(key: &str, data: &str) -> usize {
    let mut text = String::new();
    push_string(&mut text, key);
    push_string(&mut text, data);
    text.len() + "{\"key\":,\"data\":},".len()
}
