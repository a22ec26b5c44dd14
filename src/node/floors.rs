//! Keeps the purge floors going: looks now and then what is due.

use std::time::Duration;

use crate::core::replica::{Input, Outcome};
use crate::core::storage::Reads;
use crate::store::writer::Database;

/// How often it is looked what is due.
const LOOK_GAP: Duration = Duration::from_secs(2);

/// Looks for ever; whoever spawned it cancels it. What fails is tried again at the next look: the writer has told why.
pub async fn keep<R: Reads>(database: Database<R>) {
    loop {
        // A floor is adopted in many batches, so that others get their turn in between.
        while let Ok(Outcome::Floors { more: true, .. }) = database.submit(Input::Floors).await {}
        tokio::time::sleep(LOOK_GAP).await;
    }
}
