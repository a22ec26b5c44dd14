//! What must hold of any bytes: shared by the fuzz targets and by `tests/fuzzed.rs`, which runs the corpus.

use kinfolk::asterisk::body::{Body, Content};
use kinfolk::asterisk::digest::{Authorization, Challenge};
use kinfolk::asterisk::framing::Framer;
use kinfolk::asterisk::header;
use kinfolk::asterisk::message::{Headers, Message};
use kinfolk::asterisk::settings::Credentials;
use kinfolk::asterisk::transaction::ServerKey;

/// As a datagram and as a stream: what is printed is read as the same, and a stream gives the same messages
/// however it is cut into pieces.
pub fn message(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        let headers = message.headers();
        for value in headers.iter().map(|(_, value)| value) {
            let _ = (header::via(value), header::cseq(value), header::seconds(value), header::bare(value));
            let _ = (header::name_addr(value), header::uri(value), header::unquoted(value));
        }
        let _ = ServerKey::of(headers, "PUBLISH");
        if let Message::Request(request) = &message {
            let _ = header::uri(&request.uri);
        }
        let again = Message::parse(&message.print()).expect("what is printed is a message");
        assert_eq!(without_length(message.headers()), without_length(again.headers()));
        assert_eq!(again.print(), message.print());
    }
    let whole = messages(bytes, bytes.len().max(1));
    assert_eq!(whole, messages(bytes, 1));
    assert_eq!(whole, messages(bytes, 7));
}

fn without_length(headers: &Headers) -> Headers {
    let mut headers = headers.clone();
    headers.remove("Content-Length");
    headers
}

fn messages(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut framer, mut found) = (Framer::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        framer.push(piece);
        loop {
            match framer.next_message() {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(_) => return (found, true),
            }
        }
    }
    (found, false)
}

/// As the body of a PUBLISH: what is printed is read as the same.
pub fn body(bytes: &[u8]) {
    let Ok(body) = Body::parse(bytes) else { return };
    if let Content::State(state) = &body.content {
        for entry in state.entries.iter().flatten() {
            let _ = entry.key_in(&state.family);
        }
    }
    let printed = body.print();
    assert_eq!(Body::parse(&printed).as_ref(), Ok(&body));
    assert_eq!(Body::parse(&printed).map(|again| again.print()), Ok(printed));
}

/// As the value of WWW-Authenticate and Authorization: what is printed is read as the same, and an answer to any
/// challenge is one that its maker would take.
pub fn digest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(given) = Authorization::parse(text) {
        assert_eq!(Authorization::parse(&given.print()), Ok(given.clone()));
        let _ = given.expected("s3cret", "PUBLISH");
    }
    if let Ok(challenge) = Challenge::parse(text) {
        assert_eq!(Challenge::parse(&challenge.print()), Ok(challenge.clone()));
        let credentials = Credentials { username: "ast1".into(), password: "s3cret".into() };
        let answer = challenge.answer(&credentials, "PUBLISH", "sip:ast1@127.0.0.1", 1, "c");
        let read = Authorization::parse(&answer.print()).expect("an answer of ours is one");
        assert_eq!(read.response, read.expected("s3cret", "PUBLISH"));
    }
}
