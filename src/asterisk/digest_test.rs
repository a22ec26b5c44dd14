//! Digest: the examples of the RFCs, what a real Asterisk sent, and who is not let in.

use proptest::prelude::*;

use super::digest::{Algorithm, Authorization, Challenge, DigestError, Guard, USED_MAX, Verdict};
use super::settings::Credentials;

fn credentials(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into() }
}

/// RFC 2617 section 3.5.
#[test]
fn the_example_of_rfc_2617_comes_out() {
    let challenge = Challenge::parse(
        "Digest realm=\"testrealm@host.com\", qop=\"auth,auth-int\", nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", \
         opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"",
    );
    let challenge = challenge.expect("well-formed");
    let answer = challenge.answer(&credentials("Mufasa", "Circle Of Life"), "GET", "/dir/index.html", 1, "0a4f113b");
    assert_eq!(answer.response, "6629fae49393a05397450978507c4ef1");
}

/// RFC 7616 section 3.9.1, with SHA-256.
#[test]
fn the_example_of_rfc_7616_comes_out() {
    let challenge = Challenge::parse(
        "Digest realm=\"http-auth@example.org\", qop=\"auth\", algorithm=SHA-256, \
         nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"",
    );
    let challenge = challenge.expect("well-formed");
    let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
    let answer = challenge.answer(&credentials("Mufasa", "Circle of Life"), "GET", "/dir/index.html", 1, cnonce);
    assert_eq!(answer.response, "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1");
    assert_eq!(Authorization::parse(&answer.print()), Ok(answer));
}

/// As captured: `algorithm` in lower case and without quotes, the order of parameters its own.
#[test]
fn a_challenge_and_an_answer_of_a_real_asterisk_are_read() {
    let challenge = Challenge::parse(
        "Digest  realm=\"asterisk\",nonce=\"1795415473/4c12ad3db291a53564bbfd8e01539d50\",\
         opaque=\"6e91d3d361b0f71b\",algorithm=md5,qop=\"auth\"",
    );
    let challenge = challenge.expect("well-formed");
    assert_eq!((challenge.algorithm, challenge.qop_auth, challenge.stale), (Algorithm::Md5, true, false));
    let answer = Authorization::parse(
        "Digest username=\"ast1\", realm=\"asterisk\", nonce=\"1795415473/4c12ad3db291a53564bbfd8e01539d50\", \
         uri=\"sip:ast1@127.0.0.12:5060\", response=\"bd29ea58b66fc4e5b82c477762cdc983\", algorithm=md5, \
         cnonce=\"ef1a29d8-b63a-40c9-a0a8-5462dff9f995\", opaque=\"6e91d3d361b0f71b\", qop=auth, nc=00000001",
    );
    let answer = answer.expect("well-formed");
    assert_eq!(answer.qop, Some(("ef1a29d8-b63a-40c9-a0a8-5462dff9f995".into(), 1)));
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let parse = |text: &str| Authorization::parse(text).expect_err("refused");
    assert_eq!(parse("Basic dXNlcjpwYXNz"), DigestError::Scheme);
    assert_eq!(parse("Digest"), DigestError::Scheme);
    assert_eq!(parse("Digest username=\"a\""), DigestError::Parameter);
    let parts = "Digest username=\"a\", realm=\"r\", nonce=\"n\", uri=\"u\", response=";
    assert_eq!(parse(&format!("{parts}\"x\"")), DigestError::Parameter, "no hash is written so");
    let whole = format!("{parts}\"{}\"", "0123456789abcdef".repeat(2));
    assert!(Authorization::parse(&whole).is_ok());
    assert_eq!(parse(&format!("{whole}, realm=\"s\"")), DigestError::Parameter, "which of the two was signed?");
    assert_eq!(parse(&format!("{whole}, algorithm=MD4")), DigestError::Algorithm);
    assert_eq!(parse(&format!("{whole}, qop=auth-int, cnonce=\"c\", nc=00000001")), DigestError::Qop);
    assert_eq!(parse(&format!("{whole}, qop=auth, cnonce=\"c\", nc=1")), DigestError::Parameter);
    assert_eq!(Challenge::parse("Digest realm=\"r\", nonce=\"n\", qop=\"auth-int\""), Err(DigestError::Qop));
}

struct Door {
    guard: Guard,
    credentials: Credentials,
}

const URI: &str = "sip:kinfolk@10.0.0.1";

impl Door {
    fn new() -> Self {
        Self { guard: Guard::new([7; 32], "kinfolk".into(), 10_000), credentials: credentials("ast", "secret") }
    }

    fn answer(&mut self, now: u64) -> Authorization {
        self.guard.challenge(Algorithm::Md5, false, now).answer(&self.credentials, "PUBLISH", URI, 1, "c")
    }

    fn check(&mut self, answer: &Authorization, now: u64) -> Verdict {
        self.guard.check(answer, &self.credentials, "PUBLISH", URI, &[Algorithm::Md5], now)
    }
}

#[test]
fn the_right_password_is_let_in_once_for_each_count() {
    let mut door = Door::new();
    let answer = door.answer(0);
    assert_eq!(door.check(&answer, 1), Verdict::Good);
    assert_eq!(door.check(&answer, 2), Verdict::Stale, "a replay");
    let challenge = Challenge {
        realm: answer.realm.clone(),
        nonce: answer.nonce.clone(),
        opaque: None,
        algorithm: Algorithm::Md5,
        qop_auth: true,
        stale: false,
    };
    let again = challenge.answer(&door.credentials, "PUBLISH", URI, 2, "d");
    assert_eq!(door.check(&again, 3), Verdict::Good, "the next count");
}

#[test]
fn wrong_answers_are_not_let_in() {
    let mut door = Door::new();
    let good = door.answer(0);
    let wrong = [
        Authorization { username: "other".into(), ..good.clone() },
        Authorization { realm: "asterisk".into(), ..good.clone() },
        Authorization { uri: "sip:other@10.0.0.1".into(), ..good.clone() },
        Authorization { response: "0".repeat(32), ..good.clone() },
        Authorization { response: String::new(), ..good.clone() },
        Authorization { algorithm: Algorithm::Sha256, ..good.clone() },
        Authorization { qop: Some(("c".into(), 2)), ..good.clone() },
    ];
    for wrong in wrong {
        assert_eq!(door.check(&wrong, 1), Verdict::Wrong, "{wrong:?}");
    }
    assert_eq!(door.check(&good, 1), Verdict::Good, "refusals use nothing up");
}

#[test]
fn a_nonce_that_is_old_or_of_another_process_is_stale() {
    let mut door = Door::new();
    let answer = door.answer(0);
    assert_eq!(door.check(&answer, 10_001), Verdict::Stale);
    let mut other = Door { guard: Guard::new([8; 32], "kinfolk".into(), 10_000), ..Door::new() };
    assert_eq!(other.check(&answer, 1), Verdict::Stale);
}

#[test]
fn what_is_remembered_of_nonces_is_bounded() {
    let mut door = Door::new();
    let first = door.answer(0);
    assert_eq!(door.check(&first, 0), Verdict::Good);
    for _ in 0..USED_MAX {
        let answer = door.answer(0);
        assert_eq!(door.check(&answer, 0), Verdict::Good);
    }
    assert_eq!(door.check(&first, 0), Verdict::Stale, "forgotten, and so not accepted again");
}

proptest! {
    #[test]
    fn no_header_makes_the_parser_panic(text in "(Digest )?[ -~]{0,200}") {
        let _ = Authorization::parse(&text);
        if let Ok(challenge) = Challenge::parse(&text) {
            prop_assert_eq!(Challenge::parse(&challenge.print()), Ok(challenge));
        }
    }
}
