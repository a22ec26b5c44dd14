//! Patched Asterisks on real sockets, attached to real nodes. The Asterisk is the simulator's model, which is held
//! to the captures of real ones.

#![expect(clippy::disallowed_methods, reason = "real processes need the real clock")]

mod common;

#[path = "asterisk/captures.rs"]
mod captures;
#[path = "asterisk/hostile.rs"]
mod hostile;
#[path = "asterisk/outage.rs"]
mod outage;
#[path = "asterisk/race.rs"]
mod race;
#[path = "asterisk/sipp.rs"]
mod sipp;
#[path = "asterisk/world.rs"]
mod world;

use common::SOON;
use simulations::asterisk::astdb::AstDb;
use world::{World, asterisk_eid};

#[test]
fn what_one_asterisk_puts_and_deletes_is_put_and_deleted_at_the_other() {
    let world = World::new(2, "");
    let (a, b) = (world.start(0, AstDb::default(), 0), world.start(1, AstDb::default(), 0));
    let seen = |what: &str, family: &str, key: &str, value: Option<&str>| {
        world.fleet.wait_for(what, SOON, || (b.db().get(family, key) == value).then_some(())).expect(what);
    };
    a.put("foo", "k", "v");
    a.put("uni", "k", "mine");
    seen("a global key", "foo", "k", Some("v"));
    seen("a unique key", &format!("{}/uni", asterisk_eid(0)), "k", Some("mine"));
    b.put("uni", "k", "other");
    a.del("foo", "k");
    a.del("uni", "k");
    seen("a global delete", "foo", "k", None);
    seen(
        "a unique delete, which takes the copy and not the other's own",
        &format!("{}/uni", asterisk_eid(0)),
        "k",
        None,
    );
    assert_eq!(b.db().get("uni", "k"), Some("other"));
    assert_eq!(world.fleet.api(1).value("/foo/k").expect("answered"), None);
}

#[test]
fn what_is_written_at_a_node_reaches_its_asterisk_and_the_status_tells() {
    let world = World::new(1, "password = \"s3cret\"");
    let mut settings = world.settings(0);
    let credentials = kinfolk::asterisk::settings::Credentials { username: "ast0".into(), password: "s3cret".into() };
    settings.outbound_auth = Some(credentials.clone());
    settings.endpoint_auth = Some(credentials);
    let asterisk = world.hosts[0].start(settings, AstDb::default(), world.wire(0, 0));
    world.fleet.api(0).put("/foo/from-node", "x").expect("written");
    let got = || (asterisk.db().get("foo", "from-node") == Some("x")).then_some(());
    world.fleet.wait_for("the put", SOON, got).expect("delivered");
    asterisk.put("foo", "from-asterisk", "y");
    let stored = || world.fleet.api(0).value("/foo/from-asterisk").ok().flatten();
    assert_eq!(world.fleet.wait_for("the other put", SOON, stored).expect("stored"), "y");
    world.settle(&[&asterisk]);
    let shown = || {
        let status = world.status(0);
        (status.delivered_entries >= 1 && status.written >= 1 && status.heard_ago_ms.is_some()).then_some(status)
    };
    let status = world.fleet.wait_for("the status", SOON, shown).expect("shown");
    assert_eq!((status.name.as_str(), status.reachable, status.undeliverable), ("ast0", true, 0));
    let metric = |name: &str| world.fleet.api(0).metric(name, "asterisk=\"ast0\"").expect("a metric");
    assert!(metric("kinfolk_asterisk_reachable") > 0.5 && metric("kinfolk_asterisk_written_total") > 0.5);
    let out = world.fleet.command(&["status", "--node", &world.fleet.url(0)]).output().expect("it runs");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("Attached Asterisks") && text.contains("ast0") && text.contains("reachable"), "{text}");
}

#[test]
fn a_quota_of_keys_refuses_what_is_beyond_it_and_a_rate_slows_down() {
    let world = World::new(1, "keys_max = 5\nupdates_per_s_max = 10");
    let asterisk = world.start(0, AstDb::default(), 0);
    world.settle(&[&asterisk]);
    let began = tokio::time::Instant::now();
    // Twenty are good for five keys, at ten a second.
    for n in 0..20 {
        asterisk.put("foo", &format!("k{}", n % 5), &n.to_string());
    }
    for n in 5..10 {
        asterisk.put("foo", &format!("k{n}"), "one too many");
    }
    world.fleet.wait_for("all are answered", SOON, || (asterisk.queued() == 0).then_some(())).expect("answered");
    let took = began.elapsed();
    assert!(took.as_millis() >= 1_000, "25 updates at 10 a second took {took:?} only");
    let refused = || (world.status(0).refused.get("quota") == Some(&5)).then_some(());
    world.fleet.wait_for("five refusals", SOON, refused).expect("counted");
    let entries = world.fleet.api(0).export().expect("an export");
    assert_eq!(entries.lines().filter(|line| line.contains("/foo/k")).count(), 5, "{entries}");
    assert!(world.status(0).delayed > 0 && asterisk.counts().published >= 20, "{:?}", asterisk.counts());
}

#[test]
fn over_tcp_requests_come_in_any_pieces_and_pushes_go_to_the_asterisk() {
    use std::io::{Read, Write};
    let (sip, listener) = (world::free_port(), std::net::TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let mut plan = common::plan(1, &world::SHARED);
    let own = listener.local_addr().expect("bound");
    plan.nodes[0].more =
        world::sections(0, sip, own, "transport = \"tcp\"").replace(&format!("udp:{sip}"), &format!("tcp:{sip}"));
    let fleet = common::start(plan);

    // The node publishes to the Asterisk; the model answers on the same connection.
    let settings = simulations::asterisk::Settings {
        tcp: true,
        resource: "kinfolk".into(),
        ..simulations::asterisk::Settings::new(
            "ast0",
            &asterisk_eid(0).to_string(),
            &own.to_string(),
            &sip.to_string(),
            "ast0",
        )
    };
    let settings = settings.sharing("foo", kinfolk::core::family::Mode::Global);
    let mut model = simulations::asterisk::Asterisk::new(settings, AstDb::default());
    let refresh = model.load(0).remove(0);
    let mut ours = std::net::TcpStream::connect(sip).expect("connected");
    for piece in refresh.bytes.chunks(7) {
        ours.write_all(piece).expect("sent");
        ours.flush().expect("sent");
    }
    let mut buffer = [0; 8_192];
    let length = ours.read(&mut buffer).expect("an answer");
    assert!(buffer[..length].starts_with(b"SIP/2.0 200"), "{}", String::from_utf8_lossy(&buffer[..length]));
    fleet.api(0).put("/foo/k", "over tcp").expect("written");

    let (mut theirs, _) = listener.accept().expect("the node connects");
    theirs.set_read_timeout(Some(SOON)).expect("a socket");
    let mut framer = kinfolk::asterisk::framing::Framer::default();
    while model.db().get("foo", "k") != Some("over tcp") {
        let length = theirs.read(&mut buffer).expect("the node publishes");
        assert!(length > 0, "the connection stays");
        framer.push(&buffer[..length]);
        while let Some(message) = framer.next_message().expect("SIP") {
            for packet in model.receive(0, &sip.to_string(), &message).iter().filter(|packet| packet.answer) {
                theirs.write_all(&packet.bytes).expect("answered");
            }
        }
    }
    // A stream that loses its place is closed, and counted.
    ours.write_all(b"PUBLISH sip:ast0@x SIP/2.0\r\nContent-Length: nonsense\r\n\r\n").expect("sent");
    assert_eq!(ours.read(&mut buffer).expect("closed"), 0);
    let counted = || {
        let adapter = fleet.api(0).status().ok()?.adapter?;
        (adapter.refused.get("malformed") == Some(&1)).then_some(())
    };
    fleet.wait_for("a refusal", SOON, counted).expect("counted");
}

#[test]
fn an_asterisk_with_the_nodes_own_eid_refuses_the_start() {
    let mut plan = common::plan(1, &world::SHARED);
    let eid = plan.nodes[0].eid;
    let section = world::sections(0, world::free_port(), world::free_port(), "");
    plan.nodes[0].more = section.replace(&asterisk_eid(0).to_string(), &eid.to_string());
    let mut fleet = common::prepare(plan);
    fleet.spawn(0).expect("spawned");
    assert!(!fleet.wait_exit(0).expect("it ends").success());
    let log = fleet.log(0);
    assert!(log.contains("[[asterisk]] 'ast0'") && log.contains("this node's own EID"), "{log}");
}
