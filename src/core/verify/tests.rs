use super::*;

const CONFIG: VerifyConfig = VerifyConfig { gap_ms: 2_000, settle_ms: 500, patience_ms: 30_000, served_max: 8 };

fn eid(last: u8) -> Eid {
    Eid::new([2, 0, 0, 0, 0, last])
}

fn foo() -> Family {
    Family::new("foo").expect("a family")
}

fn root(n: u8) -> Root {
    format!("{n:x}").parse().expect("a root")
}

fn observe(verifier: &mut Verifier, own: u8, peers: &[(u8, u8)], now: MonotonicMs) {
    let peers = peers.iter().map(|(peer, of)| (eid(*peer), root(*of))).collect();
    verifier.observe(&[(foo(), root(own))].into(), &[(foo(), peers)].into(), now);
}

fn due(verifier: &mut Verifier, now: MonotonicMs) -> Option<Eid> {
    verifier.due(&foo(), now, 0)
}

#[test]
fn equal_roots_are_never_verified() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 1), (3, 1)], 0);
    assert_eq!(due(&mut verifier, 1_000_000), None);
    assert_eq!(verifier.next_look(0), None);
    assert_eq!(verifier.agreement(&foo()), (2, 0));
}

#[test]
fn a_difference_is_looked_into_when_it_has_settled() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 9)], 1_000);
    assert_eq!(due(&mut verifier, 1_100), None, "writes may be under way");
    assert_eq!(verifier.next_look(1_100), Some(1_500));
    assert_eq!(due(&mut verifier, 1_500), Some(eid(2)));
}

#[test]
fn a_difference_older_than_the_patience_is_verified_under_any_write_load() {
    let mut verifier = Verifier::new(CONFIG);
    let mut started = Vec::new();
    for tick in 0..700_u64 {
        // Both roots change ten times a second.
        observe(&mut verifier, (tick % 100) as u8, &[(2, (tick % 100) as u8 + 100)], tick * 100);
        started.extend(due(&mut verifier, tick * 100).map(|_| tick * 100));
        if started.last() == Some(&(tick * 100)) {
            verifier.ended(&foo(), eid(2), Verdict::Done, tick * 100, 0);
        }
    }
    assert_eq!(started, [30_000, 60_000], "and no more often");
}

#[test]
fn roots_that_meet_now_and_then_show_that_nothing_is_lost() {
    let mut verifier = Verifier::new(CONFIG);
    for tick in 0..2_000_u64 {
        let peer = if tick % 200 == 0 { (tick % 100) as u8 } else { (tick % 100) as u8 + 100 };
        observe(&mut verifier, (tick % 100) as u8, &[(2, peer)], tick * 100);
        assert_eq!(due(&mut verifier, tick * 100), None);
    }
}

#[test]
fn one_at_a_time_and_after_a_few_in_a_row_with_a_gap() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 9), (3, 9)], 0);
    assert_eq!(due(&mut verifier, 600), Some(eid(2)));
    assert_eq!(due(&mut verifier, 900), None, "one is running");
    verifier.ended(&foo(), eid(2), Verdict::Done, 1_000, 700);
    assert_eq!(verifier.next_look(1_000), Some(1_700), "the settling and its jitter");
    let mut started = vec![600];
    for now in (1_000..40_000).step_by(100) {
        if due(&mut verifier, now).is_some() {
            started.push(now);
            verifier.ended(&foo(), eid(2), Verdict::Done, now, 700);
        }
    }
    assert!(started[2] < 3_000, "{started:?}");
    assert!(started.windows(2).skip(2).all(|pair| pair[1] - pair[0] >= 2_000), "{started:?}");
    assert!(started.len() <= 40_000 / 2_000, "{started:?}");
}

#[test]
fn the_peer_is_drawn_from_those_that_differ() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 9), (3, 1), (4, 9)], 0);
    assert_eq!(verifier.clone().due(&foo(), 600, 6), Some(eid(2)));
    assert_eq!(verifier.due(&foo(), 600, 7), Some(eid(4)));
}

#[test]
fn a_peer_that_failed_is_left_alone_for_a_while() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 9)], 0);
    assert_eq!(due(&mut verifier, 600), Some(eid(2)));
    verifier.ended(&foo(), eid(2), Verdict::Failed, 600, 0);
    assert_eq!(due(&mut verifier, 10_500), None);
    assert_eq!(due(&mut verifier, 10_600), Some(eid(2)));
}

#[test]
fn a_family_that_is_shared_no_more_and_a_member_that_is_gone_are_forgotten() {
    let mut verifier = Verifier::new(CONFIG);
    observe(&mut verifier, 1, &[(2, 9)], 0);
    observe(&mut verifier, 1, &[], 10);
    assert_eq!(due(&mut verifier, 1_000), None);
    verifier.observe(&BTreeMap::new(), &Roots::new(), 2_000);
    assert_eq!(verifier.due(&foo(), 100_000, 0), None);
}

/// One of a hundred nodes dies after half of the others had its last write.
#[test]
fn one_dead_origin_among_a_hundred_nodes_starts_some_hundred_sessions_not_ten_thousand() {
    let mut verifiers = vec![Verifier::new(CONFIG); 99];
    let mut has: Vec<bool> = (0..99).map(|node| node % 2 == 0).collect();
    let (mut sessions, mut chance) = (0, 12_345_u64);
    for now in (0..60_000).step_by(100) {
        let own = |has: bool| if has { 2 } else { 1 };
        for node in 0..99_usize {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let others = (0..99).filter(|peer| *peer != node);
            let peers: Vec<_> = others.map(|peer| (peer as u8, own(has[peer]))).collect();
            observe(&mut verifiers[node], own(has[node]), &peers, now);
            if let Some(peer) = verifiers[node].due(&foo(), now, chance >> 33) {
                sessions += 1;
                let at = usize::from(peer.bytes()[5]);
                let both = has[node] || has[at];
                (has[node], has[at]) = (both, both);
                verifiers[node].ended(&foo(), peer, Verdict::Done, now, chance >> 20);
            }
        }
    }
    assert!(has.iter().all(|has| *has), "all have it");
    assert!(sessions < 200, "{sessions} sessions");
}
