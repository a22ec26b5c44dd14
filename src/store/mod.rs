//! Stores: implementations of [`core::storage`](crate::core::storage), on disk and in memory.
//!
//! Never here: what records mean. A store does not merge, stamp or share; it keeps what it is given.
//! One model test holds both stores to the duties that the trait states.

pub mod memory;
#[cfg(feature = "node")]
pub mod redb;
#[cfg(feature = "node")]
pub mod writer;

#[cfg(all(test, feature = "node"))]
mod large_test;
#[cfg(all(test, feature = "node"))]
mod model_test;
#[cfg(all(test, feature = "node"))]
mod writer_test;
