//! A simulator that runs the daemon's own core for whole clusters in virtual time, breaks what can break,
//! and checks the promises of the design after every step.
//!
//! Same seed, same build: same run, to the last bit. Never here: the wall clock, randomness of the
//! operating system, hash maps, floating point (a stopwatch around a run belongs to `main`).

mod ahead;
pub mod asterisk;
pub mod check;
pub mod clock;
pub mod coverage;
pub mod decoder;
pub mod draw;
pub mod edge;
pub mod epidemic;
mod faults;
mod floors;
pub mod history;
mod host;
mod inspect;
mod judge;
mod links;
mod membership;
pub mod mending;
mod model;
mod nearby;
mod network;
pub mod page;
mod process;
mod queue;
mod reconcile;
pub mod report;
mod rings;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod shrink;
mod sources;
pub mod spread;
mod streams;
pub mod swarm;
pub mod table;
mod upgrade;
pub mod verify;
mod workload;
pub mod world;
