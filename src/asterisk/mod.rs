//! Speaks `asterisk-db` with attached Asterisk servers: SIP PUBLISH in and out (RFC 3261, RFC 3903, Review Board 4490).
//!
//! Everything but `driver` is sans-io: messages and the time go in, messages and database inputs come out; its
//! sockets only carry bytes. Never here: the wall clock, ambient randomness; in the other modules: tasks.
//!
//! | module | for |
//! | --- | --- |
//! | [`message`], [`header`], [`framing`] | SIP text: parse, print, cut out of a stream |
//! | [`digest`] | digest authentication, both sides |
//! | [`body`] | the JSON bodies of the patch |
//! | [`transaction`] | non-INVITE transactions of RFC 3261 section 17 |
//! | [`rows`] | what is durable: the state of a link, and the shadow of each key |
//! | [`inbound`] | what a PUBLISH from an Asterisk means (RFC 3903 section 6) |
//! | [`outbound`] | our publication at an Asterisk (RFC 3903 section 4) |
//! | [`attachment`] | one configured Asterisk: both directions and the rules that keep them equal |
//! | [`settings`], [`event`] | the configuration; what goes in and out |
//! | `driver` | its sockets, the only part with tasks; only with the feature `node` |
//! | [`adapter`] | all attachments of a node: who may speak, and to whom a message belongs |

pub mod adapter;
pub mod attachment;
pub mod body;
pub mod digest;
#[cfg(feature = "node")]
pub mod driver;
pub mod event;
pub mod feed;
pub mod framing;
pub mod header;
mod ids;
pub mod inbound;
pub mod message;
pub mod outbound;
mod rate;
pub mod rows;
pub mod settings;
pub mod transaction;
pub mod update;

#[cfg(test)]
mod adapter_test;
#[cfg(test)]
mod body_test;
#[cfg(test)]
mod digest_test;
#[cfg(test)]
mod message_test;
