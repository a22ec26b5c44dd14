//! Kinfolk: one AstDB for all your Asterisk servers.
//!
//! The rooms, and who may import whom (one way only):
//!
//! ```text
//! main → cli, node → cluster, http, asterisk → store → core → std, serde
//! ```
//!
//! `config`, `metrics` and `status` may be imported by everything above `store`; siblings do not import
//! each other, but `config` takes the shapes of `asterisk::settings` as they are. Without the default feature
//! `node` only [`core`], the in-memory [`store`] and [`asterisk`] without its sockets are built: that is what
//! the simulator runs, and how the compiler checks that they are sans-io.

pub mod asterisk;
pub mod core;
pub mod store;

#[cfg(feature = "node")]
pub mod cli;
#[cfg(feature = "node")]
pub mod cluster;
#[cfg(feature = "node")]
pub mod config;
#[cfg(feature = "node")]
pub mod http;
#[cfg(feature = "node")]
pub mod metrics;
#[cfg(feature = "node")]
pub mod node;
#[cfg(feature = "node")]
pub mod status;
