//! SIP text: what is read, what is refused, and the torture messages of RFC 4475 that apply.

use proptest::prelude::*;

use super::framing::Framer;
use super::header;
use super::message::{HEADER_MAX_BYTES, HEADERS_MAX, MESSAGE_MAX_BYTES, Message, MessageError, Request};

fn request(text: &str) -> Request {
    match Message::parse(text.replace('\n', "\r\n").as_bytes()) {
        Ok(Message::Request(request)) => request,
        other => panic!("no request but {other:?}"),
    }
}

fn error(text: &str) -> MessageError {
    Message::parse(text.replace('\n', "\r\n").as_bytes()).expect_err("malformed")
}

const PUBLISH: &str = "PUBLISH sip:kinfolk@10.0.0.1:5060 SIP/2.0\n\
    Via: SIP/2.0/UDP 10.1.0.1:5060;rport;branch=z9hG4bKPj1\n\
    From: <sip:ast@10.1.0.1>;tag=a\n\
    To: <sip:kinfolk@10.0.0.1>\n\
    Call-ID: c\n\
    CSeq: 7 PUBLISH\n\
    Event: asterisk-db\n\
    Content-Type: application/json\n\
    Content-Length:    44\n\n\
    {\"type\":\"refresh\",\"eid\":\"02:00:00:00:00:01\"}";

#[test]
fn a_publish_as_asterisk_sends_it_is_read_and_printed() {
    let publish = request(PUBLISH);
    assert_eq!((publish.method.as_str(), publish.uri.as_str()), ("PUBLISH", "sip:kinfolk@10.0.0.1:5060"));
    assert_eq!(publish.headers.get("event"), Some("asterisk-db"));
    assert_eq!(publish.body.len(), 44);
    assert_eq!(Message::parse(&publish.print()).map(|message| message.print()), Ok(publish.print()));
}

/// RFC 4475 section 3.1.1.1, "a short tortuous INVITE": folded lines, compact names, any case, blanks before
/// colons, quoted strings with escapes and separators, unknown headers.
#[test]
fn what_is_tortuous_but_valid_is_read() {
    let tortuous = request(
        "PUBLISH sip:vivekg@chair-dnrc.example.com;unknownparam SIP/2.0\n\
         TO :\n sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n\n\
         from   : \"J Rosenberg \\\\\\\"\"       <sip:jdrosen@example.com>\n  ;\n  tag = 98asjd8\n\
         MaX-fOrWaRdS: 0068\n\
         Call-ID: wsinv.ndaksdj@192.0.2.1\n\
         Content-Length   : 2\n\
         cseq: 0009\n  PUBLISH\n\
         Via  : SIP  /   2.0\n /UDP\n    192.0.2.2;branch=390skdjuw\n\
         s :\n\
         NewFangledHeader:   newfangled value\n continued newfangled value\n\
         UnknownHeaderWithUnusualValue: ;;,,;;,;\n\
         o: asterisk-db\n\
         v:  SIP  / 2.0  / TCP     spindle.example.com   ;\n  branch  =   z9hG4bK9ikj8  ,\n SIP  /    2.0   / UDP  192.168.255.111   ; branch=\n z9hG4bK30239\n\
         m:\"Quoted string \\\"\\\"\" <sip:jdrosen@example.com> ; newparam =\n      newvalue ;\n  secondparam ; q = 0.33\n\n\
         {}",
    );
    let headers = &tortuous.headers;
    assert_eq!(headers.get("NewFangledHeader"), Some("newfangled value continued newfangled value"));
    assert_eq!(headers.only("CSeq").and_then(header::cseq), Some((9, "PUBLISH")));
    let from = headers.only("From").and_then(header::name_addr).expect("a name");
    assert_eq!((from.uri, from.tag), ("sip:jdrosen@example.com", Some("98asjd8")));
    let to = headers.only("To").and_then(header::name_addr).expect("a name");
    assert_eq!((to.uri, to.tag), ("sip:vivekg@chair-dnrc.example.com", Some("1918181833n")));
    let via: Vec<_> = headers.all("Via").map(|value| header::via(value).expect("a Via")).collect();
    assert_eq!((via[0].transport, via[0].sent_by, via[0].branch), ("UDP", "192.0.2.2", Some("390skdjuw")));
    assert_eq!((via[1].transport, via[1].sent_by, via[1].branch), ("TCP", "spindle.example.com", Some("z9hG4bK9ikj8")));
    assert_eq!(headers.only("Event"), Some("asterisk-db"));
    assert_eq!(tortuous.body, b"{}");
}

/// Sections 3.1.1.2 and 3.1.1.3: unusual characters in tokens, escapes in the user part.
#[test]
fn the_whole_range_of_valid_characters_is_read() {
    let wide = request(
        "!interesting-Method0123456789_*+`.%indeed'~ sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-it)@example.com SIP/2.0\n\
         Call-ID: intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{\n\
         extensionHeader-!.%*+_`'~:\u{fb16}\u{fb15}\n\
         Content-Length: 0\n\n",
    );
    assert_eq!(wide.headers.get("extensionHeader-!.%*+_`'~"), Some("\u{fb16}\u{fb15}"));
    let uri = header::uri("sip:sips%3Auser%40example.com@example.net:5061;transport=tcp").expect("a URI");
    assert_eq!(
        (uri.user.as_deref(), uri.host.as_str(), uri.port),
        (Some("sips:user@example.com"), "example.net", Some(5061))
    );
    assert_eq!(header::uri("sip:ast@[2001:db8::10]:5070").map(|uri| uri.host), Ok("2001:db8::10".into()));
}

/// Section 3.1.2: what is malformed is refused, and says why.
#[test]
fn malformed_messages_are_refused() {
    let with = |header: &str| format!("PUBLISH sip:a@b SIP/2.0\n{header}\nCall-ID: c\n\n");
    assert_eq!(error(&with("Content-Length: 9999")), MessageError::CutOff { found: 0, wanted: 9_999 });
    for length in ["-999", "1e3", "", "99999999999999999999", "12, 12"] {
        assert_eq!(error(&with(&format!("Content-Length: {length}"))), MessageError::ContentLength);
    }
    assert_eq!(
        error(&with("Content-Length: 0\nl: 5")),
        MessageError::ContentLength,
        "two lengths contradict each other"
    );
    assert_eq!(error(&with("no colon here")), MessageError::Header(1));
    assert_eq!(error(&with("bad name: x")), MessageError::Header(1));
    assert_eq!(error(&with(" folded: before the first")), MessageError::Header(0));
    for start in [
        "PUBLISH sip:a@b SIP/7.0",
        "PUBLISH sip:a@b; transport=udp SIP/2.0",
        "PUBLISH  sip:a@b SIP/2.0",
        "PUBLISH <sip:a@b> SIP/2.0 ",
        "PUBLISH sip:a@b",
        "SIP/2.0 4294967301 better not break the receiver",
        "SIP/2.0 42 short",
        "",
    ] {
        assert_eq!(
            error(&format!("{start}\nCall-ID: c\n\n")),
            if start.is_empty() { error("Call-ID: c\n\n") } else { MessageError::StartLine },
            "{start}"
        );
    }
    assert_eq!(error("PUBLISH sip:a@b SIP/2.0\nCall-ID: c\n"), MessageError::NoEnd);
}

/// Sections 3.1.2.3 to 3.1.2.5 and 3.3.8: numbers that are too large, headers that stand there twice.
#[test]
fn values_out_of_range_mean_nothing() {
    assert_eq!(header::cseq("36893488147419103232 PUBLISH"), None);
    assert_eq!(header::cseq("2147483648 PUBLISH"), None);
    assert_eq!(header::seconds("10000000000000000000000000"), Some(u32::MAX));
    assert_eq!(header::seconds("-1"), None);
    let twice = request(&PUBLISH.replace("Call-ID: c\n", "Call-ID: c\nCall-ID: d\n"));
    assert_eq!(twice.headers.only("Call-ID"), None);
    assert_eq!(header::via("SIP/2.0/UDP 10.0.0.1;branch="), header::via("SIP/2.0/UDP 10.0.0.1"));
    assert_eq!(header::via("UNKNOWN 10.0.0.1"), None);
}

#[test]
fn limits_hold() {
    let long = format!("PUBLISH sip:a@b SIP/2.0\r\nX: {}\r\n\r\n", "x".repeat(HEADER_MAX_BYTES));
    assert_eq!(Message::parse(long.as_bytes()), Err(MessageError::HeaderTooLong(1)));
    let folded = format!("PUBLISH sip:a@b SIP/2.0\r\nX: y\r\n{}\r\n", " 0123456789\r\n".repeat(HEADER_MAX_BYTES / 10));
    assert_eq!(Message::parse(folded.as_bytes()), Err(MessageError::HeaderTooLong(1)));
    let many = format!("PUBLISH sip:a@b SIP/2.0\r\n{}\r\n", "X: y\r\n".repeat(HEADERS_MAX + 1));
    assert_eq!(Message::parse(many.as_bytes()), Err(MessageError::TooManyHeaders));
    assert_eq!(Message::parse(&vec![b'\n'; MESSAGE_MAX_BYTES + 1]), Err(MessageError::TooLong(MESSAGE_MAX_BYTES + 1)));
}

#[test]
fn no_header_can_be_smuggled_into_a_message_of_ours() {
    let mut publish = request(PUBLISH);
    publish.headers.push("X", "a\r\nAuthorization: b");
    let Ok(Message::Request(read)) = Message::parse(&publish.print()) else { panic!("it is read") };
    assert_eq!(read.headers.get("Authorization"), None);
}

#[test]
fn messages_are_cut_out_of_a_stream_whatever_its_pieces_are() {
    let one = request(PUBLISH).print();
    let stream = [b"\r\n\r\n".as_slice(), &one, &one, b"\r\n", &one].concat();
    for piece in [1, 2, 3, 7, 64, 10_000] {
        let (mut framer, mut found) = (Framer::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            framer.push(bytes);
            while let Some(message) = framer.next_message().expect("well-formed") {
                found.push(message);
            }
        }
        assert_eq!(found, vec![one.clone(); 3], "pieces of {piece}");
    }
}

#[test]
fn a_stream_that_cannot_be_cut_is_given_up() {
    let mut framer = Framer::default();
    framer.push(b"PUBLISH sip:a@b SIP/2.0\r\nCall-ID: c\r\n\r\n");
    assert_eq!(framer.next_message(), Err(MessageError::ContentLength), "nobody knows where it ends");
    let mut framer = Framer::default();
    framer.push(&vec![b'x'; MESSAGE_MAX_BYTES + 1]);
    assert_eq!(framer.next_message(), Err(MessageError::TooLong(MESSAGE_MAX_BYTES + 1)));
    let mut framer = Framer::default();
    framer.push(format!("PUBLISH sip:a@b SIP/2.0\r\nl: {MESSAGE_MAX_BYTES}\r\n\r\n").as_bytes());
    assert!(matches!(framer.next_message(), Err(MessageError::TooLong(_))));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(message) = Message::parse(&bytes) {
            prop_assert!(Message::parse(&message.print()).is_ok(), "what was read can be printed and read again");
        }
    }

    #[test]
    fn no_change_of_a_publish_makes_it_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = PUBLISH.replace('\n', "\r\n").into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            match byte % 3 {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => _ = bytes.remove(at),
            }
        }
        let mut framer = Framer::default();
        framer.push(&bytes);
        let _ = framer.next_message();
        if let Ok(Message::Request(request)) = Message::parse(&bytes) {
            let _ = super::inbound::answerable(&request);
            let _ = super::inbound::called_user(&request.uri);
            let _ = super::body::Body::parse(&request.body);
        }
    }
}
