use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use super::*;
use crate::cluster::{Gossip, GossipConfig};
use crate::core::family::Mode;
use crate::core::path::Family;
use crate::core::topology::Member;

/// Later starts have greater generations.
static GENERATION: AtomicU64 = AtomicU64::new(1_000);

pub(super) fn generation() -> u64 {
    GENERATION.fetch_add(1_000, Ordering::Relaxed)
}

fn gossip_config() -> GossipConfig {
    GossipConfig::new(generation())
}

fn join(node: &Node) -> Gossip {
    join_as(node, gossip_config())
}

fn join_as(node: &Node, config: GossipConfig) -> Gossip {
    Gossip::start(config, node.mesh.clone(), &node.tracker, node.cancel.clone()).expect("not started before")
}

fn member(gossip: &Gossip, last: u8) -> Option<Member> {
    gossip.members().borrow().iter().find(|member| member.eid == eid(last)).cloned()
}

fn is_live(gossip: &Gossip, last: u8) -> bool {
    member(gossip, last).is_some_and(|member| member.live)
}

fn families(names: &[(&str, Mode)]) -> BTreeMap<Family, Mode> {
    names.iter().map(|(name, mode)| (Family::new(name).expect("a family"), *mode)).collect()
}

/// A member in a runtime of its own, that can die without a word.
async fn mortal(config: MeshConfig, identity: Identity, run: u64) -> (Mortal, Gossip) {
    let mortal = Mortal::start(config, identity, run).await;
    let _inside = mortal.runtime.as_ref().expect("alive").enter();
    let gossip = join(mortal.node());
    (mortal, gossip)
}

#[tokio::test]
async fn three_nodes_learn_of_each_other_and_of_what_they_share_through_one_seed() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(MeshConfig { site: "far".into(), ..config_with_seed(&one) }, ca.identity(2), 22).await;
    let three = Node::start(config_with_seed(&one), ca.identity(3), 33).await;
    let gossips = [join(&one), join(&two), join(&three)];
    let shared = families(&[("foo", Mode::Global), ("cidname", Mode::Unique)]);
    gossips[1].set_families(&shared);
    gossips[1].set_head(42);
    let sees = |of: &Gossip, last| is_live(of, last) && member(of, last).is_some_and(|member| member.connected);
    eventually("everyone sees everyone live and connected", SOON, || {
        [(0, 2), (0, 3), (1, 1), (1, 3), (2, 1), (2, 2)].into_iter().all(|(at, last)| sees(&gossips[at], last))
    })
    .await;
    eventually("three knows what two shares", SOON, || {
        member(&gossips[2], 2).is_some_and(|member| member.head == 42 && *member.families == shared)
    })
    .await;
    let seen = member(&gossips[2], 2).expect("just seen");
    assert_eq!((seen.run, seen.site, seen.address), (Run(22), "far".into(), two.address()));
    assert!(!two.peer(3).expect("connected").address.is_empty());

    let fewer = families(&[("foo", Mode::Global)]);
    gossips[1].set_families(&fewer);
    eventually("a family taken back disappears", SOON, || {
        member(&gossips[2], 2).is_some_and(|member| *member.families == fewer)
    })
    .await;
    assert_eq!(gossips[0].members().borrow().len(), 2, "a node is not its own member");
    for node in [one, two, three] {
        assert_eq!(node.mesh.counters().gossip_values_ignored.get(), 0);
        assert_eq!(node.mesh.counters().gossip_restarts.get(), 0);
        assert!(node.mesh.counters().refused().values().all(|count| *count == 0));
        node.stop().await;
    }
}

/// Also measures how long the others take to notice, after the failure detector has warmed up.
#[tokio::test]
async fn a_killed_node_is_seen_dead_in_seconds_without_a_stall_and_live_again_after_its_restart() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config_with_seed(&one), ca.identity(2), 22).await;
    let (first, second) = (join(&one), join(&two));
    let identity = ca.identity(3);
    let seeded = config_with_seed(&one);
    let (third, third_gossip) = mortal(seeded.clone(), identity.clone(), 33).await;
    third_gossip.set_head(1);
    eventually("three is live", SOON, || is_live(&first, 3) && is_live(&second, 3)).await;
    eventually("heads flow", SOON, || member(&second, 3).is_some_and(|member| member.head == 1)).await;
    let warm = Instant::now() + Duration::from_secs(12);
    tokio::time::sleep_until(warm).await;

    let killed = Instant::now();
    third.kill();
    first.set_head(7);
    eventually("gossip goes on beside a dead peer", Duration::from_secs(2), || {
        member(&second, 1).is_some_and(|member| member.head == 7)
    })
    .await;
    eventually("three is seen dead", SOON, || !is_live(&first, 3)).await;
    let noticed = killed.elapsed();
    eprintln!("a dead node was noticed after {noticed:?}");
    assert!(noticed > Duration::from_secs(2) && noticed < Duration::from_secs(8), "noticed after {noticed:?}");
    assert!(is_live(&first, 2) && is_live(&second, 1));
    eventually("two sees it too", SOON, || !is_live(&second, 3)).await;

    let (_third, _gossip) = mortal(seeded, identity, 34).await;
    eventually("three is live again in its new run", SOON, || {
        let back = |gossip| member(gossip, 3).is_some_and(|member| member.live && member.run == Run(34));
        back(&first) && back(&second)
    })
    .await;
    assert!(!*one.mesh.duplicate_eid().borrow());
}

#[tokio::test]
async fn membership_that_dies_is_started_again_and_others_see_it_live() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config_with_seed(&one), ca.identity(2), 22).await;
    let (first, second) = (join(&one), join_as(&two, GossipConfig { restart_min_ms: 10, ..gossip_config() }));
    second.set_head(5);
    eventually("both are live", SOON, || is_live(&first, 2) && is_live(&second, 1)).await;
    second.kill();
    eventually("it is started again", SOON, || two.mesh.counters().gossip_restarts.get() == 1).await;
    second.set_head(6);
    eventually("the new life is heard", SOON, || {
        member(&first, 2).is_some_and(|member| member.live && member.head == 6) && is_live(&second, 1)
    })
    .await;
    assert!(!*two.mesh.duplicate_eid().borrow());
}

#[tokio::test]
async fn gossip_that_cannot_be_decoded_is_refused_and_counted_and_gossip_goes_on() {
    let ca = Ca::new();
    let one = Node::start(config(), ca.identity(1), 11).await;
    let two = Node::start(config_with_seed(&one), ca.identity(2), 22).await;
    let first = join(&one);
    two.connected(1).await;
    one.connected(2).await;
    two.mesh.send_gossip(Ring::Near, one.mesh.gossip_address(), vec![0xff; 500]);
    two.mesh.send_gossip(Ring::Near, one.mesh.gossip_address(), vec![0; 100_000]);
    eventually("both are refused", SOON, || one.refused("gossip_payload") == 2).await;
    let _second = join(&two);
    eventually("two is live", SOON, || is_live(&first, 2)).await;
}

#[tokio::test]
async fn a_clone_that_is_met_only_through_others_raises_the_alarm() {
    let ca = Ca::new();
    let short = || GossipConfig { duplicate_confirm_ms: 1_000, ..gossip_config() };
    let identity = ca.identity(2);
    let one = Node::start(config(), ca.identity(1), 11).await;
    let three = Node::start(config_with_seed(&one), ca.identity(3), 33).await;
    let two = Node::start(config_with_seed(&one), identity.clone(), 22).await;
    let clone = Node::start(config_with_seed(&three), identity, 23).await;
    let _gossips = [join(&one), join(&three), join_as(&two, short()), join_as(&clone, short())];
    eventually("either knows", SOON * 2, || *two.mesh.duplicate_eid().borrow() || *clone.mesh.duplicate_eid().borrow())
        .await;
}

/// For choosing the failure detector's constants: `cargo test --lib -- --ignored --nocapture how_soon`.
#[tokio::test]
#[ignore = "takes two minutes and shows figures only"]
async fn how_soon_a_dead_node_is_noticed_in_clusters_of_several_sizes() {
    for (size, warm_s) in [(2, 2), (2, 15), (5, 15), (12, 15)] {
        let ca = Ca::new();
        let one = Node::start(config(), ca.identity(1), 11).await;
        let mut gossips = vec![join(&one)];
        let mut nodes = Vec::new();
        for last in 3..=size {
            let node = Node::start(config_with_seed(&one), ca.identity(last), 22).await;
            gossips.push(join(&node));
            nodes.push(node);
        }
        let (mortal, _gossip) = mortal(config_with_seed(&one), ca.identity(2), 33).await;
        eventually("live", SOON, || gossips.iter().all(|gossip| is_live(gossip, 2))).await;
        tokio::time::sleep(Duration::from_secs(warm_s)).await;
        let killed = Instant::now();
        mortal.kill();
        eventually("one notices", SOON * 6, || gossips.iter().any(|gossip| !is_live(gossip, 2))).await;
        let first = killed.elapsed();
        eventually("all notice", SOON * 6, || gossips.iter().all(|gossip| !is_live(gossip, 2))).await;
        eprintln!("{size} nodes, {warm_s} s old: noticed by one after {first:?}, by all after {:?}", killed.elapsed());
    }
}
