//! What comes in, and how it is answered.

use std::collections::BTreeMap;

use super::*;
use crate::core::family::Mark;
use crate::core::record::{Class, Stored};
use crate::core::storage::{Cursor, CursorKey, LocalFloor, Quarantined, RunStart, Span, Visit};

#[test]
fn an_update_is_durable_and_answered_with_an_etag() {
    let mut rig = Rig::settled();
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"},{"key":"a/b","data":""}]"#));
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Expires")), (200, Some("3600")));
    assert!(answer.headers.get("SIP-ETag").is_some_and(|etag| !etag.is_empty()));
    assert!(answer.headers.get("Via").is_some_and(|via| via.contains(";rport=5060;received=10.1.0.1;branch=")));
    assert!(answer.headers.get("To").is_some_and(|to| to.contains(";tag=")));
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
    assert_eq!(rig.get("/foo/a/b").as_deref(), Some(""));
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"k1","data":""}]"#)), 200);
    assert_eq!(rig.get("/foo/k1"), None);
    assert!(rig.out.is_empty(), "what was never pushed is not echoed: {:?}", rig.out);
}

#[test]
fn a_unique_update_is_the_asterisks_own_copy() {
    let mut rig = Rig::settled();
    assert_eq!(rig.publish(&state("put", "uni", "unique", r#"[{"key":"k1","data":"u1"}]"#)), 200);
    let own = RecordKey::owned(AST, Path::new("/uni/k1").expect("a path"));
    assert_eq!(rig.record(&own).as_deref(), Some("u1"));
    assert_eq!(rig.publish(&state("delete", "uni", "unique", r#"[{"key":"k1","data":""}]"#)), 200);
    assert_eq!(rig.record(&own), None);
}

#[test]
fn nothing_is_answered_200_before_it_is_durable() {
    let mut rig = Rig::settled();
    rig.fails = true;
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#));
    assert_eq!(rig.receive(&request), vec![], "the disk is full: the sender waits");
    assert_eq!(rig.receive(&request), vec![], "and repeats");
    rig.fails = false;
    rig.now += 1_000;
    let answers = rig.event(Event::Timer);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200]);
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
}

/// A store that reads nothing.
struct Unreadable;

impl Unreadable {
    fn error<T>() -> Result<T, StoreError> {
        Err(StoreError::Io("a bad sector".into()))
    }
}

impl Read for Unreadable {
    fn record(&self, _: &RecordKey) -> Result<Option<Stored>, StoreError> {
        Self::error()
    }

    fn scan(&self, _: Span<'_>, _: Visit<'_, (RecordKey, Stored)>) -> Result<(), StoreError> {
        Self::error()
    }

    fn feed(&self, _: &str, _: u64, _: Visit<'_, (u64, Class, RecordKey)>) -> Result<(), StoreError> {
        Self::error()
    }

    fn floors(&self) -> Result<BTreeMap<Family, LocalFloor>, StoreError> {
        Self::error()
    }

    fn quarantine(&self, _: Visit<'_, (RecordKey, Quarantined)>) -> Result<(), StoreError> {
        Self::error()
    }

    fn quarantined(&self, _: &RecordKey) -> Result<Option<Quarantined>, StoreError> {
        Self::error()
    }

    fn head(&self) -> Result<u64, StoreError> {
        Self::error()
    }

    fn marks(&self) -> Result<BTreeMap<Family, Mark>, StoreError> {
        Self::error()
    }

    fn runs(&self) -> Result<Vec<RunStart>, StoreError> {
        Self::error()
    }

    fn cursor(&self, _: &CursorKey) -> Result<Option<Cursor>, StoreError> {
        Self::error()
    }

    fn cursors(&self) -> Result<BTreeMap<CursorKey, Cursor>, StoreError> {
        Self::error()
    }

    fn adapter(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Self::error()
    }
}

#[test]
fn what_came_while_the_store_could_not_be_read_is_taken_when_it_is_repeated() {
    let mut rig = Rig::settled();
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#));
    let from = Remote { transport: Transport::Udp, address: rig.from.parse().expect("an address"), connection: 0 };
    let received = Event::Received { from, bytes: request.print() };
    let sight = Sight { read: &Unreadable, ledger: rig.replica.ledger(), ready: true };
    assert!(rig.adapter.handle(received, rig.now, sight).is_empty());
    assert!(rig.status().fault.is_some_and(|fault| fault.contains("a bad sector")));
    rig.now += 1_000;
    assert_eq!(rig.send(&request).status, 200);
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
}

#[test]
fn a_retransmission_gets_the_same_answer_and_is_no_new_write() {
    let mut rig = Rig::settled();
    let request = rig.request(&state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#));
    let answer = rig.send(&request);
    rig.write_here("/foo/k1", "newer");
    assert_eq!(rig.receive(&request), vec![answer.clone()]);
    // After a restart of the node nobody remembers the transaction, but the link is on disk.
    rig.adapter = Adapter::new(NODE, vec![settings()], [2; 32]);
    let again = rig.send(&request);
    assert_eq!((again.status, again.headers.get("SIP-ETag")), (200, answer.headers.get("SIP-ETag")));
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("newer"));
}

#[test]
fn a_stale_etag_gets_412_and_the_same_body_after_it_is_no_new_write() {
    let mut rig = Rig::settled();
    let before = rig.etag.clone();
    assert_eq!(rig.put("k1", "v1"), 200);
    rig.write_here("/foo/k1", "newer");
    // The sender never got the 200, and goes on with what it has.
    rig.etag = before.or(Some("unknown".into()));
    assert_eq!(rig.put("k1", "v1"), 412);
    (rig.etag, rig.call_id) = (None, "call-2".into());
    assert_eq!(rig.put("k1", "v1"), 200);
    assert_eq!(rig.get("/foo/k1").as_deref(), Some("newer"));
    assert_eq!(rig.status().counts.restarts, 0, "the new Call-ID was our doing");
}

#[test]
fn a_publication_can_be_refreshed_and_removed() {
    let mut rig = Rig::settled();
    assert_eq!(rig.publish(""), 400, "neither an ETag nor a body");
    assert_eq!(rig.put("k1", "v1"), 200);
    assert_eq!(rig.publish(""), 200);
    let mut request = rig.request("");
    request.headers.remove("Expires");
    request.headers.push("Expires", "0");
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Expires")), (200, Some("0")));
    assert_eq!(rig.put("k1", "v2"), 412, "it is over");
}

#[test]
fn an_expired_publication_gets_412_and_a_late_refresh_does_not() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("k1", "v1"), 200);
    rig.now += 3_600_000 + 10_000;
    assert_eq!(rig.publish(""), 200, "the patch refreshes at the very second");
    rig.now += 3_600_000 + 40_000;
    assert_eq!(rig.publish(""), 412);
}

#[test]
fn each_refusal_has_its_status_and_the_header_that_goes_with_it() {
    let good = state("put", "foo", "global", r#"[{"key":"k","data":"v"}]"#);
    let mut rig = Rig::settled();
    let mut changed = |change: &dyn Fn(&mut Request)| {
        let mut request = rig.request(&good);
        change(&mut request);
        rig.send(&request)
    };
    let header = |name: &'static str, value: &'static str| {
        move |request: &mut Request| {
            request.headers.remove(name);
            request.headers.push(name, value);
        }
    };
    let event = changed(&header("Event", "presence"));
    assert_eq!((event.status, event.headers.get("Allow-Events")), (489, Some("asterisk-db")));
    assert_eq!(changed(&|request| request.headers.remove("Event")).status, 489);
    let media = changed(&header("Content-Type", "text/plain"));
    assert_eq!((media.status, media.headers.get("Accept")), (415, Some("application/json")));
    assert_eq!(changed(&|request| request.headers.remove("Content-Type")).status, 415);
    let brief = changed(&header("Expires", "3"));
    assert_eq!((brief.status, brief.headers.get("Min-Expires")), (423, Some("10")));
    let extension = changed(&header("Require", "100rel"));
    assert_eq!((extension.status, extension.headers.get("Unsupported")), (420, Some("100rel")));
    assert_eq!(changed(&|request| request.body = vec![b' '; 40_000]).status, 413);
    assert_eq!(changed(&|request| request.body = b"{}".to_vec()).status, 400);
    assert_eq!(changed(&|request| request.uri = "sip:nobody@10.0.0.1".into()).status, 404);
    assert_eq!(changed(&|request| request.uri = "sip:10.0.0.1".into()).status, 404);
    assert_eq!(changed(&|request| request.uri = "tel:+123".into()).status, 416);
    let other = good.replace("02:00:00:00:00:01", "02:00:00:00:00:02");
    assert_eq!(changed(&|request| request.body = other.clone().into_bytes()).status, 403);
    let method = changed(&|request| {
        request.method = "INVITE".into();
        header("CSeq", "7 INVITE")(request);
    });
    assert_eq!((method.status, method.headers.get("Allow")), (405, Some("PUBLISH, OPTIONS")));
    assert_eq!(changed(&header("Content-Type", "Application/JSON;charset=utf-8")).status, 200);
    assert_eq!(rig.get("/foo/k").as_deref(), Some("v"), "only the last one was taken");
    assert!(rig.status().refused.values().sum::<u64>() >= 8, "{:?}", rig.status().refused);
}

#[test]
fn options_is_answered_200_and_ack_not_at_all() {
    let mut rig = Rig::new();
    let mut request = rig.request("");
    request.method = "OPTIONS".into();
    request.headers.remove("CSeq");
    request.headers.push("CSeq", "1 OPTIONS");
    let answer = rig.send(&request);
    assert_eq!((answer.status, answer.headers.get("Allow")), (200, Some("PUBLISH, OPTIONS")));
    request.method = "ACK".into();
    request.headers.remove("CSeq");
    request.headers.push("CSeq", "1 ACK");
    assert_eq!(rig.receive(&request), vec![]);
}

#[test]
fn strangers_get_no_answer_and_a_line_for_fail2ban() {
    let mut rig = Rig::new();
    rig.from = "192.0.2.7:5060";
    let mut request = rig.request(REFRESH);
    request.headers.remove("From");
    request.headers.push("From", "\"x' failed for '10.1.0.1' (callid: y) - \" <sip:a@b>;tag=1");
    assert_eq!(rig.receive(&request), vec![]);
    assert_eq!(rig.refused, [RefusedReason::Unlisted]);
    assert_eq!(
        rig.lines,
        [
            "Request 'PUBLISH' from '\"x? failed for ?10.1.0.1? ?callid: y? - \" <sip:a@b>;tag=1' failed for '192.0.2.7:5060' (callid: call-1) - No matching endpoint found"
        ]
    );
    let from = Remote { transport: Transport::Udp, address: "192.0.2.7:1".parse().expect("an address"), connection: 0 };
    assert_eq!(rig.event(Event::Received { from, bytes: vec![0xff; 100] }), vec![]);
}

#[test]
fn entries_that_cannot_be_kept_are_counted_and_the_others_are_kept() {
    let mut rig = Rig::settled();
    let entries = r#"[{"key":"good","data":"v"},{"key":"a//b","data":"v"},{"key":"nul","data":"a\u0000"},{"key":"none"},{"key":"","data":"v"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", entries)), 200);
    assert_eq!(rig.get("/foo/good").as_deref(), Some("v"));
    assert_eq!(rig.status().refused.get(&RefusedReason::Entry), Some(&4));
    assert_eq!(rig.publish(&state("put", "bar", "global", r#"[{"key":"k","data":"v"}]"#)), 200, "as the patch does");
    assert_eq!(rig.publish(&state("put", "foo", "unique", r#"[{"key":"k","data":"v"}]"#)), 200);
    assert_eq!(rig.get("/foo/k"), None);
    let refused = rig.status().refused;
    assert_eq!((refused[&RefusedReason::NotShared], refused[&RefusedReason::OtherMode]), (1, 1));
}

#[test]
fn a_delete_of_a_whole_family_is_refused_unless_it_is_allowed() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    assert_eq!(rig.put("b", "2"), 200);
    assert_eq!(rig.publish(&state("delete", "foo", "global", "null")), 403);
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"b"}]"#)), 200, "it names its key");
    assert_eq!((rig.get("/foo/a").as_deref(), rig.get("/foo/b")), (Some("1"), None));
    let mut allowing = Rig::with(AttachmentSettings { allow_family_delete: true, ..settings() });
    allowing.settle();
    assert_eq!(allowing.put("a", "1"), 200);
    assert_eq!(allowing.publish(&state("delete", "foo", "global", "null")), 200);
    assert_eq!(allowing.get("/foo/a"), None);
}

#[test]
fn an_asterisk_with_a_password_is_challenged_and_let_in() {
    let credentials = Credentials { username: "ast".into(), password: "secret".into() };
    for algorithm in [Algorithm::Md5, Algorithm::Sha256] {
        let mut rig = Rig::with(AttachmentSettings { credentials: Some(credentials.clone()), algorithm, ..settings() });
        let body = state("put", "foo", "global", r#"[{"key":"k1","data":"v1"}]"#);
        let mut request = rig.request(&body);
        let answer = rig.send(&request);
        assert_eq!(answer.status, 401);
        let challenge =
            Challenge::parse(answer.headers.get("WWW-Authenticate").expect("a challenge")).expect("well-formed");
        assert_eq!(challenge.algorithm, algorithm);
        request = rig.request(&body);
        let answer = challenge.answer(&credentials, "PUBLISH", &request.uri, 1, "c");
        let wrong = Authorization { response: "0".repeat(32), ..answer.clone() };
        let mut forged = rig.request(&body);
        forged.headers.push("Authorization", wrong.print());
        assert_eq!(rig.send(&forged).status, 401);
        assert!(rig.lines.last().is_some_and(|line| line.ends_with("- Failed to authenticate")));
        request.headers.push("Authorization", answer.print());
        assert_eq!(rig.send(&request).status, 200);
        assert_eq!(rig.get("/foo/k1").as_deref(), Some("v1"));
        let mut replayed = rig.request(&body);
        replayed.headers.push("Authorization", answer.print());
        let again = rig.send(&replayed);
        assert_eq!(again.status, 401);
        assert!(again.headers.get("WWW-Authenticate").is_some_and(|challenge| challenge.contains("stale=true")));
    }
}

#[test]
fn quotas_refuse_what_is_new_and_delay_what_is_fast() {
    let quotas = Quotas { updates_per_s: 2, keys_max: 2, tombstones_max: 1 };
    let mut rig = Rig::with(AttachmentSettings { quotas, ..settings() });
    rig.settle();
    assert_eq!((rig.put("a", "1"), rig.put("b", "1")), (200, 200));
    let third = rig.request(&state("put", "foo", "global", r#"[{"key":"a","data":"2"}]"#));
    assert_eq!(rig.receive(&third), vec![], "the third within a second waits");
    assert_eq!(rig.get("/foo/a").as_deref(), Some("2"), "though it is done");
    rig.now += 499;
    assert_eq!(rig.event(Event::Timer), vec![]);
    rig.now += 1;
    let answers = rig.event(Event::Timer);
    assert_eq!(answers.len(), 1);
    rig.etag = answers[0].headers.get("SIP-ETag").map(str::to_owned);
    rig.now += 5_000;
    assert_eq!(rig.put("c", "1"), 403, "a third key");
    assert_eq!(rig.put("b", "2"), 200, "not a new one");
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"a","data":""}]"#)), 200);
    assert_eq!(rig.publish(&state("delete", "foo", "global", r#"[{"key":"b","data":""}]"#)), 403);
    assert_eq!(rig.get("/foo/b").as_deref(), Some("2"));
    assert_eq!(rig.status().refused.get(&RefusedReason::Quota), Some(&2));
    assert_eq!(rig.status().counts.delayed, 1);
}
