//! What a patched Asterisk says in its bodies, and what it makes of those that it gets.

use kinfolk::core::family::Mode;
use serde_json::Value as Json;

use super::Settings;
use super::astdb::AstDb;

pub fn refresh(eid: &str) -> String {
    format!(r#"{{"type":"refresh","eid":"{eid}"}}"#)
}

pub fn dbstate(eid: &str, verb: &str, family: &str, mode: Mode, entries: &[(&str, &str)]) -> String {
    let entries: Vec<String> = entries
        .iter()
        .map(|(key, data)| format!(r#"{{"key":{},"data":{}}}"#, json_string(key), json_string(data)))
        .collect();
    format!(
        r#"{{"type":"dbstate","eid":"{eid}","dbstate":{{"verb":"{verb}","family":{},"share_type":"{mode}","entries":[{}]}}}}"#,
        json_string(family),
        entries.join(",")
    )
}

/// As jansson prints it: UTF-8, `/` and 0x7f raw.
fn json_string(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            c if c < ' ' => json.push_str(&format!("\\u{:04X}", c as u32)),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

/// The answer to a refresh: one body for each shared family, its entries with full keys.
pub fn whole_content(db: &AstDb, settings: &Settings) -> Vec<String> {
    let body = |(family, mode): (&String, &Mode)| {
        let entries: Vec<_> = db.tree(family).collect();
        (!entries.is_empty()).then(|| dbstate(&settings.eid, "put", family, *mode, &entries))
    };
    settings.shared.iter().filter_map(body).collect()
}

/// Whether the publication's state was taken, whatever came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Taken,
    /// 500 on an initial publication; on a later one the publication goes.
    Bad,
}

pub struct Done {
    pub outcome: Applied,
    /// The peer asked for everything.
    pub refresh_wanted: bool,
}

const TAKEN: Done = Done { outcome: Applied::Taken, refresh_wanted: false };
const BAD: Done = Done { outcome: Applied::Bad, refresh_wanted: false };

/// Applies a body as the patch does.
pub fn apply(db: &mut AstDb, settings: &Settings, body: &[u8]) -> Done {
    let Ok(json) = serde_json::from_slice::<Json>(body) else { return BAD };
    let text = |of: &Json, name: &str| of.get(name).and_then(Json::as_str).map(str::to_string);
    let (Some(kind), Some(eid)) = (text(&json, "type"), text(&json, "eid")) else { return BAD };
    if eid.eq_ignore_ascii_case(&settings.eid) {
        return TAKEN;
    }
    match kind.as_str() {
        "refresh" => Done { outcome: Applied::Taken, refresh_wanted: true },
        "dbstate" => {
            let Some(state) = json.get("dbstate") else { return TAKEN };
            let members = (text(state, "verb"), text(state, "share_type"), text(state, "family"));
            let (Some(verb), Some(share_type), Some(family)) = members else { return BAD };
            let unique = match share_type.to_ascii_lowercase().as_str() {
                "global" => false,
                "unique" => true,
                _ => return BAD,
            };
            match verb.to_ascii_lowercase().as_str() {
                "put" => put_entries(db, settings, &eid, &family, unique, state),
                "delete" => delete_entries(db, &family, state),
                _ => return BAD,
            }
            TAKEN
        }
        _ => BAD,
    }
}

/// Keys are taken as they come, also full ones: these land at `/family//family/key`. The body's share type
/// decides, not the family's mode here.
fn put_entries(db: &mut AstDb, settings: &Settings, eid: &str, family: &str, unique: bool, state: &Json) {
    if !settings.shared.contains_key(family) {
        return;
    }
    let place = if unique { format!("{}/{family}", eid.to_ascii_lowercase()) } else { family.to_string() };
    for entry in state.get("entries").and_then(Json::as_array).into_iter().flatten() {
        let (key, data) = (entry.get("key").and_then(Json::as_str), entry.get("data").and_then(Json::as_str));
        if let (Some(key), Some(data)) = (key, data)
            && !key.is_empty()
        {
            // What is too long is not stored, and nobody is told.
            db.put(&place, key, data);
        }
    }
}

/// Whether or not the family is shared here. A unique delete takes this server's own key, not the copy of the
/// one who deleted; where data is missing, the whole family goes.
fn delete_entries(db: &mut AstDb, family: &str, state: &Json) {
    let Some(entries) = state.get("entries").and_then(Json::as_array) else {
        db.deltree(family, None);
        return;
    };
    for entry in entries {
        match (entry.get("key").and_then(Json::as_str), entry.get("data").and_then(Json::as_str)) {
            (Some(key), Some(_)) => {
                db.del(family, key);
            }
            _ => {
                db.deltree(family, None);
            }
        }
    }
}
