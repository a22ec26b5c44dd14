//! Alarms that records raised: what `kinfolk status` shows, and one log line each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::clock::UnixMs;
use crate::core::eid::Eid;
use crate::core::replica::Alarm;

/// Alarms kept at a time; more of them say nothing new.
const ALARMS_MAX: usize = 64;
/// An alarm is shown for this long after it was last raised.
const ALARM_HOLD_MS: UnixMs = 3_600_000;
/// The same alarm is logged this often at most.
const ALARM_LOG_GAP_MS: UnixMs = 60_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    FarFuture,
    DuplicateEid,
}

struct Raised {
    last_ms: UnixMs,
    logged_ms: UnixMs,
    text: String,
}

#[derive(Clone, Default)]
pub struct Alarms(Arc<Mutex<BTreeMap<(Kind, Eid), Raised>>>);

impl Alarms {
    pub fn raise(&self, alarm: &Alarm, now: UnixMs) {
        let (key, text) = match alarm {
            Alarm::FarFuture { eid, ahead_ms } => {
                let ahead_s = ahead_ms / 1_000;
                let text = format!(
                    "a record of {eid} is stamped {ahead_s} s in the future: mend the clock of that node, or of this one"
                );
                ((Kind::FarFuture, *eid), text)
            }
            Alarm::DuplicateEid { eid } => {
                let text = format!(
                    "two nodes write as {eid}: give one of them a certificate of its own and an empty data directory"
                );
                ((Kind::DuplicateEid, *eid), text)
            }
        };
        let mut alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.retain(|_, raised| raised.last_ms + ALARM_HOLD_MS > now);
        if alarms.len() >= ALARMS_MAX && !alarms.contains_key(&key) {
            return;
        }
        let raised = alarms.entry(key).or_insert_with(|| Raised { last_ms: now, logged_ms: 0, text: String::new() });
        raised.last_ms = now;
        raised.text = text;
        if now >= raised.logged_ms + ALARM_LOG_GAP_MS {
            raised.logged_ms = now;
            tracing::error!(alarm = raised.text);
        }
    }

    pub fn texts(&self, now: UnixMs) -> Vec<String> {
        let alarms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alarms
            .values()
            .filter(|raised| raised.last_ms + ALARM_HOLD_MS > now)
            .map(|raised| raised.text.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_shown_until_it_has_not_been_raised_for_a_while() {
        let alarms = Alarms::default();
        let eid = Eid::new([2, 0, 0, 0, 0, 1]);
        alarms.raise(&Alarm::FarFuture { eid, ahead_ms: 90_000 }, 1_000);
        alarms.raise(&Alarm::FarFuture { eid, ahead_ms: 80_000 }, 2_000);
        let texts = alarms.texts(3_000);
        assert_eq!(texts.len(), 1, "one alarm a node and kind");
        assert!(texts[0].contains("80 s in the future"), "{texts:?}");
        assert!(alarms.texts(2_000 + ALARM_HOLD_MS).is_empty());
    }

    #[test]
    fn the_number_of_alarms_is_bounded() {
        let alarms = Alarms::default();
        for n in 0..200 {
            alarms.raise(&Alarm::DuplicateEid { eid: Eid::new([2, 0, 0, 0, 0, n]) }, 1);
        }
        assert_eq!(alarms.texts(1).len(), ALARMS_MAX);
    }
}
