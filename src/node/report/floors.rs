//! Purge floors and the quarantine in the status.

use super::Reporter;
use crate::core::clock::UnixMs;
use crate::core::floor::{Pinned, Seen};
use crate::core::path::Family;
use crate::core::storage::Reads;
use crate::node::unix_ms;
use crate::status::{FloorStatus, PinnedStatus, utc};
use crate::store::writer::Published;

impl<R: Reads> Reporter<R> {
    pub(super) fn floor(&self, published: &Published, family: &Family) -> FloorStatus {
        let seen = self.seen(published, family);
        FloorStatus {
            unix_ms: Some(seen.local.adopted.unix_ms()).filter(|unix_ms| *unix_ms > 0),
            adopting: seen.pending().is_some(),
            pinned: seen.pinned().map(|pinned| pinned_status(pinned, seen.now)),
        }
    }

    fn seen<'a>(&self, published: &'a Published, family: &'a Family) -> Seen<'a> {
        published.ledger.seen(family, self.database.eid(), published.run, self.policy, unix_ms())
    }

    /// Who keeps tombstones from being dropped for longer than a round takes, and what waits for the operator.
    pub(super) fn tombstone_alarms(&self, published: &Published, alarms: &mut Vec<String>) {
        let now = unix_ms();
        for family in published.ledger.families.marks().keys() {
            let Some(pinned) = self.seen(published, family).pinned() else { continue };
            if pinned.since_unix_ms.saturating_add(2 * self.policy.interval_ms) > now {
                continue;
            }
            let by: Vec<String> = pinned.by.iter().map(ToString::to_string).collect();
            alarms.push(format!(
                "tombstones of '{family}' are pinned since {} by {} (not {} yet): bring it back, or if it is gone for good, \
                 kinfolk decommission it",
                utc(pinned.since_unix_ms / 1_000),
                by.join(", "),
                pinned.lacks.as_str(),
            ));
        }
        if published.ledger.quarantined > 0 {
            alarms.push(format!(
                "{} keys are in quarantine, older than what is remembered of deletions: kinfolk quarantine list",
                published.ledger.quarantined
            ));
        }
    }
}

fn pinned_status(Pinned { by, lacks, since_unix_ms }: Pinned, now: UnixMs) -> PinnedStatus {
    PinnedStatus { by, lacks: lacks.as_str().to_string(), ms: now.saturating_sub(since_unix_ms) }
}
