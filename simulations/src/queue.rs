//! The queue of events: by virtual time, and within one instant in the order in which they were put in.
//!
//! Kept by instants, not by events: one commit tells a thousand followers, whose frames take one of a few
//! delays each. What is taken and put at one instant then costs no search.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Us;

pub struct Queue<E> {
    now: Us,
    /// What is left of the present instant.
    present: Instant<E>,
    later: BTreeMap<Us, Instant<E>>,
    /// Used up, to be filled again.
    spare: Vec<VecDeque<E>>,
}

/// The events of one instant, in pieces: a million that come at once are not moved again and again as they grow.
struct Instant<E> {
    first: VecDeque<E>,
    more: VecDeque<VecDeque<E>>,
}

/// How many events a piece holds.
const PIECE_EVENTS_MAX: usize = 1_024;
/// How many used up pieces are kept.
const SPARE_MAX: usize = 4_096;

impl<E> Instant<E> {
    fn put(&mut self, event: E, spare: &mut Vec<VecDeque<E>>) {
        let last = self.more.back_mut().unwrap_or(&mut self.first);
        if last.len() < PIECE_EVENTS_MAX {
            last.push_back(event);
        } else {
            let mut piece = spare.pop().unwrap_or_default();
            piece.push_back(event);
            self.more.push_back(piece);
        }
    }

    fn take(&mut self, spare: &mut Vec<VecDeque<E>>) -> Option<E> {
        if self.first.is_empty() {
            let used = std::mem::replace(&mut self.first, self.more.pop_front()?);
            keep(used, spare);
        }
        self.first.pop_front()
    }
}

fn keep<E>(used: VecDeque<E>, spare: &mut Vec<VecDeque<E>>) {
    if spare.len() < SPARE_MAX && used.capacity() > 0 {
        spare.push(used);
    }
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        let present = Instant { first: VecDeque::new(), more: VecDeque::new() };
        Self { now: 0, present, later: BTreeMap::new(), spare: Vec::new() }
    }

    /// Puts an event in at a moment, at the present one if that has passed.
    pub fn put(&mut self, at: Us, event: E) {
        if at <= self.now {
            self.present.put(event, &mut self.spare);
        } else {
            let spare = &mut self.spare;
            let fresh = |spare: &mut Vec<VecDeque<E>>| Instant {
                first: spare.pop().unwrap_or_default(),
                more: VecDeque::new(),
            };
            self.later.entry(at).or_insert_with(|| fresh(spare)).put(event, spare);
        }
    }

    /// Some of the events that come next, all of the present instant: not always all of these.
    pub fn upcoming(&self, most: usize) -> impl Iterator<Item = &E> {
        self.present.first.iter().take(most)
    }

    /// The next event and its moment.
    pub fn take(&mut self) -> Option<(Us, E)> {
        loop {
            if let Some(event) = self.present.take(&mut self.spare) {
                return Some((self.now, event));
            }
            let (at, instant) = self.later.pop_first()?;
            let used = std::mem::replace(&mut self.present, instant);
            keep(used.first, &mut self.spare);
            self.now = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_their_moments_and_then_as_they_were_put_in() {
        let mut queue = Queue::new();
        for (at, event) in [(5, 'c'), (3, 'a'), (5, 'd'), (3, 'b')] {
            queue.put(at, event);
        }
        assert_eq!((queue.take(), queue.take(), queue.take()), (Some((3, 'a')), Some((3, 'b')), Some((5, 'c'))));
        queue.put(4, 'e');
        queue.put(6, 'f');
        assert_eq!((queue.take(), queue.take()), (Some((5, 'd')), Some((5, 'e'))));
        assert_eq!((queue.take(), queue.take()), (Some((6, 'f')), None));
    }

    #[test]
    fn an_instant_of_any_size_keeps_its_order() {
        let mut queue = Queue::new();
        for n in 0..5_000 {
            queue.put(7, n);
        }
        for n in 0..2_500 {
            assert_eq!(queue.take(), Some((7, n)));
            queue.put(7, 5_000 + n);
        }
        assert!((2_500..7_500).all(|n| queue.take() == Some((7, n))));
        assert_eq!(queue.take(), None);
    }
}
