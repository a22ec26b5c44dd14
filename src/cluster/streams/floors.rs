//! Keeps the purge floors going: looks now and then what is due, and verifies with a collector where that is due.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Shared;
use super::reconcile::{Compared, reconcile};
use crate::core::path::Family;
use crate::core::replica::{Input, Outcome, Verified, Wanted};
use crate::core::storage::Reads;

/// How often it is looked what is due: moments next to a retention of days, and one cheap input each.
const LOOK_GAP: Duration = Duration::from_secs(2);

/// Runs until the node stops. What fails is tried again at the next look: the writer or the reconcile has told why.
pub(super) async fn run<R: Reads>(room: Shared<R>) {
    let work = async {
        loop {
            if !room.database.published().ledger.stands_in_books(room.database.eid()) {
                submit(&room, Input::Admit).await;
            }
            let wanted = submit(&room, Input::Floors).await;
            // Of a family that many share the collector may be at another site, and nobody else needs to be connected.
            let collectors: BTreeSet<_> = wanted.iter().map(|wanted| wanted.peer).collect();
            room.collectors.send_if_modified(|last| std::mem::replace(last, collectors.clone()) != collectors);
            for wanted in wanted {
                if let Some(verified) = verify(&room, wanted).await {
                    submit(&room, Input::Verified(verified)).await;
                }
            }
            tokio::time::sleep(LOOK_GAP).await;
        }
    };
    room.cancel.run_until_cancelled(work).await;
}

/// The verifies that are waited for. A floor is adopted in many batches, so that others get their turn in between.
async fn submit<R: Reads>(room: &Shared<R>, input: Input) -> Vec<Wanted> {
    let mut next = input;
    loop {
        match room.database.submit(next).await {
            Ok(Outcome::Floors { more: true, .. }) => next = Input::Floors,
            Ok(Outcome::Floors { wanted, .. }) => return wanted,
            _ => return Vec::new(),
        }
    }
}

async fn verify<R: Reads>(room: &Shared<R>, wanted: Wanted) -> Option<Verified> {
    let Wanted { family, peer, run } = wanted;
    let collector = room.peer(peer)?;
    // The collector has to know whom this node exchanges the family with, before it counts on having asked everyone.
    let books = reconcile(room, collector, &Family::books()).await.ok()?;
    if !books.ended.is_verified() {
        return None;
    }
    let Compared { ended, own_head } = reconcile(room, collector, &family).await.ok()?;
    (ended.verified_run() == Some(run)).then_some(Verified { family, peer, run, head: own_head })
}
