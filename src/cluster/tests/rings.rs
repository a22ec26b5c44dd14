//! One ring a site, and one of sites.

use super::gossip::generation;
use super::*;
use crate::cluster::{Gossip, GossipConfig, Rings};
use crate::core::topology::{Member, rings};

fn by_site(site: &str, seeds: &[&Node]) -> MeshConfig {
    let seeds = seeds.iter().map(|node| node.address()).collect();
    MeshConfig {
        site: site.into(),
        rings: Rings::BySite,
        seeds,
        unneeded_hold_ms: 2_000,
        wanted_hold_ms: 3_000,
        ..config()
    }
}

fn gossip_config() -> GossipConfig {
    GossipConfig {
        interval_ms: 100,
        wide_interval_ms: 200,
        claim_hold_ms: 8_000,
        speak_after_ms: 500,
        ..GossipConfig::new(generation())
    }
}

fn join(node: &Node) -> Gossip {
    Gossip::start(gossip_config(), node.mesh.clone(), &node.tracker, node.cancel.clone()).expect("not started before")
}

fn member(gossip: &Gossip, last: u8) -> Option<Member> {
    gossip.members().borrow().iter().find(|member| member.eid == eid(last)).cloned()
}

fn sees(gossip: &Gossip, last: u8, live: bool) -> bool {
    member(gossip, last).is_some_and(|member| member.live == live)
}

/// The last bytes of these EIDs, the one that speaks for their site first.
fn ranked(lasts: [u8; 3]) -> [u8; 3] {
    let mut eids = lasts.map(eid);
    rings::by_rank(&mut eids);
    eids.map(|eid| eid.bytes()[5])
}

#[tokio::test]
async fn sites_that_meet_through_nodes_that_do_not_speak_learn_of_each_other_and_only_speakers_connect() {
    let ca = Ca::new();
    let (here, there) = (ranked([1, 2, 3]), ranked([4, 5, 6]));
    // The one link that an operator wrote down is between the least of both.
    let mut nodes = vec![Node::start(by_site("here", &[]), ca.identity(here[2]), 11).await];
    for last in [here[1], here[0]] {
        nodes.push(Node::start(by_site("here", &[&nodes[0]]), ca.identity(last), 11).await);
    }
    nodes.push(Node::start(by_site("there", &[&nodes[0]]), ca.identity(there[2]), 11).await);
    for last in [there[1], there[0]] {
        nodes.push(Node::start(by_site("there", &[&nodes[3]]), ca.identity(last), 11).await);
    }
    let gossips: Vec<Gossip> = nodes.iter().map(join).collect();
    let all = || {
        let knows = |(node, gossip): (&Node, &Gossip)| {
            (1..=6).all(|last| node.mesh.eid() == eid(last) || sees(gossip, last, true))
        };
        nodes.iter().zip(&gossips).all(knows)
    };
    eventually("everyone knows everyone", SOON * 3, all).await;
    let seen = member(&gossips[0], there[0]).expect("just seen");
    assert_eq!((seen.site.as_str(), seen.run), ("there", Run(11)));
    assert!(nodes[2].peer(there[0]).is_some(), "the speakers are connected");
    let (middle, far_middle) = (&nodes[1], there[1]);
    eventually("those who speak for nobody need no connection", SOON * 3, || middle.peer(far_middle).is_none()).await;
    for node in &nodes {
        assert_eq!(node.refused("gossip_ring") + node.mesh.counters().gossip_values_ignored.get(), 0);
        assert_eq!(node.mesh.counters().gossip_restarts.get(), 0);
    }
    // Whom a plan needs is dialled.
    gossips[1].set_needed([eid(far_middle)].into());
    eventually("who is needed is connected", SOON, || middle.peer(far_middle).is_some()).await;
    gossips[1].set_needed([].into());
    eventually("and is not when it is needed no more", SOON * 2, || middle.peer(far_middle).is_none()).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn when_a_speaker_dies_another_speaks_and_the_other_site_loses_sight_of_nobody_else() {
    let ca = Ca::new();
    let here = ranked([1, 2, 3]);
    let far = Node::start(by_site("there", &[]), ca.identity(9), 11).await;
    let first = Mortal::start(by_site("here", &[&far]), ca.identity(here[0]), 11).await;
    let first_gossip = {
        let _inside = first.runtime.as_ref().expect("alive").enter();
        join(first.node())
    };
    let second = Node::start(by_site("here", &[first.node()]), ca.identity(here[1]), 11).await;
    let third = Node::start(by_site("here", &[first.node()]), ca.identity(here[2]), 11).await;
    let (far_gossip, second_gossip, third_gossip) = (join(&far), join(&second), join(&third));
    eventually("everyone is seen", SOON * 2, || {
        here.iter().all(|last| sees(&far_gossip, *last, true))
            && [&first_gossip, &second_gossip, &third_gossip].iter().all(|gossip| sees(gossip, 9, true))
    })
    .await;
    first.kill();
    let mut lost = false;
    eventually("the speaker is seen dead from afar", SOON * 4, || {
        lost |= !sees(&far_gossip, here[1], true) || !sees(&far_gossip, here[2], true);
        lost |= !sees(&second_gossip, 9, true) || !sees(&third_gossip, 9, true);
        sees(&far_gossip, here[0], false)
    })
    .await;
    assert!(!lost, "nobody else was lost meanwhile");
    assert!(far.peer(here[1]).is_some(), "the next one speaks");
}

#[tokio::test]
async fn a_ring_that_is_full_refuses_a_new_node_says_why_and_lets_old_ones_come_back() {
    let ca = Ca::new();
    let full = || GossipConfig { ring_nodes_max: 2, ..gossip_config() };
    let one = Node::start(config(), ca.identity(1), 11).await;
    let identity = ca.identity(2);
    let two = Node::start(config_with_seed(&one), identity.clone(), 22).await;
    let start = |node: &Node| {
        Gossip::start(full(), node.mesh.clone(), &node.tracker, node.cancel.clone()).expect("not started before")
    };
    let (first, second) = (start(&one), start(&two));
    eventually("two nodes fill the ring", SOON, || sees(&first, 2, true) && sees(&second, 1, true)).await;
    let three = Node::start(config_with_seed(&one), ca.identity(3), 33).await;
    let third = start(&three);
    one.refuses("ring_full").await;
    eventually("it knows why", SOON, || three.mesh.refused_by_full_ring()).await;
    assert!(third.members().borrow().is_empty() && member(&first, 3).is_none());
    two.stop().await;
    let back = Node::start(config_with_seed(&one), identity, 23).await;
    let _back = start(&back);
    eventually("an old one is let in", SOON, || member(&first, 2).is_some_and(|member| member.run == Run(23))).await;
    assert!(!one.mesh.refused_by_full_ring());
}

#[tokio::test]
async fn nodes_that_gossip_in_other_rings_are_told_of() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(by_site("there", &[&one]), ca.identity(2), 22).await;
    let (_first, _second) = (join(&one), join(&two));
    two.refuses("gossip_ring").await;
    one.refuses("gossip_ring").await;
}
