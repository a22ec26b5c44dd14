//! Bodies: as a patched Asterisk prints them, to the byte, and what is refused.

use proptest::prelude::*;

use super::body::{Body, BodyError, Content, DbState, Entry, EntryKey, Verb, entry_bytes};
use crate::core::eid::Eid;
use crate::core::family::Mode;

const EID: Eid = Eid::new([2, 0, 0, 0, 0, 1]);

fn state(verb: Verb, family: &str, mode: Mode, entries: &[(&str, &str)]) -> Body {
    let entry = |(key, data): &(&str, &str)| Entry { key: (*key).into(), data: Some((*data).into()) };
    let entries = Some(entries.iter().map(entry).collect());
    Body { eid: EID, content: Content::State(DbState { verb, family: family.into(), mode, entries }) }
}

/// Captured.
#[test]
fn bodies_are_printed_as_the_patch_prints_them() {
    let cases = [
        (Body { eid: EID, content: Content::Refresh }, r#"{"type":"refresh","eid":"02:00:00:00:00:01"}"#),
        (
            state(Verb::Put, "foo", Mode::Global, &[("k1", "v1")]),
            r#"{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{"verb":"put","family":"foo","share_type":"global","entries":[{"key":"k1","data":"v1"}]}}"#,
        ),
        (
            state(Verb::Delete, "uni", Mode::Unique, &[("k2", "")]),
            r#"{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{"verb":"delete","family":"uni","share_type":"unique","entries":[{"key":"k2","data":""}]}}"#,
        ),
        (
            state(Verb::Put, "foo", Mode::Global, &[("/foo/a", "1"), ("/foo/b", "2")]),
            r#"{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{"verb":"put","family":"foo","share_type":"global","entries":[{"key":"/foo/a","data":"1"},{"key":"/foo/b","data":"2"}]}}"#,
        ),
        (
            state(
                Verb::Put,
                "foo",
                Mode::Global,
                &[("ctl", "a\u{1}b\u{1f}c\u{7f}d"), ("q\"uote's", "say \\ </x> tab\there\r\n")],
            ),
            "{\"type\":\"dbstate\",\"eid\":\"02:00:00:00:00:01\",\"dbstate\":{\"verb\":\"put\",\"family\":\"foo\",\"share_type\":\"global\",\"entries\":[{\"key\":\"ctl\",\"data\":\"a\\u0001b\\u001Fc\u{7f}d\"},{\"key\":\"q\\\"uote's\",\"data\":\"say \\\\ </x> tab\\there\\r\\n\"}]}}",
        ),
        (
            state(Verb::Put, "foo", Mode::Global, &[("clé-é", "żółw ☃ 😀")]),
            r#"{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{"verb":"put","family":"foo","share_type":"global","entries":[{"key":"clé-é","data":"żółw ☃ 😀"}]}}"#,
        ),
    ];
    for (body, text) in cases {
        assert_eq!(String::from_utf8_lossy(&body.print()), text);
        assert_eq!(Body::parse(text.as_bytes()), Ok(body));
    }
}

#[test]
fn what_the_patch_would_not_take_or_would_guess_at_is_refused() {
    let parse = |text: &str| Body::parse(text.as_bytes()).expect_err("refused");
    for text in ["", "[]", "{", "null", "\u{feff}{}", &format!("{}{}", "[".repeat(500), "]".repeat(500))] {
        assert_eq!(parse(text), BodyError::Json, "{text}");
    }
    assert_eq!(parse("{}"), BodyError::Member("eid"));
    assert_eq!(parse(r#"{"type":"refresh","eid":5}"#), BodyError::Member("eid"));
    assert_eq!(parse(r#"{"type":"refresh","eid":"hello"}"#), BodyError::Member("eid"), "the patch makes an EID of it");
    assert_eq!(parse(r#"{"eid":"02:00:00:00:00:01"}"#), BodyError::Member("type"));
    assert_eq!(parse(r#"{"type":"x","eid":"02:00:00:00:00:01"}"#), BodyError::Member("type"));
    assert_eq!(parse(r#"{"type":"dbstate","eid":"02:00:00:00:00:01"}"#), BodyError::Member("dbstate"));
    let with = |state: &str| format!(r#"{{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{state}}}"#);
    assert_eq!(parse(&with(r#"{"verb":"update"}"#)), BodyError::Member("verb"));
    assert_eq!(parse(&with(r#"{"verb":"put"}"#)), BodyError::Member("family"));
    assert_eq!(parse(&with(r#"{"verb":"put","family":"foo","share_type":"local"}"#)), BodyError::Member("share_type"));
    let entries =
        |entries: &str| with(&format!(r#"{{"verb":"PUT","family":"foo","share_type":"GLOBAL","entries":{entries}}}"#));
    assert_eq!(parse(&entries("{}")), BodyError::Member("entries"));
    assert_eq!(parse(&entries("[{}]")), BodyError::Member("key"));
    assert_eq!(parse(&entries("[5]")), BodyError::Member("key"));
}

#[test]
fn missing_entries_and_missing_data_are_told_from_empty_ones() {
    let entries = |entries: &str| {
        let text = format!(
            r#"{{"type":"dbstate","eid":"02:00:00:00:00:01","dbstate":{{"verb":"delete","family":"foo","share_type":"global"{entries}}}}}"#
        );
        match Body::parse(text.as_bytes()).expect("well-formed").content {
            Content::State(state) => state.entries,
            Content::Refresh => panic!("no refresh"),
        }
    };
    assert_eq!(entries(""), None);
    assert_eq!(entries(r#","entries":null"#), None);
    assert_eq!(entries(r#","entries":[]"#), Some(vec![]));
    assert_eq!(entries(r#","entries":[{"key":"k"}]"#), Some(vec![Entry { key: "k".into(), data: None }]));
    assert_eq!(entries(r#","entries":[{"key":"k","data":5}]"#), Some(vec![Entry { key: "k".into(), data: None }]));
}

#[test]
fn a_full_key_is_told_from_a_bare_one_by_its_family() {
    let key = |text: &str| Entry { key: text.into(), data: None };
    assert_eq!(key("/foo/a/b").key_in("foo"), EntryKey::Full("a/b"));
    assert_eq!(key("a/b").key_in("foo"), EntryKey::Bare("a/b"));
    assert_eq!(key("/foobar/a").key_in("foo"), EntryKey::Bare("/foobar/a"));
    assert_eq!(key("/foo/bar/a").key_in("foo/bar"), EntryKey::Full("a"));
}

proptest! {
    #[test]
    fn what_is_printed_is_read_again(key in "\\PC{1,40}", data in any::<String>()) {
        let body = state(Verb::Put, "foo", Mode::Global, &[(&key, &data)]);
        let printed = body.print();
        let empty = state(Verb::Put, "foo", Mode::Global, &[]).print();
        prop_assert_eq!(printed.len() + 1, empty.len() + entry_bytes(&key, &data));
        prop_assert_eq!(Body::parse(&printed), Ok(body));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Body::parse(&bytes);
    }
}
