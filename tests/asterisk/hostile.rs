//! Whoever sends what they should not: counted, and nothing else.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::common::{self, SOON};
use crate::world::{SHARED, World, free_port, sections};

const MUTATED: u64 = 100_000;
/// Sent before the node's counters are looked at: fewer than its socket's buffer holds.
const WINDOW: u64 = 100;

fn request(branch: u64, eid: &str, body: &str) -> Vec<u8> {
    let body = body.replace("EID", eid);
    format!(
        "PUBLISH sip:ast0@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5060;rport;branch=z9hG4bK{branch}\r\n\
         From: <sip:ast0@127.0.0.1>;tag=1\r\nTo: <sip:ast0@127.0.0.1>\r\nCall-ID: c{branch}\r\nCSeq: 1 PUBLISH\r\n\
         Event: asterisk-db\r\nExpires: 3600\r\nMax-Forwards: 70\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

const BODIES: &[&str] = &[
    r#"{"type":"dbstate","eid":"EID","dbstate":{"verb":"put","family":"foo","share_type":"global","entries":[{"key":"k","data":"v"}]}}"#,
    r#"{"type":"dbstate","eid":"EID","dbstate":{"verb":"delete","family":"foo","share_type":"global","entries":null}}"#,
    r#"{"type":"refresh","eid":"EID"}"#,
    r#"{"type":"dbstate","eid":"EID","dbstate":{"verb":"put","family":"uni","share_type":"unique","entries":[{"key":"/uni/k","data":"v"}]}}"#,
];

/// Changes some bytes: flips, cuts, doublings, and pieces of SIP where they do not belong.
fn mutate(bytes: &mut Vec<u8>, chance: &mut simulations::rng::Rng) {
    for _ in 0..chance.between(1, 4) {
        let at = chance.index(bytes.len());
        match chance.below(6) {
            0 => bytes[at] = chance.draw() as u8,
            1 => bytes.truncate(at.max(1)),
            2 => drop(bytes.drain(at..(at + 9).min(bytes.len() - 1).max(at))),
            3 => {
                let piece = bytes[at..(at + 40).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let piece = chance.pick(&[
                    "\r\n\r\n",
                    "\r\n ",
                    "Content-Length: 99999999999\r\n",
                    "\0",
                    "\u{ff}",
                    "{[",
                    "\"",
                    ";;;=",
                    "%zz",
                ]);
                bytes.splice(at..at, piece.bytes());
            }
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
        if bytes.is_empty() {
            bytes.push(b'x');
        }
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

/// Everything that was counted of what came: accepted, repeated or refused, by the Asterisk or by nobody's.
fn counted(world: &World) -> u64 {
    let adapter = world.adapter(0);
    let of = |one: &kinfolk::status::AsteriskStatus| one.accepted + one.repeated + one.refused.values().sum::<u64>();
    adapter.refused.values().sum::<u64>() + adapter.asterisks.iter().map(of).sum::<u64>()
}

/// Returns when the node has read everything before: it answers this last. Gives how many answers came.
fn until_read(socket: &UdpSocket, number: u64) -> u64 {
    let last = format!("until-read-{number}");
    let options = format!(
        "OPTIONS sip:ast0@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5060;rport;branch=z9hG4bKo{number}\r\n\
         From: <sip:a@127.0.0.1>;tag=1\r\nTo: <sip:b@127.0.0.1>\r\nCall-ID: {last}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 70\r\n\
         Content-Length: 0\r\n\r\n"
    );
    socket.send(options.as_bytes()).expect("sent");
    let mut buffer = [0; 65_535];
    let mut answers = 0;
    loop {
        let length = socket.recv(&mut buffer).expect("the node answers OPTIONS");
        if String::from_utf8_lossy(&buffer[..length]).contains(&last) {
            return answers;
        }
        answers += 1;
    }
}

#[test]
fn a_hundred_thousand_mutated_publishes_are_counted_and_leave_nothing() {
    let seed = common::seed();
    let mut chance = simulations::rng::Rng::new(seed);
    let mut world = World::new(1, "");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(world.sip[0]).expect("connected");
    socket.set_read_timeout(Some(SOON)).expect("a socket");
    let pid = world.fleet.pid(0).expect("it runs");
    let (mut before, mut silent, mut answered) = (0, 0, 0);
    for n in 0..MUTATED {
        let eid = if chance.chance(500) { "02:00:00:00:00:a1" } else { "02:00:00:00:00:a2" };
        let body = *chance.pick(BODIES);
        let mut bytes = request(n, eid, body);
        mutate(&mut bytes, &mut chance);
        silent += u64::from(bytes.iter().all(|b| matches!(b, b'\r' | b'\n')));
        socket.send(&bytes).expect("sent");
        if n % WINDOW == WINDOW - 1 {
            answered += until_read(&socket, n);
        }
        if n == MUTATED / 10 {
            before = resident_kib(pid);
        }
    }
    let all = || (counted(&world) + silent >= MUTATED).then_some(());
    let result = world.fleet.wait_for("all that was sent is counted", SOON, all);
    assert!(result.is_ok(), "{} and {silent} silent: {:?}", counted(&world), world.adapter(0));
    let after = resident_kib(pid);
    eprintln!("{MUTATED} sent, {} counted, {answered} answered; {before} KiB, then {after} KiB", counted(&world));
    assert!(after < before + before / 4 + 8_192, "{before} KiB grew to {after} KiB");
    assert_eq!(world.fleet.ended(), [""; 0]);
    let log = world.fleet.log(0);
    assert!(!log.contains("panicked"), "{}", world.fleet.log_tail(0));
}

/// A node whose only Asterisk is elsewhere, and who logs for fail2ban.
#[test]
fn strangers_get_no_answer_and_a_line_for_fail2ban() {
    let sip = free_port();
    let mut plan = common::plan(1, &SHARED);
    let elsewhere: SocketAddr = "192.0.2.1:5060".parse().expect("an address");
    let log = std::env::temp_dir().join(format!("kinfolk-security-{}.log", common::random()));
    let section = sections(0, sip, elsewhere, "")
        .replace("[[asterisk]]", &format!("security_log = \"{}\"\n[[asterisk]]", log.display()));
    plan.nodes[0].more = section;
    let fleet = common::start(plan);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.connect(sip).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket");
    for n in 0..10 {
        socket.send(&request(n, "02:00:00:00:00:a1", BODIES[0])).expect("sent");
        socket.send(b"nonsense").expect("sent");
        socket.send(b"OPTIONS sip:x SIP/2.0\r\n\r\n").expect("sent");
    }
    let refused = || {
        let adapter = fleet.api(0).status().ok()?.adapter?;
        (adapter.refused.get("unlisted") == Some(&30)).then_some(())
    };
    fleet.wait_for("30 refusals", SOON, refused).expect("counted");
    let mut buffer = [0; 2_048];
    assert!(socket.recv(&mut buffer).is_err(), "not a byte comes back");
    let lines = std::fs::read_to_string(&log).expect("a security log");
    std::fs::remove_file(&log).expect("it was there");
    let own = socket.local_addr().expect("bound");
    assert_eq!(lines.lines().count(), 30);
    let line = lines.lines().next().expect("a line");
    assert!(line.starts_with("[20") && line.contains("+0000] NOTICE["), "{line}");
    let expected = format!(
        "kinfolk: Request 'PUBLISH' from '<sip:ast0@127.0.0.1>;tag=1' failed for '{own}' (callid: c0) - No matching endpoint found"
    );
    assert!(line.ends_with(&expected), "{line}\n{expected}");
}
