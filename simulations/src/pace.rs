//! How fast a run goes: virtual seconds of all its nodes against the processor time of its thread.
//!
//! Beside the simulation, which never sees it. The opening of the streams of a large cluster takes longer than
//! hours of its life, so that the stretch under load, from the first write of a client to the mending, is told apart.

use simulations::clock::{SECOND, Us};
use simulations::history::{History, WriteKind};
use simulations::world::World;

/// A moment: virtual time, and the processor time used until then, in nanoseconds.
type Moment = (Us, u64);

pub struct Pace {
    nodes: u64,
    load_from_us: Us,
    load_to_us: Us,
    load: Option<(Moment, Moment)>,
}

impl Pace {
    pub fn new(history: &History) -> Self {
        let by_client = history.writes.iter().filter(|write| !matches!(write.kind, WriteKind::Share { .. }));
        let load_from_us = by_client.map(|write| write.at_us).min().unwrap_or(history.heal_at_us);
        Self { nodes: history.nodes.len() as u64, load_from_us, load_to_us: history.heal_at_us, load: None }
    }

    pub fn note(&mut self, world: &World) {
        if (self.load_from_us..self.load_to_us).contains(&world.now) {
            let moment = (world.now, processor_ns().unwrap_or(0));
            let (from, _) = *self.load.get_or_insert((moment, moment));
            self.load = Some((from, moment));
        }
    }

    /// What is told of it; nothing where the system does not tell processor times.
    pub fn told(&self, virtual_us: Us) -> String {
        let Some(all_ns) = processor_ns() else { return String::new() };
        let per_second = |us: Us, ns: u64| u128::from(self.nodes * us) * 1_000 / u128::from(ns.max(1));
        let all = per_second(virtual_us, all_ns);
        let mut text = format!("  {:<32} {all} in all ({:.1} s)", "node-s per s of processor", all_ns as f64 / 1e9);
        if let Some(((from_us, from_ns), (to_us, to_ns))) = self.load.filter(|(from, to)| to.0 >= from.0 + SECOND) {
            text += &format!(", {} under load", per_second(to_us - from_us, to_ns - from_ns));
        }
        text + "\n"
    }
}

/// The processor time of this thread so far, as Linux counts it (`/proc/[pid]/schedstat`, first number).
fn processor_ns() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
