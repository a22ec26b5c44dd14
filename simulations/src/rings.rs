//! Two rings of gossip, as a model: what a node hears of another site comes through whoever speaks for that site and whoever
//! speaks for its own, late, and not at all while one of the two is missing.
//!
//! Who speaks and whom a node dials are the daemon's own (`core::topology::rings`). Never here: what is told (`membership`).
//! What is modelled is that a speaker waits before it speaks and lingers when it has been replaced, that a claim is believed
//! for a while after it was last heard, and that two speakers hear each other over connections alone.

use std::collections::BTreeSet;

use kinfolk::core::eid::Eid;
use kinfolk::core::topology::rings::{self, Known};

use crate::check::Checked;
use crate::clock::{SECOND, Us};
use crate::history::{HostId, Rings};
use crate::membership::components;
use crate::world::{Event, World};

/// Who speaks no more stays in the ring of sites for so long, so that it hears who does.
const LINGER_US: Us = 3 * SECOND;

/// Whether a process speaks for its site.
#[derive(Clone, Copy, Debug, Default)]
pub struct Voice {
    /// Since when it has been the first of its site, in its own view.
    first_since: Option<Us>,
    /// When it found that it is not any more.
    left_at: Option<Us>,
    pub speaks: bool,
}

/// Who is heard of by whom just now.
pub struct Reach {
    /// One ring: everyone whom gossip reaches. Two: the same within the sites.
    group: Vec<Option<HostId>>,
    two: Option<Two>,
}

struct Two {
    sites: Vec<usize>,
    /// Speakers that hear each other.
    wide: Vec<Option<HostId>>,
    /// What each speaker holds of each host of its site.
    says_live: Vec<Vec<bool>>,
}

/// What is told of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    Live,
    Dead,
    /// Nobody says anything of it.
    Nothing,
}

impl Reach {
    pub fn hears(&self, observer: HostId, subject: HostId) -> Hears {
        let here = self.group[observer];
        let near = here.is_some() && here == self.group[subject];
        let Some(two) = self.two.as_ref().filter(|two| two.sites[observer] != two.sites[subject]) else {
            return if near { Hears::Live } else { Hears::Dead };
        };
        let speakers = || (0..two.wide.len()).filter(|host| two.wide[*host].is_some());
        let heard: BTreeSet<HostId> = speakers()
            .filter(|mate| here.is_some() && self.group[*mate] == here && two.sites[*mate] == two.sites[observer])
            .filter_map(|mate| two.wide[mate])
            .collect();
        let theirs = speakers().filter(|of| two.sites[*of] == two.sites[subject]);
        let claims = theirs.filter(|of| two.wide[*of].is_some_and(|ring| heard.contains(&ring)));
        let claims: Vec<bool> = claims.map(|of| two.says_live[of][subject]).collect();
        match claims.as_slice() {
            [] => Hears::Nothing,
            claims if claims.contains(&true) => Hears::Live,
            _ => Hears::Dead,
        }
    }
}

impl World {
    fn two_rings(&self) -> Option<(Us, Us, Us)> {
        match self.history.rings {
            Rings::One => None,
            Rings::BySite { speak_after_us, hold_us, wide_us } => Some((speak_after_us, hold_us, wide_us)),
        }
    }

    pub fn gossips_by_site(&self) -> bool {
        self.two_rings().is_some()
    }

    /// Who hears of whom, as links, processes and speakers are now.
    pub fn reach(&self) -> Reach {
        let hosts = self.hosts.len();
        let up = |host: HostId| self.hosts[host].up();
        // All were there long ago, where a world begins warm.
        let one = !self.gossips_by_site() || (self.history.checking.warm_start && self.now == 0);
        if one {
            let group = components(hosts, up, |a, b| self.net.open_both_ways(a, b));
            return Reach { group, two: None };
        }
        let group = components(hosts, up, |a, b| self.near(a, b) && self.net.open_both_ways(a, b));
        let speaks = |host: HostId| self.hosts[host].process.as_ref().is_some_and(|process| process.voice.speaks);
        let hear_each_other = |a: HostId, b: HostId| self.net.pair(a, b).up && self.net.open_both_ways(a, b);
        let wide = components(hosts, speaks, hear_each_other);
        let claims = |of: HostId| {
            let claim = |host: HostId| host == of || self.near(of, host) && self.views.belief(of, host).says_live();
            if wide[of].is_some() { (0..hosts).map(claim).collect() } else { Vec::new() }
        };
        let says_live = (0..hosts).map(claims).collect();
        let sites = self.hosts.iter().map(|host| host.spec.site).collect();
        Reach { group, two: Some(Two { sites, wide, says_live }) }
    }

    /// How long it takes until an observer believes otherwise of a subject.
    pub fn belief_takes_us(&mut self, observer: HostId, subject: HostId, heard: Hears) -> Us {
        let timing = &self.history.timing;
        let (low, high) = if heard == Hears::Live { timing.view_up_us } else { timing.view_down_us };
        let far = self.two_rings().filter(|_| !self.near(observer, subject));
        match far {
            None => self.rng.between(low, high),
            Some((_, hold_us, wide_us)) => {
                let (low, high) = self.history.timing.view_up_us;
                let held_us = if heard == Hears::Nothing { hold_us } else { 0 };
                held_us + self.rng.between(low, high) + self.rng.below(wide_us)
            }
        }
    }

    /// Looks whether a node speaks for its site, and tells on what has changed.
    pub fn look_at_voice(&mut self, node: HostId) {
        let Some((speak_after_us, ..)) = self.two_rings() else { return };
        let (now, incarnation, me) = (self.now, self.hosts[node].incarnation, self.hosts[node].eid);
        let mates = (0..self.hosts.len()).filter(|mate| *mate != node && self.near(node, *mate));
        let live = mates.filter(|mate| self.views.belief(node, *mate).says_live()).map(|mate| self.hosts[mate].eid);
        let first = rings::speaker(live.chain([me])) == Some(me);
        let Some(process) = &mut self.hosts[node].process else { return };
        let voice = &mut process.voice;
        let before = *voice;
        if first {
            voice.left_at = None;
            voice.first_since.get_or_insert(now);
        } else {
            voice.left_at = voice.left_at.or(voice.first_since.take().map(|_| now));
        }
        let ready = voice.first_since.is_some_and(|since| now >= since + speak_after_us);
        let lingers = voice.speaks && voice.left_at.is_some_and(|left| now < left + LINGER_US);
        voice.speaks = ready || lingers || (first && before.speaks);
        let voice = *voice;
        if voice.first_since != before.first_since && !voice.speaks {
            self.schedule(speak_after_us, Event::Voice { node, incarnation });
        }
        if voice.left_at != before.left_at && voice.speaks {
            self.schedule(LINGER_US, Event::Voice { node, incarnation });
        }
        if voice.speaks != before.speaks {
            self.stats.speakers_turned += 1;
            self.plan_soon(node);
        }
        if voice.speaks || before.speaks {
            self.beliefs_turn();
        }
    }

    pub fn on_voice(&mut self, node: HostId) -> Checked {
        self.look_at_voice(node);
        Ok(())
    }

    /// Whom a node dials for its plan and its rings. Of the other nodes it knows at least the addresses.
    pub fn dials(&self, node: HostId, needed: &BTreeSet<Eid>) -> BTreeSet<Eid> {
        if !self.gossips_by_site() {
            return needed.clone();
        }
        let speaks = self.hosts[node].process.as_ref().is_some_and(|process| process.voice.speaks);
        let site = |host: HostId| self.sites[self.hosts[host].spec.site].as_str();
        let others =
            (0..self.hosts.len()).filter(|host| *host != node && self.hosts[*host].eid != self.hosts[node].eid);
        let known = others.map(|host| Known {
            eid: self.hosts[host].eid,
            site: site(host),
            live: self.views.belief(node, host).says_live(),
        });
        rings::dial(site(node), speaks, needed, known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sites of two; the hosts 0 and 2 speak, and hear each other if so.
    fn reach(speakers_hear: bool, says_live: [bool; 4]) -> Reach {
        let wide = if speakers_hear { vec![Some(0), None, Some(0), None] } else { vec![Some(0), None, Some(2), None] };
        let says_live = says_live.map(|_| says_live.to_vec()).to_vec();
        let two = Two { sites: vec![0, 0, 1, 1], wide, says_live };
        Reach { group: vec![Some(0), Some(0), Some(2), Some(2)], two: Some(two) }
    }

    #[test]
    fn what_is_heard_of_another_site_is_what_its_speaker_says() {
        let reach = reach(true, [true, true, true, false]);
        assert_eq!(
            [0, 1, 2, 3].map(|subject| reach.hears(1, subject)),
            [Hears::Live, Hears::Live, Hears::Live, Hears::Dead]
        );
    }

    #[test]
    fn nothing_is_heard_of_another_site_while_the_speakers_do_not_hear_each_other() {
        let reach = reach(false, [true; 4]);
        assert_eq!([0, 2, 3].map(|subject| reach.hears(1, subject)), [Hears::Live, Hears::Nothing, Hears::Nothing]);
    }
}
