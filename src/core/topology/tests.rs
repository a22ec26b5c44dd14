use super::*;

fn eid(last: u8) -> Eid {
    Eid::new([2, 0, 0, 0, 0, last])
}

fn family() -> Family {
    Family::new("foo").expect("a family")
}

fn shared(families: &[(&str, Mode)]) -> Shared {
    families.iter().map(|(name, mode)| (Family::new(name).expect("a family"), *mode)).collect()
}

pub(super) const FOO: &[(&str, Mode)] = &[("foo", Mode::Global)];

pub(super) fn member(last: u8, site: &str, families: &[(&str, Mode)]) -> Member {
    Member {
        eid: eid(last),
        run: Run(u64::from(last)),
        site: site.into(),
        address: format!("127.0.0.1:{last}"),
        protocol_version: 1,
        version: "0".into(),
        families: shared(families).into(),
        roots: BTreeMap::new(),
        head: 0,
        unreached: BTreeSet::new(),
        settled: true,
        live: true,
        connected: true,
    }
}

fn here(last: u8) -> Me<'static> {
    static NOBODY: BTreeSet<Eid> = BTreeSet::new();
    Me { eid: eid(last), site: "here", settled: true, decommissioned: &NOBODY }
}

fn foo_of(me: Me<'_>, members: &[Member], losses: &Losses) -> BTreeMap<Eid, Classes> {
    let plan = plan(me, &shared(FOO), members, losses);
    plan.follow.into_iter().map(|((source, _), classes)| (source, classes)).collect()
}

/// Nodes 1 to 3 here, 4 to 6 there, by rank in each site: the first is the relay.
fn two_sites() -> ([u8; 3], [u8; 3], Vec<Member>) {
    let mut sites = [[1, 2, 3], [4, 5, 6]];
    for site in &mut sites {
        site.sort_by_key(|last| std::cmp::Reverse(rank(&family(), eid(*last))));
    }
    let at = |site: &'static str| move |last: &u8| member(*last, site, FOO);
    let members = sites[0].iter().map(at("here")).chain(sites[1].iter().map(at("there"))).collect();
    (sites[0], sites[1], members)
}

fn without(members: &[Member], last: u8) -> Vec<Member> {
    members.iter().filter(|member| member.eid != eid(last)).cloned().collect()
}

fn change(members: &mut [Member], last: u8, change: impl FnOnce(&mut Member)) {
    change(members.iter_mut().find(|member| member.eid == eid(last)).expect("it is there"));
}

const LOCAL: Classes = Classes::LOCAL;
const NEAR: Classes = Classes::NEAR;
const FAR: Classes = Classes::FAR;

#[test]
fn within_one_site_everyone_follows_the_local_writes_of_everyone_who_shares() {
    let members = [member(1, "here", FOO), member(2, "here", FOO), member(3, "here", &[("bar", Mode::Global)])];
    assert_eq!(foo_of(here(1), &members, &Losses::new()), [(eid(2), LOCAL)].into());
    assert!(plan(here(1), &shared(FOO), &members, &Losses::new()).relay_of.is_empty());
}

#[test]
fn the_books_are_followed_at_everyone_whatever_else_they_share() {
    let books = Family::books();
    let members = [member(2, "here", &[]), member(3, "here", FOO)];
    let plan = plan(here(1), &[(books.clone(), Mode::Global)].into(), &members, &Losses::new());
    let sources: Vec<_> = plan.follow.into_keys().collect();
    assert_eq!(sources, [(eid(2), books.clone()), (eid(3), books)]);
    assert_eq!(plan.conflicts, []);
}

#[test]
fn an_ordinary_node_asks_its_relay_for_what_has_crossed_and_nobody_elsewhere() {
    let ([relay, ordinary, other], _, members) = two_sites();
    let follow = foo_of(here(ordinary), &without(&members, ordinary), &Losses::new());
    assert_eq!(follow, [(eid(relay), LOCAL | FAR), (eid(other), LOCAL)].into());
}

#[test]
fn a_relay_asks_one_node_of_each_other_site_for_all_that_was_written_there() {
    let ([relay, second, third], [theirs, ..], members) = two_sites();
    let members = without(&members, relay);
    let follow = foo_of(here(relay), &members, &Losses::new());
    assert_eq!(follow, [(eid(second), LOCAL), (eid(third), LOCAL), (eid(theirs), LOCAL | NEAR)].into());
    let plan = plan(here(relay), &shared(FOO), &members, &Losses::new());
    assert_eq!(plan.relay_of, [family()].into());
    assert_eq!(plan.dial, [eid(second), eid(third), eid(theirs)].into());
}

#[test]
fn a_relay_whose_connection_is_late_is_replaced_before_it_counts_as_missed() {
    let ([relay, second, third], [theirs, ..], mut members) = two_sites();
    change(&mut members, relay, |member| member.connected = false);
    let members = without(&members, second);
    assert_eq!(foo_of(here(second), &members, &Losses::new()), [(eid(third), LOCAL)].into(), "a moment is nothing");
    let late = [(eid(relay), Loss::Late)].into();
    assert_eq!(foo_of(here(second), &members, &late), [(eid(third), LOCAL), (eid(theirs), LOCAL | NEAR)].into());
}

#[test]
fn a_source_that_is_late_is_replaced_by_the_next_of_its_site() {
    let ([relay, ..], [first, second, _], mut members) = two_sites();
    change(&mut members, first, |member| member.connected = false);
    let members = without(&members, relay);
    assert!(!foo_of(here(relay), &members, &Losses::new()).contains_key(&eid(second)), "a moment is nothing");
    let late = [(eid(first), Loss::Late)].into();
    assert_eq!(foo_of(here(relay), &members, &late)[&eid(second)], LOCAL | NEAR);
}

#[test]
fn what_has_crossed_is_still_asked_for_when_nobody_elsewhere_lives_any_more() {
    let ([relay, ordinary, _], theirs, mut members) = two_sites();
    theirs.iter().for_each(|last| change(&mut members, *last, |member| member.live = false));
    assert_eq!(foo_of(here(ordinary), &without(&members, ordinary), &Losses::new())[&eid(relay)], LOCAL | FAR);
}

#[test]
fn a_missed_mate_is_bridged_by_one_mate_that_reaches_it() {
    let mut members = vec![member(2, "here", FOO), member(3, "here", FOO), member(4, "here", FOO)];
    change(&mut members, 2, |member| member.connected = false);
    change(&mut members, 3, |member| _ = member.unreached.insert(eid(2)));
    let missed = [(eid(2), Loss::Missed)].into();
    assert_eq!(foo_of(here(1), &members, &missed), [(eid(3), LOCAL), (eid(4), LOCAL | NEAR)].into());
}

#[test]
fn a_site_whose_halves_miss_each_other_is_followed_in_both() {
    let ([relay, ..], [a, b, c], mut members) = two_sites();
    change(&mut members, b, |member| member.unreached = [eid(a), eid(c)].into());
    let follow = foo_of(here(relay), &without(&members, relay), &Losses::new());
    assert_eq!((follow[&eid(a)], follow[&eid(b)]), (LOCAL | NEAR, LOCAL | NEAR));
    assert!(!follow.contains_key(&eid(c)));
}

#[test]
fn a_site_out_of_reach_is_followed_over_a_third_that_reaches_it() {
    let ([relay, ..], theirs, mut members) = two_sites();
    let third = member(7, "third", FOO);
    for last in theirs {
        change(&mut members, last, |member| (member.connected, member.unreached) = (false, [eid(relay)].into()));
    }
    members.push(third.clone());
    let members = without(&members, relay);
    let losses: Losses = theirs.iter().map(|last| (eid(*last), Loss::Missed)).collect();
    assert_eq!(foo_of(here(relay), &members, &losses)[&eid(7)], Classes::ALL);
}

#[test]
fn a_decommissioned_member_is_a_relay_only_where_there_is_no_other() {
    let ([relay, second, third], _, members) = two_sites();
    let decommissioned = [eid(relay)].into();
    let me = Me { decommissioned: &decommissioned, ..here(third) };
    let follow = foo_of(me, &without(&members, third), &Losses::new());
    assert_eq!(follow, [(eid(relay), LOCAL), (eid(second), LOCAL | FAR)].into());
}

#[test]
fn a_dead_member_changes_nothing() {
    let dead = Member { live: false, connected: false, ..member(3, "here", FOO) };
    assert_eq!(foo_of(here(1), &[member(2, "here", FOO), dead], &Losses::new()), [(eid(2), LOCAL)].into());
}

#[test]
fn another_mode_is_a_conflict_and_no_exchange() {
    let plan = plan(here(1), &shared(FOO), &[member(2, "here", &[("foo", Mode::Unique)])], &Losses::new());
    assert!(plan.follow.is_empty());
    assert_eq!(plan.conflicts.len(), 1);
}

#[test]
fn patience_ends_twice_and_begins_anew_with_a_connection() {
    let mut patience = Patience::new(1_000, 10_000);
    let away = [Member { connected: false, ..member(2, "here", FOO) }];
    patience.need(&[eid(2)].into(), &away, 5_000);
    assert_eq!((patience.losses(&away, 5_999), patience.next_change_ms(5_999)), (Losses::new(), Some(6_000)));
    assert_eq!(patience.losses(&away, 6_000), [(eid(2), Loss::Late)].into());
    assert_eq!(patience.next_change_ms(6_000), Some(15_000));
    assert_eq!(patience.losses(&away, 15_000), [(eid(2), Loss::Missed)].into());
    patience.need(&[eid(2)].into(), &[member(2, "here", FOO)], 16_000);
    patience.need(&[eid(2)].into(), &away, 17_000);
    assert_eq!(patience.losses(&away, 17_999), Losses::new());
    patience.need(&BTreeSet::new(), &away, 18_000);
    assert_eq!(patience.losses(&away, 99_000), Losses::new(), "nobody needs it any more");
}

#[test]
fn who_has_just_come_back_is_relay_only_where_nobody_has_stayed() {
    let ([relay, second, third], _, mut members) = two_sites();
    change(&mut members, relay, |member| member.settled = false);
    let fars = |me: u8, members: &[Member]| {
        let of = foo_of(here(me), &without(members, me), &Losses::new());
        of.into_iter().filter(|(_, classes)| classes.intersects(Classes::FAR)).map(|(eid, _)| eid).collect::<Vec<_>>()
    };
    assert_eq!(fars(third, &members), [eid(second)], "the next one has its office");
    assert_eq!(fars(second, &members), [], "and knows it");
    let back = Me { settled: false, ..here(relay) };
    let of = foo_of(back, &without(&members, relay), &Losses::new());
    assert!(of[&eid(second)].intersects(Classes::FAR), "and the one that came back follows it like the others");
    [second, third].into_iter().for_each(|last| change(&mut members, last, |member| member.settled = false));
    let of = foo_of(back, &without(&members, relay), &Losses::new());
    assert!(of.values().all(|classes| !classes.intersects(Classes::FAR)), "all have just come: by rank");
}
