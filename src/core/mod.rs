//! The replication logic, sans-io: time comes in as an argument, effects go out as values.
//!
//! Never here: sockets, files, tasks, the wall clock, randomness, logging, metrics. What cannot run
//! in the simulator is in the wrong room.

/// Whether a planted fault is switched on. Without the feature `mutants` this is `false` and costs nothing.
#[cfg(feature = "mutants")]
macro_rules! mutant {
    ($name:ident) => {
        $crate::core::mutants::Mutant::$name.is_on()
    };
}
#[cfg(not(feature = "mutants"))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}
pub(crate) use mutant;

pub mod backup;
mod batch;
pub mod books;
pub mod clock;
pub mod codec;
#[cfg(test)]
mod codec_test;
pub mod eid;
pub mod family;
pub mod few;
pub mod floor;
#[cfg(test)]
mod floor_test;
pub mod losers;
pub mod message;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod nearby;
pub mod path;
pub mod protocol;
pub mod reconcile;
pub mod record;
pub mod register;
pub mod replica;
#[cfg(test)]
mod replica_test;
pub mod session;
#[cfg(test)]
mod session_test;
pub mod sketch;
pub mod storage;
pub mod topology;
pub mod trust;
pub mod verify;
pub mod view;
