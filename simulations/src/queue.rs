//! The queue of events: by virtual time, and within one instant in the order in which they were put in.
//!
//! Kept by instants, not by events: one commit tells a thousand followers, whose frames take one of a few
//! delays each. What is taken and put at one instant then costs no search.

use std::collections::{BTreeMap, VecDeque};

use crate::clock::Us;

pub struct Queue<E> {
    now: Us,
    /// What is left of the present instant.
    present: VecDeque<E>,
    later: BTreeMap<Us, VecDeque<E>>,
    /// Used up, to be filled again.
    spare: Vec<VecDeque<E>>,
}

/// How many used up instants are kept, and how large one may be.
const SPARE_MAX: usize = 64;
const SPARE_EVENTS_MAX: usize = 1_024;

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { now: 0, present: VecDeque::new(), later: BTreeMap::new(), spare: Vec::new() }
    }

    /// Puts an event in at a moment, at the present one if that has passed.
    pub fn put(&mut self, at: Us, event: E) {
        if at <= self.now {
            self.present.push_back(event);
        } else {
            let spare = &mut self.spare;
            self.later.entry(at).or_insert_with(|| spare.pop().unwrap_or_default()).push_back(event);
        }
    }

    /// The next event and its moment.
    pub fn take(&mut self) -> Option<(Us, E)> {
        while self.present.is_empty() {
            let (at, events) = self.later.pop_first()?;
            let used = std::mem::replace(&mut self.present, events);
            if self.spare.len() < SPARE_MAX && used.capacity() <= SPARE_EVENTS_MAX {
                self.spare.push(used);
            }
            self.now = at;
        }
        self.present.pop_front().map(|event| (self.now, event))
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
}
