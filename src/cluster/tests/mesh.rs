use std::collections::BTreeMap;

use super::*;
use crate::cluster::frames::{read_frame, write_frame};
use crate::cluster::tls::NODE_DNS_NAME;
use crate::core::codec::{self, Message};
use crate::core::message::{Gossip, Hello};
use crate::core::protocol::Versions;

fn known(nodes: &[&Node]) -> BTreeMap<Eid, String> {
    nodes.iter().map(|node| (node.mesh.eid(), node.address())).collect()
}

/// A peer that speaks QUIC with a good certificate but may say anything.
struct Rogue {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
}

impl Rogue {
    async fn connect(identity: &Identity, node: &Node) -> Rogue {
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("a socket");
        let connection = endpoint
            .connect_with(identity.client_config(), node.mesh.gossip_address(), NODE_DNS_NAME)
            .expect("an address")
            .await
            .expect("a handshake");
        Rogue { endpoint, connection }
    }

    async fn say_first(&self, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        (send, recv)
    }

    async fn greet(&self, hello: &Hello) -> Option<Hello> {
        let (_send, mut recv) = self.say_first(&codec::encode_frame(hello).expect("a frame")).await;
        let (header, payload) = read_frame(&mut recv).await.ok()??;
        codec::decode_payload(header, &payload).ok()
    }

    async fn gossip(&self, bytes: &[u8]) {
        let mut send = self.connection.open_uni().await.expect("a stream");
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
    }
}

fn hello(last: u8) -> Hello {
    Hello {
        cluster: "kinfolk".into(),
        eid: eid(last),
        run: Run(77),
        site: "here".into(),
        advertise: "127.0.0.1:9".into(),
        version: "0".into(),
        protocol: Versions::SPOKEN,
    }
}

#[tokio::test]
async fn nodes_of_two_versions_speak_the_greatest_that_both_know() {
    let ca = Ca::new();
    let old = Node::start(config(), ca.identity(1), 11).await;
    let newer = MeshConfig { protocol: Versions { min: 1, max: 3 }, ..config_with_seed(&old) };
    let newer = Node::start(newer, ca.identity(2), 22).await;
    let newest = MeshConfig { protocol: Versions { min: 2, max: 4 }, ..config_with_seed(&newer) };
    let newest = Node::start(newest, ca.identity(3), 33).await;
    assert_eq!((old.connected(2).await.protocol, newer.connected(1).await.protocol), (1, 1));
    assert_eq!((newer.connected(3).await.protocol, newest.connected(2).await.protocol), (3, 3));
}

#[tokio::test]
async fn nodes_without_a_common_version_refuse_each_other_and_both_say_why() {
    let ca = Ca::new();
    let old = Node::start(config(), ca.identity(1), 11).await;
    let rogue = Rogue::connect(&ca.identity(2), &old).await;
    let answer = rogue.greet(&Hello { protocol: Versions { min: 2, max: 3 }, ..hello(2) }).await;
    assert!(answer.is_none());
    let ended = rogue.connection.closed().await.to_string();
    assert!(ended.contains("protocol_version: this node speaks 1"), "{ended}");
    old.refuses("protocol_version").await;
    assert!(old.peer(2).is_none());
    // Real nodes keep trying, and stay apart.
    let new = MeshConfig { protocol: Versions { min: 2, max: 2 }, ..config_with_seed(&old) };
    let new = Node::start(new, ca.identity(3), 33).await;
    eventually("two refusals", SOON, || old.refused("protocol_version") >= 2).await;
    assert!(new.peer(1).is_none() && old.peer(3).is_none());
}

#[tokio::test]
async fn two_nodes_connect_and_learn_who_the_other_is() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(MeshConfig { site: "far".into(), ..config_with_seed(&one) }, ca.identity(2), 22).await;
    let seen = one.connected(2).await;
    assert_eq!((seen.run, seen.site.as_str(), seen.dialled), (Run(22), "far", false));
    assert_eq!((seen.address.as_str(), seen.gossip_address), (two.address().as_str(), two.mesh.gossip_address()));
    let seen = two.connected(1).await;
    assert_eq!((seen.run, seen.dialled), (Run(11), true));
    assert!(one.mesh.traffic().received_bytes > 0);
    one.stop().await;
    eventually("the farewell is heard", SOON, || two.peer(1).is_none()).await;
    two.stop().await;
}

#[tokio::test]
async fn streams_carry_frames_in_both_directions() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config_with_seed(&one), ca.identity(2), 22).await;
    let mut incoming = one.mesh.take_incoming().expect("not taken");
    assert!(one.mesh.take_incoming().is_none());
    two.connected(1).await;
    one.connected(2).await;
    let (mut send, mut recv) = two.mesh.open_bi(eid(1)).await.expect("a stream");
    let message = Gossip { payload: vec![7; 200_000] };
    write_frame(&mut send, &message).await.expect("written");
    let mut taken = incoming.recv().await.expect("a stream");
    assert_eq!((taken.peer, taken.run), (eid(2), Run(22)));
    let (header, payload) = read_frame(&mut taken.recv).await.expect("read").expect("a frame");
    assert_eq!(header.kind, Gossip::KIND);
    assert_eq!(codec::decode_payload::<Gossip>(header, &payload).expect("decoded"), message);
    write_frame(&mut taken.send, &message).await.expect("written");
    taken.send.finish().expect("open");
    assert!(read_frame(&mut recv).await.expect("read").is_some());
    assert!(read_frame(&mut recv).await.expect("the end").is_none());
    assert!(two.mesh.open_bi(eid(9)).await.is_err());
}

#[tokio::test]
async fn gossip_reaches_the_peer_under_the_sender_s_address_and_is_dropped_without_a_connection() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config(), ca.identity(2), 22).await;
    let mut heard = one.mesh.take_gossip(Ring::Near).expect("not taken");
    two.mesh.send_gossip(Ring::Near, one.mesh.gossip_address(), b"lost".to_vec());
    assert_eq!(two.mesh.counters().gossip_dropped_unconnected.get(), 1);
    two.connected(1).await;
    two.mesh.send_gossip(Ring::Near, one.mesh.gossip_address(), b"heard".to_vec());
    let message = tokio::time::timeout(SOON, heard.recv()).await.expect("in time");
    assert_eq!(message, Some((two.mesh.gossip_address(), b"heard".to_vec())));
}

#[tokio::test]
async fn dials_that_cross_leave_one_and_the_same_connection_on_both_sides() {
    let ca = Ca::new();
    let (first, second) = (ca.identity(1), ca.identity(2));
    for round in 0..20 {
        let one = Node::start(config(), first.clone(), 11).await;
        let two = Node::start(config(), second.clone(), 22).await;
        one.mesh.set_known(&known(&[&one, &two]));
        two.mesh.set_known(&known(&[&one, &two]));
        let link = |node: &Node, last| node.peer(last).map(|peer| peer.link);
        let standing = |node: &Node| node.mesh.counters().opened.get() - node.mesh.counters().closed.get();
        eventually(&format!("one connection, round {round}"), SOON, || {
            let same = link(&one, 2).is_some() && link(&one, 2) == link(&two, 1);
            same && standing(&one) == 1 && standing(&two) == 1
        })
        .await;
        let kept = (link(&one, 2), one.peer(2).map(|peer| peer.dialled));
        two.mesh.send_gossip(Ring::Near, one.mesh.gossip_address(), vec![0]);
        assert_eq!((link(&one, 2), one.peer(2).map(|peer| peer.dialled)), kept);
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_and_counted() {
    let (ca, other) = (Ca::new(), Ca::new());
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config_with_seed(&one), other.identity_that_trusts(2, &ca), 22).await;
    one.refuses("tls").await;
    assert!(one.peer(2).is_none() && two.peer(1).is_none());
    let three = Node::start(config_with_seed(&one), other.identity(3), 33).await;
    three.refuses("tls").await;
    assert!(three.peer(1).is_none());
}

#[tokio::test]
async fn a_peer_that_claims_another_eid_is_refused_and_counted() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let rogue = Rogue::connect(&ca.identity(2), &one).await;
    assert_eq!(rogue.greet(&hello(3)).await, None);
    one.refuses("eid_mismatch").await;
    assert!(one.mesh.peers().borrow().is_empty());
}

#[tokio::test]
async fn a_node_other_than_the_one_expected_at_an_address_is_refused() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config(), ca.identity(2), 22).await;
    one.mesh.set_known(&BTreeMap::from([(eid(3), two.address())]));
    one.refuses("unexpected_eid").await;
    assert!(one.mesh.peers().borrow().is_empty());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_and_counted() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(MeshConfig { cluster: "other".into(), ..config_with_seed(&one) }, ca.identity(2), 22).await;
    one.refuses("cluster_name").await;
    assert!(one.peer(2).is_none() && two.peer(1).is_none());
}

#[tokio::test]
async fn frames_that_are_none_are_refused_and_counted_and_the_node_goes_on() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let good = codec::encode_frame(&hello(2)).expect("a frame");
    let identity = ca.identity(2);
    let edited = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let cases = [
        ("frame_magic", edited(0, b'X')),
        ("frame_version", edited(2, 99)),
        ("frame_kind", edited(3, 5)),
        ("frame_too_long", edited(7, 255)),
        ("frame_too_long", edited(6, 1)),
        ("frame_cut_off", good[..good.len() - 1].to_vec()),
        ("frame_cut_off", good[..5].to_vec()),
        ("frame_missing", Vec::new()),
        ("hello_text", codec::encode_frame(&Hello { site: "a\nb".into(), ..hello(2) }).expect("a frame")),
    ];
    for (reason, bytes) in cases {
        let before = one.refused(reason);
        let rogue = Rogue::connect(&identity, &one).await;
        let _streams = rogue.say_first(&bytes).await;
        eventually(&format!("one more {reason}"), SOON, || one.refused(reason) == before + 1).await;
        tokio::time::timeout(SOON, rogue.connection.closed()).await.expect("the node closes the connection");
    }
    let rogue = Rogue::connect(&identity, &one).await;
    assert_eq!(rogue.greet(&hello(2)).await.expect("an answer").eid, eid(1));
    one.connected(2).await;
}

#[tokio::test]
async fn bad_gossip_is_refused_and_counted_and_the_connection_goes_on() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let mut heard = one.mesh.take_gossip(Ring::Near).expect("not taken");
    let rogue = Rogue::connect(&ca.identity(2), &one).await;
    rogue.greet(&hello(2)).await.expect("an answer");
    let good = codec::encode_frame(&Gossip { payload: vec![1, 2, 3] }).expect("a frame");
    rogue.gossip(b"XX\x01\x05\0\0\0\0").await;
    one.refuses("frame_magic").await;
    rogue.gossip(b"KF\x01\x05\xff\xff\xff\xff").await;
    one.refuses("frame_too_long").await;
    rogue.gossip(&good[..good.len() - 2]).await;
    one.refuses("frame_cut_off").await;
    rogue.gossip(&good).await;
    let message = tokio::time::timeout(SOON, heard.recv()).await.expect("in time").expect("a message");
    assert_eq!(message.1, [1, 2, 3]);
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_let_go() {
    let ca = Ca::new();
    let one = Node::start(MeshConfig { hello_timeout_ms: 100, ..config() }, ca.identity(1), 11).await;
    let rogue = Rogue::connect(&ca.identity(2), &one).await;
    one.refuses("frame_timeout").await;
    rogue.connection.closed().await;
    rogue.endpoint.close(0u32.into(), b"");
}

#[tokio::test]
async fn one_peer_too_many_is_refused() {
    let ca = Ca::new();
    let one = Node::start(MeshConfig { peers_max: 1, ..config() }, ca.identity(1), 11).await;
    let _two = Node::start(config_with_seed(&one), ca.identity(2), 22).await;
    one.connected(2).await;
    let _three = Node::start(config_with_seed(&one), ca.identity(3), 33).await;
    one.refuses("too_many_peers").await;
    assert!(one.peer(3).is_none() && one.peer(2).is_some());
}

#[tokio::test]
async fn a_restarted_peer_replaces_its_former_self_long_before_that_times_out() {
    let ca = Ca::new();
    let patient = MeshConfig { idle_timeout_ms: 60_000, ..config() };
    let one = Node::start(patient.clone(), ca.identity(1), 11).await;
    let seeded = MeshConfig { seeds: vec![one.address()], ..patient };
    let identity = ca.identity(2);
    let former = Mortal::start(seeded.clone(), identity.clone(), 22).await;
    one.connected(2).await;
    former.kill();
    let _two = Node::start(seeded, identity, 23).await;
    eventually("the new run is connected", SOON, || one.peer(2).is_some_and(|peer| peer.run == Run(23))).await;
    assert_eq!(one.mesh.counters().replaced.get(), 1);
}

#[tokio::test]
async fn a_dead_peer_is_let_go_and_found_again() {
    let ca = Ca::new();
    let hasty = MeshConfig { idle_timeout_ms: 500, keep_alive_ms: 100, ..config() };
    let identity = ca.identity(1);
    let former = Mortal::start(hasty.clone(), identity.clone(), 11).await;
    let listen = former.node().mesh.gossip_address();
    let two = Node::start(MeshConfig { seeds: vec![listen.to_string()], ..hasty.clone() }, ca.identity(2), 22).await;
    two.connected(1).await;
    former.kill();
    eventually("the dead peer is let go", SOON, || two.peer(1).is_none()).await;
    let _one = Node::start(MeshConfig { listen, ..hasty }, identity, 12).await;
    two.connected(1).await;
}

#[tokio::test]
async fn a_mate_that_dies_is_let_go_long_before_the_idle_timeout_and_a_node_of_another_site_is_not() {
    let ca = Ca::new();
    let near = MeshConfig { idle_timeout_ms: 60_000, ..config() };
    let far = MeshConfig { site: "elsewhere".into(), ..near.clone() };
    let one = Node::start(near.clone(), ca.identity(1), 11).await;
    let seeds = vec![one.address()];
    let mate = Mortal::start(MeshConfig { seeds: seeds.clone(), ..near.clone() }, ca.identity(2), 22).await;
    let distant = Mortal::start(MeshConfig { seeds: seeds.clone(), ..far }, ca.identity(3), 33).await;
    let _alive = Node::start(MeshConfig { seeds, ..near }, ca.identity(4), 44).await;
    for last in 2..=4 {
        one.connected(last).await;
    }
    let of_the_living = one.peer(4).expect("connected").link;
    mate.kill();
    distant.kill();
    eventually("the dead mate is let go", SOON, || one.peer(2).is_none()).await;
    assert!(one.peer(3).is_some(), "another site's silence may be its line's");
    assert_eq!(one.peer(4).expect("connected").link, of_the_living, "who is quiet but alive is kept");
}

#[tokio::test]
async fn a_node_dials_itself_once_and_raises_no_alarm() {
    let ca = Ca::new();
    let listen = {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        free.local_addr().expect("an address")
    };
    let seeds = vec![listen.to_string()];
    let one = Node::start(MeshConfig { listen, seeds, ..config() }, ca.identity(1), 11).await;
    eventually("it meets itself", SOON, || one.mesh.found_itself()).await;
    assert!(one.peer(1).is_none());
    assert!(!*one.mesh.duplicate_eid().borrow());
    assert_eq!(one.mesh.counters().dials_failed.get(), 0);
}

#[tokio::test]
async fn two_live_nodes_of_one_eid_raise_the_alarm_on_both_until_one_goes() {
    let ca = Ca::new();
    let short = MeshConfig { duplicate_hold_ms: 500, backoff_max_ms: 100, ..config() };
    let identity = ca.identity(1);
    let one = Node::start(short.clone(), identity.clone(), 11).await;
    let clone = Node::start(MeshConfig { seeds: vec![one.address()], ..short }, identity, 12).await;
    let alarm = |node: &Node| *node.mesh.duplicate_eid().borrow();
    eventually("both know", SOON, || alarm(&one) && alarm(&clone)).await;
    assert!(one.refused("duplicate_eid") > 0 && clone.refused("duplicate_eid") > 0);
    clone.stop().await;
    eventually("the alarm ends", SOON, || !alarm(&one)).await;
}
