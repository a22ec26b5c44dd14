//! The rules as a whole, on drawn graphs: sites, cut links, dead nodes that are believed alive. Nodes plan, gossip
//! whom they miss and plan again until nothing changes; then every record must reach every node to which there
//! is a way, and where nothing is cut, it must come once and cross once.

use proptest::prelude::*;

use super::*;
use crate::core::record::Class;

struct World {
    sites: Vec<u8>,
    /// Between whom a connection can stand.
    open: Vec<Vec<bool>>,
    /// Believed alive, though dead.
    ghosts: BTreeSet<usize>,
    /// Only those are connected of which one needs the other; else all that can be.
    dial_needed: bool,
    plans: Vec<Plan>,
    losses: Vec<Losses>,
}

fn eid(node: usize) -> Eid {
    Eid::new([2, 0, 0, 0, 1, node as u8])
}

fn node(eid: Eid) -> usize {
    usize::from(eid.bytes()[5])
}

fn family() -> Family {
    Family::new("foo").expect("a family")
}

impl World {
    fn new(sites: Vec<u8>, cut: impl Fn(usize, usize) -> bool, ghosts: BTreeSet<usize>, dial: bool) -> Self {
        let count = sites.len();
        let dead = |node: usize| ghosts.contains(&node);
        let open = |a: usize, b: usize| a != b && !dead(a) && !dead(b) && !cut(a.min(b), a.max(b));
        Self {
            open: (0..count).map(|a| (0..count).map(|b| open(a, b)).collect()).collect(),
            ghosts,
            plans: vec![Plan::default(); count],
            losses: vec![Losses::new(); count],
            sites,
            dial_needed: dial,
        }
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        let needed = |a: usize, b: usize| self.plans[a].dial.contains(&eid(b));
        self.open[a][b] && (!self.dial_needed || needed(a, b) || needed(b, a))
    }

    /// Those to whom there is a way, over whomever.
    fn component(&self, from: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([from]);
        let mut border = vec![from];
        while let Some(at) = border.pop() {
            for next in (0..self.sites.len()).filter(|next| self.open[at][*next]) {
                if found.insert(next) {
                    border.push(next);
                }
            }
        }
        found
    }

    fn members_of(&self, me: usize) -> Vec<Member> {
        let component = self.component(me);
        let missed = |of: usize| self.losses[of].iter().filter(|(_, loss)| **loss == Loss::Missed);
        let others = (0..self.sites.len()).filter(|of| *of != me);
        others
            .map(|of| Member {
                eid: eid(of),
                run: Run(1),
                site: self.sites[of].to_string(),
                address: String::new(),
                protocol_version: 1,
                version: String::new(),
                families: Arc::new([(family(), Mode::Global)].into()),
                roots: BTreeMap::new(),
                head: 0,
                unreached: missed(of).map(|(eid, _)| *eid).collect(),
                settled: true,
                live: component.contains(&of) || self.ghosts.contains(&of),
                connected: self.connected(me, of),
            })
            .collect()
    }

    /// One round of planning at every node, each as it sees the world. True if nothing changed.
    fn plan(&mut self, loss: Loss) -> bool {
        let shared: Shared = [(family(), Mode::Global)].into();
        let mut stable = true;
        for me in (0..self.sites.len()).filter(|node| !self.ghosts.contains(node)).collect::<Vec<_>>() {
            let members = self.members_of(me);
            let site = self.sites[me].to_string();
            let me_seen = Me { eid: eid(me), site: &site, settled: true, decommissioned: &BTreeSet::new() };
            let plan = plan(me_seen, &shared, &members, &self.losses[me]);
            let lost = members.iter().filter(|member| member.live && !member.connected);
            let lost: Losses =
                lost.filter(|member| plan.dial.contains(&member.eid)).map(|member| (member.eid, loss)).collect();
            stable &= plan == self.plans[me] && lost == self.losses[me];
            (self.plans[me], self.losses[me]) = (plan, lost);
        }
        stable
    }

    fn settle(&mut self) -> bool {
        self.plan(Loss::Late);
        (0..100).any(|_| self.plan(Loss::Missed))
    }

    /// Who has a record of `origin` in the end, in which class, and how often it was sent to each.
    fn spread(&self, origin: usize) -> (BTreeMap<usize, Class>, BTreeMap<(usize, usize), Class>) {
        let mut classes = BTreeMap::from([(origin, Class::Local)]);
        let mut sent = BTreeMap::new();
        loop {
            let before = (classes.clone(), sent.clone());
            for (me, plan) in self.plans.iter().enumerate() {
                for ((source, _), scope) in &plan.follow {
                    let source = node(*source);
                    let Some(class) = before.0.get(&source).filter(|class| scope.contains(**class)) else { continue };
                    sent.insert((source, me), *class);
                    let arrives = Class::arriving(class.crossed(), self.sites[source] != self.sites[me]);
                    let kept = classes.entry(me).or_insert(arrives);
                    *kept = arrives.min(*kept);
                }
            }
            if before == (classes.clone(), sent.clone()) {
                return (classes, sent);
            }
        }
    }

    fn told(&self) -> String {
        let of = |me: usize| {
            let follow =
                self.plans[me].follow.iter().map(|((source, _), classes)| format!("{}:{classes}", node(*source)));
            let near: Vec<_> = (0..self.sites.len()).filter(|other| self.connected(me, *other)).collect();
            let missed: Vec<_> = self.losses[me].keys().map(|eid| node(*eid)).collect();
            let follow = follow.collect::<Vec<_>>().join(" ");
            format!("{me} at {} connected {near:?} misses {missed:?} follows {follow}\n", self.sites[me])
        };
        (0..self.sites.len()).map(of).collect()
    }

    fn every_record_reaches_everyone(&self) -> Result<(), String> {
        for origin in (0..self.sites.len()).filter(|node| !self.ghosts.contains(node)) {
            let reached: BTreeSet<usize> = self.spread(origin).0.into_keys().collect();
            let missing: Vec<_> = self.component(origin).difference(&reached).copied().collect();
            if !missing.is_empty() {
                return Err(format!("{missing:?} miss {origin}\n{}", self.told()));
            }
        }
        Ok(())
    }
}

type Drawn = (Vec<u8>, BTreeSet<(usize, usize)>, BTreeSet<usize>, bool);

/// Sites of up to nine nodes, cut links, ghosts, and the policy of dialling.
fn worlds(cut_per_cent: u32) -> impl Strategy<Value = Drawn> {
    (2..10usize).prop_flat_map(move |count| {
        let sites = prop::collection::vec(0..4u8, count);
        let pairs: Vec<_> = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))).collect();
        let cuts = prop::collection::vec(0..100u32, pairs.len());
        let cuts = cuts.prop_map(move |draws| {
            pairs.iter().zip(draws).filter(|(_, draw)| *draw < cut_per_cent).map(|(pair, _)| *pair).collect()
        });
        (sites, cuts, prop::collection::btree_set(0..count, 0..2), any::<bool>())
    })
}

/// Many more where the environment asks for it.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_cut_every_record_reaches_everyone_to_whom_there_is_a_way(
        (sites, cuts, ghosts, dial) in prop_oneof![worlds(10), worlds(30), worlds(60)]
    ) {
        let mut world = World::new(sites, |a, b| cuts.contains(&(a, b)), ghosts, dial);
        let settled = world.settle();
        let reached = world.every_record_reaches_everyone();
        prop_assert!(settled, "plans never come to rest\n{}", world.told());
        prop_assert!(reached.is_ok(), "{}", reached.unwrap_err());
    }

    #[test]
    fn sites_that_are_cut_off_from_each_other_converge_over_any_site_that_reaches_both(
        sites in prop::collection::vec(0..4u8, 3..10), cut in prop::collection::btree_set((0..4u8, 0..4u8), 0..4),
        dial in any::<bool>()
    ) {
        let cut = |a: usize, b: usize| sites[a] != sites[b] && (cut.contains(&(sites[a], sites[b])) || cut.contains(&(sites[b], sites[a])));
        let mut world = World::new(sites.clone(), cut, BTreeSet::new(), dial);
        prop_assert!(world.settle());
        prop_assert!(world.every_record_reaches_everyone().is_ok());
    }

    #[test]
    fn where_views_agree_a_write_comes_once_to_each_node_and_crosses_once_to_each_site(
        sites in prop::collection::vec(0..5u8, 2..20), dial in any::<bool>()
    ) {
        let mut world = World::new(sites.clone(), |_, _| false, BTreeSet::new(), dial);
        prop_assert!(world.settle());
        for origin in 0..sites.len() {
            let (_, sent) = world.spread(origin);
            prop_assert_eq!(sent.len(), sites.len() - 1);
            let crossings = sent.keys().filter(|(from, to)| sites[*from] != sites[*to]).count();
            prop_assert_eq!(crossings, sites.iter().collect::<BTreeSet<_>>().len() - 1);
        }
    }
}
