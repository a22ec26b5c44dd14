//! What goes out, and when.

use super::*;

#[test]
fn the_first_publish_says_nothing_and_the_second_asks() {
    let mut rig = Rig::new();
    rig.write_here("/foo/k", "v");
    assert_eq!(rig.out.len(), 1);
    assert_eq!(rig.out[0].headers.get("SIP-If-Match"), None);
    assert_eq!(rig.last_body(), (Verb::Put, "foo".into(), Mode::Global, NODE, vec![]));
    let first = rig.out[0].clone();
    rig.answer(&first, 200, &[("SIP-ETag", "5"), ("Expires", "3600")]);
    assert_eq!(rig.out.len(), 2);
    assert_eq!(rig.out[1].headers.get("SIP-If-Match"), Some("5"));
    assert_eq!(rig.out[1].body, format!("{{\"type\":\"refresh\",\"eid\":\"{NODE}\"}}").into_bytes());
    let second = rig.out[1].clone();
    rig.answer(&second, 200, &[("SIP-ETag", "6"), ("Expires", "3600")]);
    assert_eq!(rig.out.len(), 2, "its content comes first, if it has any");
    rig.now += 5_000;
    rig.event(Event::Timer);
    assert_eq!(rig.last_body(), (Verb::Put, "foo".into(), Mode::Global, NODE, vec![("k".into(), "v".into())]));
}

#[test]
fn changes_go_out_several_in_a_message_of_one_kind_and_never_too_large() {
    let mut rig = Rig::settled();
    for key in 0..100 {
        let path = Path::new(&format!("/foo/key-{key:03}")).expect("a path");
        rig.commit(Input::Put { path, value: Value::new(&"x".repeat(60)).expect("a value") }).expect("commits");
    }
    rig.commit(Input::Delete { path: Path::new("/foo/key-050").expect("a path") }).expect("commits");
    rig.event(Event::Woken);
    let messages = rig.accept_all();
    let bodies: Vec<Body> = rig.out.iter().map(|request| Body::parse(&request.body).expect("a body")).collect();
    let entries = |body: &Body| match &body.content {
        Content::State(state) => (state.verb, state.entries.clone().expect("never null")),
        Content::Refresh => panic!("no question is due"),
    };
    let told: usize = bodies.iter().map(|body| entries(body).1.len()).sum();
    assert_eq!((told, messages), (100, 4), "99 puts in three messages and a delete");
    let delete = bodies.iter().map(entries).find(|(verb, _)| *verb == Verb::Delete).expect("a delete");
    assert_eq!((delete.1[0].key.as_str(), delete.1[0].data.as_deref()), ("key-050", Some("")));
    assert_eq!(rig.status().lag, 0);
}

#[test]
fn what_the_patch_cannot_take_is_left_out_and_counted() {
    let mut rig = Rig::settled();
    rig.write_here(&format!("/foo/{}", "k".repeat(251)), "v");
    rig.write_here("/foo/large", &"v".repeat(4_000));
    assert_eq!(rig.status().counts.undeliverable, 2);
    assert!(rig.out.is_empty());
    rig.write_here(&format!("/foo/{}", "k".repeat(250)), "v");
    assert_eq!(rig.out.len(), 1, "253 bytes of family and key fit");
    rig.accept_all();
    rig.arrives(OTHER, &format!("/uni/{}", "k".repeat(233)), Some("v"));
    assert_eq!(rig.status().counts.undeliverable, 3, "under an EID it is 235");
}

#[test]
fn copies_of_others_go_under_their_eid_and_are_deleted_as_what_they_are_there() {
    let mut rig = Rig::settled();
    rig.arrives(OTHER, "/uni/k", Some("v"));
    assert_eq!(rig.last_body(), (Verb::Put, "uni".into(), Mode::Unique, OTHER, vec![("k".into(), "v".into())]));
    rig.accept_all();
    rig.arrives(OTHER, "/uni/k", None);
    // A unique delete would delete the Asterisk's own key.
    assert_eq!(
        rig.last_body(),
        (Verb::Delete, format!("{OTHER}/uni"), Mode::Global, NODE, vec![("k".into(), String::new())])
    );
}

#[test]
fn a_restored_copy_of_its_own_goes_to_its_plain_path_under_our_eid() {
    let mut rig = Rig::settled();
    rig.arrives(AST, "/uni/k", Some("v"));
    assert_eq!(rig.last_body(), (Verb::Put, "uni".into(), Mode::Global, NODE, vec![("k".into(), "v".into())]));
}

#[test]
fn one_request_is_under_way_and_it_is_repeated_until_it_is_given_up() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "1");
    rig.write_here("/foo/b", "2");
    assert_eq!(rig.out.len(), 1);
    let mut repeated = 0;
    while rig.out.len() > repeated + 1 || rig.status().counts.failed == 0 {
        let due = rig.adapter.next_timer().expect("a timer");
        assert!(due > rig.now, "it waits");
        rig.now = due;
        rig.event(Event::Timer);
        repeated = rig.out.len() - 1;
    }
    // RFC 3261 section 17.1.2.2: 0.5, 1, 2, 4, 4 … until 32 s.
    assert_eq!(repeated, 10);
    assert!(rig.out.iter().all(|request| *request == rig.out[0]), "the same bytes");
    assert!(!rig.status().reachable);
    assert_eq!(rig.get("/foo/b").as_deref(), Some("2"));
}

#[test]
fn a_push_that_failed_is_rendered_afresh() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "old");
    let first = rig.out.remove(0);
    rig.write_here("/foo/a", "new");
    rig.answer(&first, 503, &[]);
    assert_eq!(rig.status().fault.as_deref(), Some("503 Service Unavailable"));
    rig.now += 500;
    rig.event(Event::Timer);
    // It is asked first what it could not tell meanwhile; then the push follows.
    rig.accept_all();
    rig.now += 5_000;
    rig.event(Event::Timer);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "new".to_owned())]);
}

#[test]
fn after_412_everything_is_sent_again_deletes_included() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "1");
    rig.accept_all();
    rig.write_here("/foo/b", "2");
    rig.accept_all();
    rig.delete_here("/foo/b");
    let last = rig.out.last().expect("sent").clone();
    rig.out.clear();
    rig.answer(&last, 412, &[]);
    assert_eq!(rig.out[0].headers.get("SIP-If-Match"), None, "a fresh publication");
    assert_eq!(rig.last_body().4, []);
    assert_ne!(rig.out[0].headers.get("Call-ID"), last.headers.get("Call-ID"));
    rig.accept_all();
    rig.out.clear();
    rig.now += 5_000;
    rig.event(Event::Timer);
    rig.accept_all();
    let told: Vec<_> = rig.out.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    assert!(
        told.iter().any(|body| body.contains(r#""verb":"put""#) && body.contains(r#"{"key":"a","data":"1"}"#)),
        "{told:?}"
    );
    assert!(
        told.iter().any(|body| body.contains(r#""verb":"delete""#) && body.contains(r#"{"key":"b","data":""}"#)),
        "{told:?}"
    );
}

#[test]
fn a_refresh_request_is_answered_with_everything() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    assert_eq!(rig.publish(REFRESH), 200);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn an_asterisk_under_a_new_call_id_was_restarted_and_its_old_content_does_not_win() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "old"), 200);
    rig.write_here("/foo/a", "new");
    rig.accept_all();
    (rig.etag, rig.call_id) = (None, "call-9".into());
    assert_eq!(rig.publish(REFRESH), 200);
    assert_eq!(rig.status().counts.restarts, 1);
    let content = r#"[{"key":"/foo/a","data":"old"},{"key":"/foo/fresh","data":"v"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("new"));
    assert_eq!(rig.get("/foo/fresh").as_deref(), Some("v"), "what nobody has is taken");
    rig.settle();
    assert_eq!(rig.status().lag, 0);
}

#[test]
fn an_answer_to_a_question_brings_back_what_could_not_be_told() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    // It is asked once a minute, and had nothing left to send.
    rig.now += 70_000;
    rig.event(Event::Timer);
    assert_eq!(rig.out.len(), 1, "the question");
    rig.accept_all();
    let content = r#"[{"key":"/foo/a","data":"lost update"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("lost update"));
}

#[test]
fn an_answer_that_a_push_has_overtaken_is_ignored() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    rig.now += 70_000;
    rig.event(Event::Timer);
    rig.accept_all();
    rig.write_here("/foo/a", "pushed");
    rig.accept_all();
    let content = r#"[{"key":"/foo/a","data":"1"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("pushed"));
}

/// What the Asterisk had queued before it took the push comes in after it: many updates, and none of them is
/// what it holds.
#[test]
fn an_answer_that_tells_of_the_last_push_is_not_new_after_any_number_of_updates() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "before"), 200);
    rig.write_here("/foo/a", "pushed");
    rig.accept_all();
    rig.write_here("/foo/busy", "not answered yet");
    for value in ["1", "2", "3", "4", "5", "6"] {
        assert_eq!(rig.put("a", value), 200);
    }
    // The node is restarted before it can tell the winner, and asks.
    rig.adapter = Adapter::new(NODE, vec![settings()], [2; 32]);
    rig.out.clear();
    rig.event(Event::Woken);
    rig.accept_all();
    let content = r#"[{"key":"/foo/a","data":"pushed"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("6"));
    rig.settle();
    assert_eq!(rig.status().lag, 0, "the winner was told");
}

/// An Asterisk that cannot be reached cannot tell either: it drops the update, and the push was not taken.
#[test]
fn an_update_that_was_dropped_while_a_push_was_not_taken_is_brought_back() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "1"), 200);
    rig.write_here("/foo/a", "pushed");
    rig.gives_up_and_asks();
    let content = r#"[{"key":"/foo/a","data":"lost update"}]"#;
    assert_eq!(rig.publish(&state("put", "foo", "global", content)), 200);
    assert_eq!(rig.get("/foo/a").as_deref(), Some("lost update"));
    rig.settle();
    assert_eq!(rig.status().lag, 0);
}

#[test]
fn an_answer_that_tells_of_a_push_whose_answer_was_lost_is_not_new_after_any_number_of_updates() {
    let mut rig = Rig::settled();
    assert_eq!(rig.put("a", "before"), 200);
    rig.write_here("/foo/a", "accepted");
    rig.accept_all();
    rig.write_here("/foo/a", "pushed");
    for value in ["1", "2", "3", "4", "5", "6"] {
        assert_eq!(rig.put("a", value), 200);
    }
    rig.gives_up_and_asks();
    for value in ["pushed", "accepted"] {
        let content = format!(r#"[{{"key":"/foo/a","data":"{value}"}}]"#);
        assert_eq!(rig.publish(&state("put", "foo", "global", &content)), 200);
        assert_eq!(rig.get("/foo/a").as_deref(), Some("6"));
    }
}

/// What was agreed on before the push says nothing any more: the Asterisk may have taken the push, or may have written.
#[test]
fn after_a_push_that_was_not_accepted_the_winner_is_told_although_it_was_agreed_on_before() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "1");
    rig.accept_all();
    rig.delete_here("/foo/a");
    rig.write_here("/foo/a", "1");
    rig.gives_up_and_asks();
    rig.out.clear();
    rig.now += 5_000;
    rig.event(Event::Timer);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn an_update_that_crossed_a_push_is_followed_by_a_push_of_the_winner() {
    let mut rig = Rig::settled();
    rig.write_here("/foo/a", "pushed");
    let push = rig.out.remove(0);
    assert_eq!(rig.put("a", "crossed"), 200);
    rig.answer(&push, 200, &[("SIP-ETag", "9"), ("Expires", "3600")]);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "crossed".to_owned())], "it may hold either");
    rig.accept_all();
    rig.out.clear();
    assert_eq!(rig.put("a", "next"), 200);
    assert_eq!(rig.last_body().4, [("a".to_owned(), "next".to_owned())], "something was sent since its last update");
    rig.accept_all();
    rig.out.clear();
}

#[test]
fn our_publish_is_authenticated_and_a_nonce_is_used_again() {
    let credentials = Credentials { username: "ast".into(), password: "secret".into() };
    let mut rig = Rig::with(AttachmentSettings { credentials: Some(credentials), ..settings() });
    rig.event(Event::Woken);
    let first = rig.out[0].clone();
    rig.answer(
        &first,
        401,
        &[("WWW-Authenticate", "Digest  realm=\"asterisk\",nonce=\"n1\",opaque=\"o\",algorithm=md5,qop=\"auth\"")],
    );
    let answer =
        Authorization::parse(rig.out[1].headers.get("Authorization").expect("credentials")).expect("well-formed");
    assert_eq!(answer.response, answer.expected("secret", "PUBLISH"));
    assert_eq!(rig.out[1].body, first.body);
    let second = rig.out[1].clone();
    rig.answer(&second, 200, &[("SIP-ETag", "1"), ("Expires", "3600")]);
    let next =
        Authorization::parse(rig.out[2].headers.get("Authorization").expect("credentials")).expect("well-formed");
    assert_eq!((next.nonce.as_str(), next.qop.map(|(_, count)| count)), ("n1", Some(2)));
    // Wrong credentials do not go round in circles.
    let third = rig.out[2].clone();
    for _ in 0..3 {
        let last = rig.out.last().expect("sent").clone();
        rig.answer(
            &last,
            401,
            &[("WWW-Authenticate", "Digest realm=\"asterisk\", nonce=\"n2\", algorithm=MD5, qop=\"auth\"")],
        );
    }
    assert_eq!(rig.out.len(), 4, "once more and then a pause");
    assert_eq!(rig.out[3].body, third.body);
    assert!(rig.status().fault.is_some_and(|fault| fault.contains("credentials")));
}
