//! The replication logic, sans-io: time comes in as an argument, effects go out as values.
//!
//! Never here: sockets, files, tasks, the wall clock, randomness, logging, metrics. What cannot run
//! in the simulator is in the wrong room.

mod batch;
pub mod clock;
pub mod codec;
#[cfg(test)]
mod codec_test;
pub mod eid;
pub mod family;
pub mod message;
pub mod path;
pub mod record;
pub mod register;
pub mod replica;
#[cfg(test)]
mod replica_test;
pub mod session;
#[cfg(test)]
mod session_test;
pub mod storage;
pub mod topology;
pub mod view;
