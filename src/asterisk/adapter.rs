//! All attached Asterisks of a node behind one state machine: who may speak, and what goes where.
//!
//! The driver's part is small. It hands in what arrives ([`Event`]), with the time and a view of the
//! database ([`Sight`]), and does what comes back ([`Effect`]), in that order; when [`Adapter::next_timer`]
//! is due it hands in [`Event::Timer`]. Duties of the driver:
//!
//! * the view is at least as new as the last outcome that it handed in;
//! * an [`Effect::Submit`] is answered by one [`Event::Committed`], and each attachment has at most one
//!   under way: several attachments commit in one group;
//! * [`Event::Woken`] is handed in when the feed or the marks have changed (as often as is convenient:
//!   one event may stand for many changes).
//!
//! An answer of 200 leaves only after its outcome: durable before 200.

use crate::core::eid::Eid;
use crate::core::storage::{Read, StoreError};

pub use super::event::{
    AttachmentCounts, AttachmentId, AttachmentStatus, Destination, Effect, Event, Moment, Refused, RefusedReason,
    Remote, Sight, Transport,
};
pub use super::settings::{AddressBlock, AttachmentSettings, Credentials, Quotas, Times};

/// The state machine.
pub struct Adapter {
    node: Eid,
    attachments: Vec<AttachmentSettings>,
    seed: [u8; 32],
}

impl Adapter {
    /// `seed` is drawn afresh at each start: tags, branches, ETags and nonces come from it.
    pub fn new(node: Eid, attachments: Vec<AttachmentSettings>, seed: [u8; 32]) -> Self {
        Self { node, attachments, seed }
    }

    /// Handles one event. An error is the store's, of a read: nothing was done and the event may be
    /// handed in again.
    pub fn handle<R: Read>(
        &mut self,
        event: Event,
        now: Moment,
        sight: Sight<'_, R>,
    ) -> Result<Vec<Effect>, StoreError> {
        let _ = (event, now, sight.ready, self.node, self.seed, self.attachments.len());
        Ok(Vec::new())
    }

    /// When [`Event::Timer`] is due next.
    pub fn next_timer(&self) -> Option<Moment> {
        None
    }

    pub fn status(&self) -> Vec<AttachmentStatus> {
        Vec::new()
    }
}
