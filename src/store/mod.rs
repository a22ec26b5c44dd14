//! Stores: implementations of [`core::storage`](crate::core::storage), on disk and in memory.

pub mod memory;
#[cfg(feature = "node")]
pub mod writer;
