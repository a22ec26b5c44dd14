//! Makes the history of a failed run shorter while it still breaks the same check: fewer faults, fewer
//! writes, fewer nodes with anything to do.
//!
//! What is left can be run again: the seed and the places of the writes and faults that were kept.

use std::fmt;

use crate::check::Check;
use crate::history::{FaultKind, History, HostId, Write};
use crate::run::run;

/// Which writes and faults of a history are kept, by their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub writes: Vec<usize>,
    pub faults: Vec<usize>,
}

impl Kept {
    pub fn all(history: &History) -> Self {
        Self { writes: (0..history.writes.len()).collect(), faults: (0..history.faults.len()).collect() }
    }

    /// The history with only what is kept.
    pub fn of(&self, history: &History) -> History {
        let mut shorter = history.clone();
        shorter.writes = self.writes.iter().filter_map(|at| history.writes.get(*at).cloned()).collect();
        shorter.faults = self.faults.iter().filter_map(|at| history.faults.get(*at).cloned()).collect();
        shorter.lasting = history.lasting.and_then(|lasting| self.faults.iter().position(|at| *at == lasting));
        shorter
    }
}

/// `3,5-9;0,2`: places of writes, then of faults.
impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};{}", ranges(&self.writes), ranges(&self.faults))
    }
}

fn ranges(places: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for place in places {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *place => *last = *place,
            _ => parts.push((*place, *place)),
        }
    }
    let text =
        |(first, last): &(usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The text is not `writes;faults` with places and ranges joined by commas.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not '<writes>;<faults>', each a list of places and ranges as in 3,5-9")]
pub struct KeptError(String);

impl std::str::FromStr for Kept {
    type Err = KeptError;

    fn from_str(text: &str) -> Result<Self, KeptError> {
        let fault = || KeptError(text.to_owned());
        let (writes, faults) = text.split_once(';').ok_or_else(fault)?;
        let places = |list: &str| {
            let mut places = Vec::new();
            for part in list.split(',').filter(|part| !part.is_empty()) {
                let (first, last) = part.split_once('-').unwrap_or((part, part));
                let number = |text: &str| text.parse::<usize>().map_err(|_| fault());
                places.extend(number(first)?..=number(last)?);
            }
            Ok(places)
        };
        Ok(Self { writes: places(writes)?, faults: places(faults)? })
    }
}

/// The shortest history found that breaks `check`, by halving and then by single pieces, in at most
/// `runs_max` runs.
pub fn shrink(history: &History, check: Check, runs_max: usize) -> Kept {
    let mut left = runs_max;
    let mut breaks = |kept: &Kept| {
        if left == 0 {
            return false;
        }
        left -= 1;
        run(kept.of(history), false, &mut |_| {}).violation.is_some_and(|violation| violation.check == check)
    };
    let mut kept = Kept::all(history);
    for node in 0..history.nodes.len() {
        let without = without_node(history, &kept, node);
        if without != kept && breaks(&without) {
            kept = without;
        }
    }
    loop {
        let before = kept.clone();
        kept.faults = thin(&kept.faults, |faults| breaks(&Kept { faults: faults.to_vec(), ..before.clone() }));
        let faults = kept.faults.clone();
        kept.writes = thin(&kept.writes, |writes| breaks(&Kept { writes: writes.to_vec(), faults: faults.clone() }));
        if kept == before {
            return kept;
        }
    }
}

fn without_node(history: &History, kept: &Kept, node: HostId) -> Kept {
    let writes = kept.writes.iter().copied().filter(|at| history.writes[*at].node != node);
    let faults = kept.faults.iter().copied().filter(|at| !names(&history.faults[*at].kind, node));
    Kept { writes: writes.collect(), faults: faults.collect() }
}

fn names(kind: &FaultKind, node: HostId) -> bool {
    format!("{kind:?}").contains(&format!("node: {node} ")) || format!("{kind:?}").contains(&format!("node: {node},"))
}

/// Takes pieces out, ever smaller ones, as long as `breaks` holds for the rest.
fn thin(places: &[usize], mut breaks: impl FnMut(&[usize]) -> bool) -> Vec<usize> {
    let mut kept = places.to_vec();
    let mut piece = kept.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < kept.len() {
            let mut rest = kept.clone();
            rest.drain(at..(at + piece).min(kept.len()));
            if breaks(&rest) {
                kept = rest;
            } else {
                at += piece;
            }
        }
        if piece == 1 {
            return kept;
        }
        piece = piece.div_ceil(2).max(1);
    }
}

/// The history as a person reads it.
pub fn told(history: &History, kept: &Kept) -> String {
    let shorter = kept.of(history);
    let mut lines: Vec<(u64, String)> = Vec::new();
    for Write { at_us, node, kind } in &shorter.writes {
        lines.push((*at_us, format!("node {node}: {kind:?}")));
    }
    for fault in &shorter.faults {
        lines.push((fault.at_us, format!("{}: {:?} for {} ms", fault.kind.name(), fault.kind, fault.for_us / 1_000)));
    }
    lines.push((shorter.heal_at_us, "everything is mended".to_owned()));
    lines.sort();
    lines.iter().map(|(at, line)| format!("  {:>9} ms  {line}\n", at / 1_000)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_leaves_exactly_what_is_needed() {
        let places: Vec<usize> = (0..50).collect();
        let kept = thin(&places, |rest| rest.contains(&7) && rest.contains(&31));
        assert_eq!(kept, [7, 31]);
    }

    #[test]
    fn what_is_kept_is_read_as_it_is_printed() {
        let kept = Kept { writes: vec![1, 2, 3, 9], faults: vec![] };
        assert_eq!(kept.to_string(), "1-3,9;");
        assert_eq!("1-3,9;".parse::<Kept>().expect("reads"), kept);
        assert!("1-3,9".parse::<Kept>().is_err());
    }
}
