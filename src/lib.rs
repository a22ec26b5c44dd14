//! Kinfolk: one AstDB for all your Asterisk servers.
//!
//! The rooms, and who may import whom (one way only):
//!
//! ```text
//! main → cli, node → cluster, http → store → core → std, serde
//! ```
//!
//! `config` and `metrics` may be imported by everything above `store`; siblings do not import each
//! other. Without the default feature `node` only [`core`] and the in-memory [`store`] are built: that
//! is what the simulator runs, and how the compiler checks that the core is sans-io.

#[cfg(feature = "node")]
pub mod cli;
#[cfg(feature = "node")]
pub mod config;
pub mod core;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "node")]
pub mod status;
pub mod store;
