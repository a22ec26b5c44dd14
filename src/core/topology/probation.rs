//! Who has just come back does not take the office of relay at once.
//!
//! A relay that dies is missed until the others have noticed, and each change of relay costs comparisons. One that comes
//! and goes would cost this over and over, being the first by rank. So a node that finds another of its site in office
//! ranks behind all that have been there for longer, until it has stayed for a while itself. What a node finds of
//! itself it gossips, so that all rank it alike. Time is an argument.

use super::Member;

/// Who starts waits so long to hear of somebody in office.
const LISTEN_MS: u64 = 3_000;

/// Whether this node has settled.
#[derive(Clone, Copy, Debug)]
pub struct Probation {
    began_ms: u64,
    after_ms: u64,
    settled: bool,
}

impl Probation {
    /// A node has started. It has settled after so long, or earlier where nobody else has.
    pub fn new(began_ms: u64, after_ms: u64) -> Self {
        Self { began_ms, after_ms, settled: after_ms == 0 }
    }

    /// Whether it has settled by now. It never turns back.
    pub fn look(&mut self, site: &str, members: &[Member], now_ms: u64) -> bool {
        let stayed_ms = now_ms.saturating_sub(self.began_ms);
        let in_office = || members.iter().any(|member| member.live && member.site == site && member.settled);
        self.settled |= stayed_ms >= self.after_ms || (stayed_ms >= LISTEN_MS && !in_office());
        self.settled
    }

    /// When to look again, if nothing else happens.
    pub fn next_change_ms(&self, now_ms: u64) -> Option<u64> {
        let ends = [self.began_ms + LISTEN_MS.min(self.after_ms), self.began_ms + self.after_ms];
        ends.into_iter().filter(|end| *end > now_ms && !self.settled).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{FOO, member};
    use super::*;

    fn mate(last: u8, settled: bool) -> Member {
        Member { settled, ..member(last, "here", FOO) }
    }

    #[test]
    fn who_comes_back_settles_after_a_while_and_who_finds_nobody_in_office_at_once() {
        let mut back = Probation::new(1_000, 60_000);
        let mates = [mate(2, true), mate(3, false)];
        assert!(!back.look("here", &mates, 4_000) && !back.look("here", &mates, 60_999));
        assert_eq!(back.next_change_ms(4_000), Some(61_000));
        assert!(back.look("here", &mates, 61_000));
        assert_eq!(back.next_change_ms(61_000), None);

        let mut first = Probation::new(1_000, 60_000);
        assert!(!first.look("here", &[], 3_999), "it may not have heard of anybody yet");
        assert_eq!(first.next_change_ms(3_999), Some(4_000));
        assert!(first.look("here", &[mate(2, false)], 4_000));
        assert!(first.look("here", &[mate(2, true)], 4_001), "what has settled stays so");
    }

    #[test]
    fn the_dead_and_those_of_other_sites_are_not_in_office_here() {
        let dead = Member { live: false, ..mate(2, true) };
        let other = Member { site: "there".into(), ..mate(3, true) };
        assert!(Probation::new(0, 60_000).look("here", &[dead, other], 3_000));
    }

    #[test]
    fn without_probation_all_are_settled_from_the_start() {
        assert!(Probation::new(5, 0).look("here", &[mate(2, true)], 5));
    }
}
